"""Weights as the compiled kernels take them: a PyTorch tensor, a packed matrix, or block FP8."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lathe.kernels.cpu.packed import PackedMatrix
from lathe.kernels.cpu.table import Kind, Matrix
from lathe.kernels.fp8 import BLOCK, FP8, Fp8Matrix

VECTOR = 32  # bytes that are loaded at once from tiles, whose sizes are multiples of it
PLAIN = {torch.float32: Kind.F32, torch.bfloat16: Kind.BF16}


class Unsupported(Exception):
    """The compiled kernels don't compute with this; the message says with what."""


def matrix(
    weight: Any, bias: Tensor | None = None, *, part: int = 0, parts: int = 1
) -> tuple[Matrix, list[Any]]:
    """The C structure of a weight, and what must live as long as it is used.

    Of `parts` equal matrices that lie one above the other (gate and up), number `part`. Raises Unsupported.
    """
    if isinstance(weight, PackedMatrix):
        made, keep = _packed(weight, part, parts)
    elif isinstance(weight, Fp8Matrix):
        made, keep = _fp8(weight, part, parts)
    elif isinstance(weight, Tensor) and weight.dtype in PLAIN and weight.is_contiguous():
        made, keep = _plain(weight, part, parts)
    else:
        raise Unsupported(f"{type(weight).__name__} {getattr(weight, 'dtype', '')}")
    if bias is not None:
        bias = bias.detach().float().contiguous()
        made.bias = bias.data_ptr()
        keep.append(bias)
    return made, keep


def _plain(weight: Tensor, part: int, parts: int) -> tuple[Matrix, list[Any]]:
    *stack, rows, columns = weight.shape
    rows //= parts
    row_bytes = columns * weight.element_size()
    made = Matrix(kind=PLAIN[weight.dtype], rows=rows, columns=columns)
    made.data = weight.data_ptr() + part * rows * row_bytes
    made.expert_bytes = parts * rows * row_bytes if stack else 0
    return made, [weight]


def _packed(weight: PackedMatrix, part: int, parts: int) -> tuple[Matrix, list[Any]]:
    rows, rest = divmod(weight.rows, parts)
    if rest or (parts > 1 and rows % 16):
        raise Unsupported(f"{parts} packed matrices in common tiles")
    if weight.data.data_ptr() % VECTOR or not weight.data.is_contiguous():
        raise Unsupported(f"a packed matrix that does not start at a multiple of {VECTOR} bytes")
    tiles = -(-rows // 16) * (weight.columns // 32)
    tile_bytes = weight.data.shape[-1]
    made = Matrix(kind=Kind[weight.kind.upper()], rows=rows, columns=weight.columns)
    made.data = weight.data.data_ptr() + part * tiles * tile_bytes
    made.expert_bytes = parts * tiles * tile_bytes if weight.data.dim() == 3 else 0
    return made, [weight]


def _fp8(weight: Fp8Matrix, part: int, parts: int) -> tuple[Matrix, list[Any]]:
    *stack, rows, columns = weight.values.shape
    if weight.values.dtype != FP8 or not weight.values.is_contiguous():
        raise Unsupported(f"FP8 values of {weight.values.dtype}, or not row by row")
    if weight.parts != parts and (rows // weight.parts % BLOCK or rows // parts % BLOCK):
        raise Unsupported(f"{parts} FP8 matrices in the blocks of {weight.parts}")
    rows //= parts
    scales = weight.scales.detach().float().contiguous()
    scale_rows = scales.shape[-2] // parts
    made = Matrix(kind=Kind.FP8, rows=rows, columns=columns)
    made.data = weight.values.data_ptr() + part * rows * columns
    made.expert_bytes = parts * rows * columns if stack else 0
    made.scales = scales.data_ptr() + part * scale_rows * scales.shape[-1] * 4
    made.expert_scales = scales.shape[-2] * scales.shape[-1] if stack else 0
    return made, [weight, scales]
