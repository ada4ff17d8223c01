"""Training in bf16: the model computes in bf16, and what is updated are fp32 copies of its weights.

An update of a weight is often smaller than bf16's steps (a 256th of it) and would be lost; in the copies it
adds up. Gradients are added up in fp32, too, one micro-batch after the other. A weight costs 18 bytes (2, a
copy's 4, its gradient's 4 and Adam's 8) beside the 16 of fp32 alone: bf16 saves time and activations, which
take half. No autocast: the forward is the one that serves, whose weights are bf16.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from lathe.model.transformer import Transformer


class Masters:
    """The fp32 copies. Makes the model's weights bf16, in new memory: before an engine is given the model."""

    def __init__(self, model: Transformer):
        self.pairs: dict[str, tuple[nn.Parameter, nn.Parameter]] = {}
        for name, weight in model.named_parameters():
            master = nn.Parameter(weight.detach().float().clone())
            weight.data = weight.data.bfloat16()
            if weight.requires_grad:
                self.pairs[name] = weight, master
                weight.register_post_accumulate_grad_hook(partial(_carry, master))

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for name, (_, master) in self.pairs.items():
            yield name, master

    @torch.no_grad()
    def merge(self) -> None:
        """The model's weights are the copies, rounded. In place."""
        for weight, master in self.pairs.values():
            weight.copy_(master)

    def state_dict(self) -> dict[str, Tensor]:
        return {name: master.detach() for name, master in self.named_parameters()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name, master in self.named_parameters():
            master.copy_(state[name])
        self.merge()


@torch.no_grad()
def _carry(master: nn.Parameter, weight: Tensor) -> None:
    """Adds the gradient of a bf16 weight to that of its copy, and drops it."""
    assert weight.grad is not None
    if master.grad is None:
        master.grad = weight.grad.float()
    else:
        master.grad.add_(weight.grad)
    weight.grad = None
