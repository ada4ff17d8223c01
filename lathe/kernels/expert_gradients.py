"""A layer of experts that is trained: forward and backward over rows sorted by expert.

The same function as `experts.grouped_experts`. Written out, as autograd would make copies of all rows between
any two steps: an expert's rows stay in the cache from its first product to its last, its gradient is written
where it belongs, and a token's weighted sum reads its rows where they lie (as a bag of embeddings).

Shapes: T tokens, D hidden size, K experts per token, E experts, R = T K rows, r of them one expert's, F = 2I,
where I is an expert's inner width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Sorting:
    """Choices sorted by expert: row r is choice order_R[r], and choice c is row places_TK.flatten()[c]."""

    order_R: Tensor
    places_TK: Tensor
    ends: tuple[int, ...]  # of each expert's rows

    def experts(self) -> Iterator[tuple[int, slice]]:
        """Each expert that somebody chose, and its rows."""
        start = 0
        for expert, end in enumerate(self.ends):
            if end > start:
                yield expert, slice(start, end)
            start = end

    @property
    def tokens_R(self) -> Tensor:
        return self.order_R // self.places_TK.shape[1]


def sort_by_expert(expert_ids_TK: Tensor, num_experts: int) -> Sorting:
    flat = expert_ids_TK.flatten().long()
    order_R = flat.argsort(stable=True)
    ends = flat.bincount(minlength=num_experts).cumsum(0).tolist()
    return Sorting(order_R, order_R.argsort().view_as(expert_ids_TK), tuple(ends))


def trained_experts(
    x_TD: Tensor, gate_up_EFD: Tensor, down_EDI: Tensor, expert_ids_TK: Tensor, weights_TK: Tensor
) -> Tensor:
    """Each token's weighted sum over its K experts of down(silu(gate(x)) * up(x)). Returns [T, D]."""
    return _Experts.apply(x_TD, gate_up_EFD, down_EDI, expert_ids_TK, weights_TK)


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gate_up: Tensor, down: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        sorting = sort_by_expert(ids, len(down))
        tokens_R = sorting.tokens_R
        inner_RF = x.new_empty(len(tokens_R), gate_up.shape[1])
        out_RD = x.new_empty(len(tokens_R), x.shape[1])
        for expert, rows in sorting.experts():
            gate_rI, up_rI = torch.mm(x[tokens_R[rows]], gate_up[expert].T, out=inner_RF[rows]).chunk(2, -1)
            torch.mm(F.silu(gate_rI).mul_(up_rI), down[expert].T, out=out_RD[rows])
        ctx.sorting = sorting
        ctx.save_for_backward(x, gate_up, down, weights, inner_RF)
        return bag(out_RD, sorting.places_TK, weights)

    @staticmethod
    def backward(ctx: Any, grad_TD: Tensor) -> Any:
        *layer, inner_RF = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        wanted = (wanted[0], wanted[1], wanted[2], wanted[4])
        x, gate_up, down, weights = expert_gradients(grad_TD, wanted, ctx.sorting, inner_RF, *layer)
        return x, gate_up, down, None, weights


def expert_gradients(
    grad_TD: Tensor,
    wanted: tuple[bool, ...],
    sorting: Sorting,
    inner_RF: Tensor | None,
    x_TD: Tensor,
    gate_up_EFD: Tensor,
    down_EDI: Tensor,
    weights_TK: Tensor,
) -> tuple[Tensor | None, ...]:
    """The gradients of x, gate_up, down and weights; None for what is not wanted.

    `inner_RF` are the rows' gate and up, computed anew where the forward has not kept them.
    """
    tokens_R, shares_R1 = sorting.tokens_R, weights_TK.flatten()[sorting.order_R][:, None]
    # an expert that nobody chose has a gradient of zeros
    grad_gate_up = torch.zeros_like(gate_up_EFD) if wanted[1] else None
    grad_down = torch.zeros_like(down_EDI) if wanted[2] else None
    grad_weights_R = weights_TK.new_empty(len(tokens_R))
    grad_x_RD = x_TD.new_empty(len(tokens_R), x_TD.shape[1])
    for expert, rows in sorting.experts():
        x_rD, grad_rD, share_r1 = x_TD[tokens_R[rows]], grad_TD[tokens_R[rows]], shares_R1[rows]
        inner_rF = x_rD @ gate_up_EFD[expert].T if inner_RF is None else inner_RF[rows]
        gate_rI, up_rI = inner_rF.chunk(2, -1)
        silu_rI = F.silu(gate_rI)
        product_rI = silu_rI * up_rI
        grad_rI = grad_rD @ down_EDI[expert]  # as if the expert's weight were 1
        torch.sum(grad_rI * product_rI, -1, out=grad_weights_R[rows])
        if grad_down is not None:
            torch.mm(grad_rD.T, product_rI.mul_(share_r1), out=grad_down[expert])
        grad_rI.mul_(share_r1)
        grad_up_rI = silu_rI.mul_(grad_rI)
        grad_gate_rI = torch.ops.aten.silu_backward(grad_rI.mul_(up_rI), gate_rI)
        grad_rF = torch.cat((grad_gate_rI, grad_up_rI), -1)
        if grad_gate_up is not None:
            torch.mm(grad_rF.T, x_rD, out=grad_gate_up[expert])
        torch.mm(grad_rF, gate_up_EFD[expert], out=grad_x_RD[rows])
    grad_x = bag(grad_x_RD, sorting.places_TK) if wanted[0] else None
    return grad_x, grad_gate_up, grad_down, grad_weights_R[sorting.places_TK] if wanted[3] else None


def bag(rows_RD: Tensor, places_TK: Tensor, weights_TK: Tensor | None = None) -> Tensor:
    """Each token's weighted sum of its K rows, in their order: [T, D]."""
    return F.embedding_bag(places_TK, rows_RD, per_sample_weights=weights_TK, mode="sum")
