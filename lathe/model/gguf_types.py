"""The ways GGUF stores numbers, by name and by id, and what all of them share: work in chunks, on any device.

Types that are rarely met (IQ*, MXFP4 ...) are read by the `gguf` package: correct, and slower.
"""

# N blocks, B numbers in a block

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from math import prod

import torch

from lathe.kernels.cpu import blocks as q
from lathe.model import gguf_kquants as k

# 2 MB of float32: what lies between stays in the cache. One core reads q4_1 at 1.0 G numbers/s, in 32 MB
# chunks at 0.35
CHUNK = 1 << 19


@dataclass(frozen=True)
class GgufType:
    """One way to store numbers: blocks of `block_size` numbers in `block_bytes` bytes.

    `dequantize` takes uint8 [N, block_bytes] to floats [N, block_size]; `quantize` goes back from float32,
    and is None for types that are only read.
    """

    name: str
    id: int
    block_size: int
    block_bytes: int
    dequantize: Callable[[torch.Tensor], torch.Tensor]
    quantize: Callable[[torch.Tensor], torch.Tensor] | None = None

    def num_bytes(self, shape: tuple[int, ...]) -> int:
        """What a tensor of this shape takes. Its rows must be whole blocks."""
        return prod(shape) // self.block_size * self.block_bytes


def _as(dtype: torch.dtype, raw: torch.Tensor) -> torch.Tensor:
    return raw.view(dtype)


def _bytes_of(dtype: torch.dtype, x: torch.Tensor) -> torch.Tensor:
    return x.to(dtype).view(torch.uint8)


def _plain(name: str, id: int, dtype: torch.dtype) -> GgufType:
    return GgufType(name, id, 1, dtype.itemsize, partial(_as, dtype), partial(_bytes_of, dtype))


F32 = _plain("f32", 0, torch.float32)
F16 = _plain("f16", 1, torch.float16)
BF16 = _plain("bf16", 30, torch.bfloat16)
Q4_0 = GgufType("q4_0", 2, 32, 18, q.dequantize_q4_0, q.quantize_q4_0)
Q4_1 = GgufType("q4_1", 3, 32, 20, q.dequantize_q4_1, q.quantize_q4_1)
Q5_0 = GgufType("q5_0", 6, 32, 22, q.dequantize_q5_0, q.quantize_q5_0)
Q5_1 = GgufType("q5_1", 7, 32, 24, q.dequantize_q5_1, q.quantize_q5_1)
Q8_0 = GgufType("q8_0", 8, 32, 34, q.dequantize_q8_0, q.quantize_q8_0)
Q4_K = GgufType("q4_k", 12, 256, 144, k.dequantize_q4_k, k.quantize_q4_k)
Q5_K = GgufType("q5_k", 13, 256, 176, k.dequantize_q5_k)
Q6_K = GgufType("q6_k", 14, 256, 210, k.dequantize_q6_k, k.quantize_q6_k)

TYPES = {type.name: type for type in (F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K)}
_BY_ID = {type.id: type for type in TYPES.values()}


def type_of_id(id: int) -> GgufType | None:
    """The type with this number in a file, or None if nobody here knows it."""
    return _BY_ID.get(id) or _type_of_gguf_package(id)


def _type_of_gguf_package(id: int) -> GgufType | None:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

    try:
        type = GGMLQuantizationType(id)
        block_size, block_bytes = GGML_QUANT_SIZES[type]
    except (ValueError, KeyError):
        return None

    def read(raw: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(dequantize(raw.cpu().numpy(), type)).to(raw.device)

    return GgufType(type.name.lower(), id, block_size, block_bytes, read)


def dequantize_into(raw: torch.Tensor, type: GgufType, out: torch.Tensor) -> None:
    """Fills `out` (any float dtype and device; contiguous) from a tensor's bytes, a chunk at a time."""
    out_NB, raw_N = out.view(-1, type.block_size), raw.view(-1, type.block_bytes)
    step = CHUNK // type.block_size
    for start in range(0, len(raw_N), step):
        out_NB[start : start + step] = type.dequantize(raw_N[start : start + step].to(out.device))


def quantize_chunks(values: torch.Tensor, type: GgufType) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yields `values` in chunks, first to last: (float32 [N, B], their bytes uint8 [N, block_bytes])."""
    assert type.quantize is not None, f"{type.name} is only read"
    values_NB = values.reshape(-1, type.block_size)
    step = CHUNK // type.block_size
    for start in range(0, len(values_NB), step):
        x = values_NB[start : start + step].float()
        yield x, type.quantize(x)
