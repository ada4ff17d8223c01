"""The trainer's weights become the engine's.

In one process they can be the same memory: then a sync copies nothing, and only tells the engine that what it
holds in its cache was computed by other weights.
"""

from __future__ import annotations

import torch

from lathe.engine.engine import Engine
from lathe.engine.updates import Running
from lathe.model.transformer import Transformer


def shares_weights(model: Transformer, engine: Engine) -> bool:
    """Whether every weight of the two lies in the same memory."""
    ours, theirs = model.state_dict(), engine.runner.model.state_dict()
    return ours.keys() == theirs.keys() and all(
        weight.data_ptr() == theirs[name].data_ptr() for name, weight in ours.items()
    )


def sync(model: Transformer, engine: Engine, version: int, *, running: Running = "finish") -> None:
    """The engine serves the model's weights from here on, under this version. Blocks until it does.

    Where they share memory, the weights must not change while replies are made: nothing may be `running`.
    """
    weights = {} if shares_weights(model, engine) else model.state_dict()
    engine.update_weights(weights, version=version, running=running)


@torch.no_grad()
def copy_of(model: Transformer) -> Transformer:
    """The same weights in memory of their own: for an engine that samples while these are moved."""
    weight = model.norm.weight
    copy = Transformer(model.config, device=weight.device, dtype=weight.dtype)
    copy.load_state_dict(model.state_dict())
    return copy
