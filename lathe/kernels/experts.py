"""A layer of experts in plain PyTorch: sort the tokens by expert, then one matrix product per expert.

Shapes: T tokens, D hidden size, K experts per token, E experts, F = 2I, where I is an expert's inner width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class PerExpert(Protocol):
    """Weights that give one expert's matrix at a time; a stacked tensor is one."""

    def __getitem__(self, expert: int, /) -> Tensor: ...


def grouped_experts(
    x_TD: Tensor,
    gate_up_EFD: PerExpert,
    down_EDI: PerExpert,
    expert_ids_TK: Tensor,
    weights_TK: Tensor,
    *,
    linear: Callable[[Tensor, Tensor], Tensor] | None = None,
    swiglu: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """Each token's weighted sum over its K experts of down(silu(gate(x)) * up(x)). Returns [T, D].

    An expert's matrices are asked for once, and only if a token chose it: they may be dequantized on the way.
    A token's K terms are added in the order of `expert_ids_TK`, whoever else is in the batch. `linear` and
    `swiglu` compute x W^T and silu(gate) * up of one expert's rows, where not the quick way is wanted.
    """
    linear, swiglu = linear or few_rows_linear, swiglu or quick_swiglu
    num_tokens, num_chosen = expert_ids_TK.shape
    if num_tokens == 0:
        return torch.zeros_like(x_TD)
    order = expert_ids_TK.flatten().argsort(stable=True)  # row r of the sorted tokens is choice order[r]
    num_rows = expert_ids_TK.flatten().bincount().tolist()
    gate_up, down = one_by_one(gate_up_EFD), one_by_one(down_EDI)
    outs = []
    for expert, x_rD in enumerate(x_TD[order // num_chosen].split(num_rows)):
        if len(x_rD):
            gate_rI, up_rI = linear(x_rD, gate_up[expert].to(x_TD.dtype)).chunk(2, -1)
            outs.append(linear(swiglu(gate_rI, up_rI), down[expert].to(x_TD.dtype)))
    # back by a permutation, not by index_add, which on a GPU adds in whatever order the rows come
    out_TKD = torch.cat(outs)[order.argsort()].unflatten(0, (num_tokens, num_chosen))
    return (out_TKD * weights_TK[..., None]).sum(1)


def few_rows_linear(x_rD: Tensor, weight_ID: Tensor) -> Tensor:
    """x W^T, quick for the few rows that an expert gets while decoding. See model/linear.py for why."""
    num_rows = len(x_rD)
    gains = x_rD.device.type == "cpu" and x_rD.dtype == torch.float32 and weight_ID.numel() >= 2**16
    if not gains or num_rows > 4:
        return F.linear(x_rD, weight_ID)
    return torch.mm(weight_ID, F.pad(x_rD, (0, 0, 0, 4 - num_rows)).T)[:, :num_rows].T


def quick_swiglu(gate_rI: Tensor, up_rI: Tensor) -> Tensor:
    return F.silu(gate_rI) * up_rI


def one_by_one(weights: PerExpert) -> PerExpert | Sequence[Tensor]:
    """The same weights; a tensor that is being trained is unbound at once.

    The gradient of weights[e] is as large as all experts together, so indexing costs E times E.
    """
    if isinstance(weights, Tensor) and weights.requires_grad and torch.is_grad_enabled():
        return weights.unbind()
    return weights
