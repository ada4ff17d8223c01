"""New weights for a model that serves: checked whole before anything is changed, then put in place."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from lathe.errors import InvalidRequest
from lathe.model.packed import put_weight, weight_shapes
from lathe.model.transformer import Transformer

# What becomes of replies in the making: they finish with the old weights first, or go on with the new ones.
Running = Literal["finish", "continue"]


@dataclass(frozen=True)
class WeightUpdate:
    """An update that waits for its moment; `done` gets the version when it is in place."""

    weights: Mapping[str, Tensor]
    version: int | None
    running: Running
    done: Future[int] = field(default_factory=Future)


def check_weights(model: Transformer, weights: Mapping[str, Tensor]) -> None:
    """Raises InvalidRequest, naming the first tensor that the model has no place for."""
    shapes, stored = weight_shapes(model), dict(model.named_parameters())
    for name, tensor in weights.items():
        if name not in shapes:
            raise InvalidRequest(f"{name} is no weight of this model. Its names are those of its state_dict.")
        # a packed weight may come as numbers, which are quantized, or as another model's bytes
        if tensor.shape != (shapes[name] if tensor.is_floating_point() else stored[name].shape):
            found, wanted = list(tensor.shape), list(shapes[name])
            raise InvalidRequest(f"{name} has the shape {found}; the model's is {wanted}.")


def put_weights(model: Transformer, weights: Mapping[str, Tensor]) -> None:
    """Copies of these tensors become the model's; see `put_weight`."""
    for name, tensor in weights.items():
        put_weight(model, name, tensor)
