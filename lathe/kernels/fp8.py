"""Block FP8: e4m3 values, and one scale for 128 x 128 of them (see model/quantization.py)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 128
FP8 = torch.float8_e4m3fn
FP8_MAX = torch.finfo(FP8).max  # 448


def num_blocks(size: int) -> int:
    return -(-size // BLOCK)


def spread(scale: Tensor, rows: int, columns: int) -> Tensor:
    """One number a block -> one a value: [..., rows, columns]; the last blocks may be cut."""
    scale = scale.repeat_interleave(BLOCK, -2)[..., :rows, :]
    return scale.repeat_interleave(BLOCK, -1)[..., :columns]


def dequantize_blocks(values: Tensor, scale_inv: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The matrix (or stack) back, multiplied in fp32."""
    return values.float().mul_(spread(scale_inv.float(), *values.shape[-2:])).to(dtype)


class Fp8Matrix(NamedTuple):
    """A matrix [rows, columns] or a stack of E; scales [..., blocks of rows, blocks of columns].

    The rows may be `parts` equal matrices one above the other, each with blocks of its own.
    """

    values: Tensor
    scales: Tensor
    parts: int = 1

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        values, scales = (each.unflatten(-2, (self.parts, -1)) for each in (self.values, self.scales))
        return dequantize_blocks(values, scales, dtype).flatten(-3, -2)
