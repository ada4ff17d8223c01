"""A few kernel calls in a table made by hand, and how far a result may be from the exact one."""

# T tokens, R rows of which logits are wanted, K columns, N rows of a matrix, E experts

from __future__ import annotations

import ctypes
import functools
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lathe.kernels.cpu import library
from lathe.kernels.cpu.library import Library, NoLibrary, open_library
from lathe.kernels.cpu.packed import quantize
from lathe.kernels.cpu.table import Code, Op, Step
from lathe.kernels.cpu.weights import matrix
from lathe.kernels.fp8 import BLOCK, FP8, Fp8Matrix, num_blocks

UNIT = 2.0**-24  # the most that one rounding of fp32 is off, as a share of the number
PACKED, ROWWISE = ("q8_0", "q4_0", "q4_1"), ("f32", "bf16", "fp8")
STEPS = {"q4_0": 127, "q4_1": 127, "q8_0": 32767}  # to which a group's largest activation is scaled


def library_path() -> Path:
    """The library under test; skips where there is none."""
    loaded = library.load()
    if loaded is None:
        pytest.skip(str(library.why_not()))
    return loaded.path


@functools.cache
def own_copy(name: str) -> Path:
    """A copy of the library is loaded beside it, with a pool and a choice of kernels of its own: opening it
    with other threads leaves the engine's alone."""
    path = library_path()
    folder = Path(tempfile.mkdtemp(prefix="lathe-kernels-"))
    copy = shutil.copy(path, folder / f"{name}{path.suffix}")
    return Path(copy)


def kernels(isa: str | None = None) -> Library:
    """The kernels of one instruction set (None: the best), on one thread: on a busy machine, several wait for
    each other. test_cpu_determinism.py has them compute the same."""
    return open_library(own_copy(isa or "best"), isa, 1)


@functools.cache
def instruction_sets() -> tuple[str, ...]:
    """Those of which this library has kernels that this processor runs."""
    return tuple(isa for isa in ("plain", "avx2", "avx512", "neon") if _can_open(isa))


def _can_open(isa: str) -> bool:
    try:
        kernels(isa)
    except (NoLibrary, library.UserError):
        return False
    return True


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def weight_of(kind: str, *shape: int, seed: int = 0, parts: int = 1) -> tuple[Any, Tensor]:
    """A random matrix or stack as the kernels take it, and its exact numbers in float64."""
    wide = random(*shape, seed=seed)
    if kind == "f32":
        return wide, wide.double()
    if kind == "bf16":
        return wide.bfloat16(), wide.bfloat16().double()
    if kind == "fp8":
        *stack, rows, columns = shape
        generator = torch.Generator().manual_seed(seed + 1)
        blocks = parts * num_blocks(rows // parts), num_blocks(columns)
        scales = torch.rand(*stack, *blocks, generator=generator) + 0.5
        made = Fp8Matrix(wide.to(FP8), scales, parts)
        return made, _exact_fp8(made)
    packed = quantize(kind, wide)
    return packed, packed.dequantize(torch.float64)


def _exact_fp8(made: Fp8Matrix) -> Tensor:
    """Products of a value and a scale, not rounded."""
    *_, rows, columns = made.values.shape
    of_rows = torch.arange(rows)
    each = rows // made.parts
    block_rows = of_rows // each * num_blocks(each) + of_rows % each // BLOCK
    scales = made.scales.double()[..., block_rows, :][..., torch.arange(columns) // BLOCK]
    return made.values.double() * scales


@dataclass
class OneCall:
    """A table made by hand. Every call waits for the one before it."""

    num_tokens: int
    ops: list[Op] = field(default_factory=list)
    keep: list[Any] = field(default_factory=list)

    def place(self, x: Tensor | None) -> int:
        """A pointer to the tensor's memory, or 0."""
        if x is None:
            return 0
        assert x.is_contiguous()
        self.keep.append(x)
        return x.data_ptr()

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Room for results, full of NaN: what a call leaves out is seen."""
        return (
            torch.full(shape, torch.nan).to(dtype)
            if dtype.is_floating_point
            else torch.full(shape, -1, dtype=dtype)
        )

    def matrix(self, weight: Any, bias: Tensor | None = None, **parts: int) -> int:
        made, keep = matrix(weight, bias, **parts)
        self.keep += [made, *keep]
        return ctypes.addressof(made)

    def call(self, code: Code, *a: int | Tensor | None, f: tuple[float, ...] = ()) -> None:
        op = Op(code=code, waits=1)
        op.a[: len(a)] = [each if isinstance(each, int) else self.place(each) for each in a]
        op.f[: len(f)] = f
        self.ops.append(op)

    def quantized(self, x_TK: Tensor, kind: str) -> Tensor:
        """The activations in the form that this kind of weights is multiplied with, uint8."""
        num_bytes = 72 if kind == "q8_0" else 48
        room = torch.zeros(x_TK.numel() // 32 * num_bytes, dtype=torch.uint8)
        forms = (None, room) if kind == "q8_0" else (room, None)
        self.call(Code.QUANTIZE, x_TK, x_TK.shape[-1], *forms)
        return room

    def forms(self, x_TK: Tensor, kind: str) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """fp32, narrow and wide: the one that this kind needs, the others not there."""
        if kind in ROWWISE:
            return x_TK, None, None
        room = self.quantized(x_TK, kind)
        return (None, None, room) if kind == "q8_0" else (None, room, None)

    def run(self, library: Library | None = None, **step: Any) -> None:
        """`step`: token_ids, positions, slots, rows, spans [(start, queries, keys, first page)], pages."""
        made = Step(self.num_tokens, len(step.get("rows", ())), len(step.get("spans", ())), 0)
        arrays = {name: np.array(numbers, dtype=np.int32) for name, numbers in step.items()}
        for name, array in arrays.items():
            setattr(made, name, array.ctypes.data)
        table = (Op * len(self.ops))(*self.ops)
        (library or kernels()).native.lathe_run(table, len(table), ctypes.byref(made))


def sum_bound(num_terms: int, magnitude: Tensor) -> Tensor:
    """The most that a sum of products in fp32 can be off when no number goes through more than `num_terms`
    roundings; `magnitude` is the sum of the products' sizes (Higham 2002, section 3.1)."""
    share = num_terms * UNIT
    return magnitude * (share / (1 - share)) + 1e-37


def assert_within(got: Tensor, expected: Tensor, bound: Tensor) -> None:
    """Each number is within its own bound; the message says where and how far."""
    apart = (got.double() - expected).abs()
    bad = ~(apart <= bound)
    if bad.any():
        place = bad.nonzero()[0].tolist()
        at = tuple(place)
        raise AssertionError(
            f"{int(bad.sum())} of {bad.numel()} too far, first at {place}: {got[at].item()!r}, not "
            f"{expected[at].item()!r}; {apart[at].item():.3g} apart, at most {bound[at].item():.3g}"
        )
