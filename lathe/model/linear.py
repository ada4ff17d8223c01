"""A matrix product that is quick for a few rows, too: decoding reads every weight for one row a sequence.

On a CPU `F.linear` reads weights for one row on a single thread, and for two to eight rows with a kernel made
for many: 14 and 8 GB/s where the machine reads 30. The product the other way round, W x^T with exactly four
columns, takes a quick path at any of these counts (see docs/log.md). As four columns are
always computed, a row's result does not depend on how many others there are.

`invariant_linear` promises that for any number of rows, at some cost: the same bits whoever else is in the
batch (batch invariance: He et al. 2025, "Defeating Nondeterminism in LLM Inference").
"""

from __future__ import annotations

from typing import Protocol, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lathe.kernels.cpu.packed import PackedMatrix
from lathe.kernels.fp8 import Fp8Matrix
from lathe.model.rope import rotate, tables

Weight: TypeAlias = Tensor | PackedMatrix | Fp8Matrix
Rope: TypeAlias = tuple[Tensor, Tensor]

COLUMNS, MOST_ROWS = 4, 8
SMALL = 2**16  # numbers: a matrix below this is not worth waking a second thread for
TILE_ROWS, FEW_TILES, LARGE = 4, 16, 2**23


class Arithmetic(Protocol):
    """How a forward pass computes: `Quick`, `Invariant` with the same bits in any batch, or a recorder that
    only writes down what it is asked for (kernels/cpu/program.py)."""

    def embed(self, ids_T: Tensor, table: Weight, dtype: torch.dtype) -> Tensor:
        """The table's rows of these ids, [T, D]."""
        ...

    def rope(self, frequencies_h: Tensor, scale: float, positions_T: Tensor) -> Rope:
        """What `rotate` needs to know of the positions (model/rope.py)."""
        ...

    def rotate(self, x_THd: Tensor, rope: Rope) -> Tensor: ...

    def norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x / sqrt(mean(x^2) + eps) * weight over the last axis."""
        ...

    def route(self, logits_TE: Tensor, num_chosen: int, normalized: bool) -> tuple[Tensor, Tensor]:
        """The ids and weights of each token's best experts, each [T, k], best first."""
        ...

    def linear(self, x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
        """x W^T + b: [rows, in] -> [rows, out]. In x's type, whatever the weight is stored in."""
        ...

    def swiglu(self, gate: Tensor, up: Tensor) -> Tensor:
        """silu(gate) * up (Shazeer 2020)."""
        ...


class Linear(nn.Linear):
    """nn.Linear for x [rows, in], computed as the caller wants it."""

    def forward(self, x: Tensor, arithmetic: Arithmetic | None = None) -> Tensor:
        return (arithmetic or QUICK).linear(x, self.weight, self.bias)


def plain(weight: Weight, dtype: torch.dtype) -> Tensor:
    """The weight as a tensor of this type, which it mostly is."""
    return weight.to(dtype) if isinstance(weight, Tensor) else weight.dequantize(dtype)


def linear(x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
    """x W^T + b. Wherever the detour is not quicker, just `F.linear`."""
    weight = plain(weight, x.dtype)
    if not gains(x, weight) or not 1 <= len(x) <= MOST_ROWS:
        return F.linear(x, weight, bias)
    blocks = [_four_columns(x[first : first + COLUMNS], weight) for first in range(0, len(x), COLUMNS)]
    out = blocks[0] if len(blocks) == 1 else torch.cat(blocks)
    return out if bias is None else out + bias


def invariant_linear(x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
    """x W^T + b for x [rows, in]: a row gives the same bits alone, in any batch and at any place in it.

    How many rows there are changes the order of a row's sum only where they leave one of the product's tiles
    of four rows unfilled, so they are filled up. `is_invariant` asks the machine at hand.
    """
    weight, num_rows = plain(weight, x.dtype), len(x)
    if num_rows == 0:
        return F.linear(x, weight, bias)
    padded = F.pad(x, (0, 0, 0, -num_rows % TILE_ROWS))
    if len(padded) <= FEW_TILES and weight.numel() >= LARGE:
        # The same sums the other way round: a third less time for an output head and one row.
        wide = F.pad(padded, (0, 0, 0, FEW_TILES - len(padded)))
        out = torch.mm(weight, wide.T).T[:num_rows].contiguous()
    else:
        out = F.linear(padded, weight)[:num_rows]
    return out if bias is None else out + bias


@torch.inference_mode()
def is_invariant(weight: Tensor) -> bool:
    """Whether `invariant_linear` keeps its promise for this matrix on this machine, tried on random rows."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, weight.shape[1], generator=generator).to(weight.device, weight.dtype)
    whole = invariant_linear(x, weight)
    cuts = [(0, 1), (39, 40), (3, 5), (5, 12), (0, 13), (7, 24), (1, 34)]
    return all(torch.equal(invariant_linear(x[a:b], weight), whole[a:b]) for a, b in cuts)


def gains(x: Tensor, weight: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.float32 and x.dim() == 2 and weight.numel() >= SMALL


def _four_columns(x: Tensor, weight: Tensor) -> Tensor:
    padded = F.pad(x, (0, 0, 0, COLUMNS - len(x)))
    return torch.mm(weight, padded.T)[:, : len(x)].T


class Plain:
    """What PyTorch computes alike in any batch."""

    @staticmethod
    def embed(ids_T: Tensor, table: Weight, dtype: torch.dtype) -> Tensor:
        if isinstance(table, PackedMatrix):
            return table.take_rows(ids_T, dtype)
        return F.embedding(ids_T, plain(table, table.dtype if isinstance(table, Tensor) else dtype)).to(dtype)

    rope = staticmethod(tables)

    @staticmethod
    def rotate(x_THd: Tensor, rope: Rope) -> Tensor:
        return rotate(x_THd, *rope)

    @staticmethod
    def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return F.rms_norm(x, weight.shape, weight, eps)

    @staticmethod
    def route(logits_TE: Tensor, num_chosen: int, normalized: bool) -> tuple[Tensor, Tensor]:
        # The softmax runs over all experts, before the choice, and in fp32: bf16 makes ties of close experts.
        probs_TE = logits_TE.softmax(-1, dtype=torch.float32)
        weights_Tk, expert_ids_Tk = probs_TE.topk(num_chosen, dim=-1)
        if normalized:
            weights_Tk = weights_Tk / weights_Tk.sum(-1, keepdim=True)
        return expert_ids_Tk, weights_Tk.to(logits_TE.dtype)


class Quick(Plain):
    """The fastest way to each number."""

    linear = staticmethod(linear)

    @staticmethod
    def swiglu(gate: Tensor, up: Tensor) -> Tensor:
        return F.silu(gate) * up


class Invariant(Plain):
    """A row's numbers have the same bits whatever else is computed."""

    linear = staticmethod(invariant_linear)

    @staticmethod
    def swiglu(gate: Tensor, up: Tensor) -> Tensor:
        # F.silu computes the last few of a thread's numbers with another exponential than the rest.
        return gate / (1 + torch.exp(-gate)) * up


QUICK, INVARIANT = Quick(), Invariant()
