"""Which of a model's weights are packed, and as what; packing them from the rows that a file has.

"keep": as the file has them. GGUF's q4_0, q4_1 and q8_0 go into tiles as they are; bf16, f32 and block FP8
stay; f16 becomes f32 (bf16 would cost three of its bits). Every other type becomes the narrowest packed kind
that holds what it says: q4_k is q4_1 with its scales rounded to float16 (a relative error of 7e-4), q5_0 is
q8_0 exactly, and the rest (q5_1, q5_k, q6_k and the rare ones) are rounded to q8_0, some 6e-3.
"q4", "q8": matrices of wider types are rounded to q4_0 or q8_0; with q4 the embedding and the head to q8_0,
whose errors go straight into the logits. What the file has in four bits already is packed as "keep" does.

Norms, biases and routers are always f32, as are matrices whose columns are no whole groups of 32.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from lathe.errors import CheckpointError
from lathe.kernels.cpu.memory import Arena
from lathe.kernels.cpu.packed import (
    GROUP,
    KINDS,
    PackedMatrix,
    empty_packed,
    pack_blocks,
    packed_bytes,
    quantize,
)
from lathe.model.packed import pack_layers
from lathe.model.quantization import keep_fp8_weights
from lathe.model.transformer import Transformer

Quantize: TypeAlias = Literal["keep", "q4", "q8"]
MODES: tuple[Quantize, ...] = ("keep", "q4", "q8")

# A type in a file -> how it is stored in memory, where nothing narrower is asked for. Others: q8_0.
KEPT = {
    "q4_0": "q4_0",
    "q4_1": "q4_1",
    "q4_k": "q4_1",
    "q8_0": "q8_0",
    "fp8": "fp8",
    "bf16": "bf16",
    "f16": "f32",
    "f32": "f32",
    "f64": "f32",
}
NARROW_TO_WIDE = ("q4_0", "q4_1", "q8_0", "fp8", "bf16", "f32")
HEADS = ("embed_tokens.weight", "lm_head.weight")
ROWS_AT_A_TIME = 128  # a multiple of this: tiles have 16 rows, blocks of FP8 128
NUMBERS_AT_A_TIME = 1 << 20


def choose_storage(
    mode: Quantize, shapes: Mapping[str, Sequence[int]], types: Mapping[str, Collection[str]]
) -> dict[str, str]:
    """How each weight is stored: a kind of tiles, "fp8", "bf16" or "f32". `types` are those of its parts."""
    chosen = {}
    for name, shape in shapes.items():
        kept = max((KEPT.get(type, "q8_0") for type in types[name]), key=NARROW_TO_WIDE.index)
        if len(shape) < 2 or name.endswith("mlp.gate.weight"):
            chosen[name] = "f32"
        elif mode == "keep" or kept in ("q4_0", "q4_1"):
            chosen[name] = kept
        elif shape[-1] % GROUP:
            chosen[name] = "f32"
        else:
            chosen[name] = "q4_0" if mode == "q4" and name not in HEADS else "q8_0"
    return chosen


def stored_bytes(storage: str, shape: Sequence[int]) -> int:
    """What a weight takes in memory; of FP8 without the scales, which are a few thousandths."""
    if storage in KINDS:
        *stack, rows, columns = shape
        return packed_bytes(storage, rows, columns, math.prod(stack))
    return math.prod(shape) * {"fp8": 1, "bf16": 2, "f32": 4}[storage]


def make_room(model: Transformer, storage: Mapping[str, str]) -> None:
    """Changes a model on the meta device so that its weights are stored so."""
    for name, stored in storage.items():
        if stored == "bf16":
            place = model.get_parameter(name)
            place.data = torch.empty(place.shape, dtype=torch.bfloat16, device=place.device)
    keep_fp8_weights(model, {name for name, stored in storage.items() if stored == "fp8"})
    pack_layers(model, {name: stored for name, stored in storage.items() if stored in KINDS})


@dataclass(frozen=True)
class Rows:
    """Some rows of a matrix, as a file has them. Both functions are asked for rows first to last - 1.

    `blocks` gives them as GGUF's blocks of a kind, or None where they would have to be rounded anew.
    """

    type: str
    count: int
    values: Callable[[int, int], Tensor]  # float32
    blocks: Callable[[str, int, int], Tensor | None] = lambda kind, first, last: None


@dataclass
class Loss:
    """What rounding cost, by type before and after: sums of squares over the first rows of each matrix."""

    squared_error: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    squared_sum: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    def add(self, change: str, exact: Tensor, stored: Tensor) -> None:
        self.squared_error[change] += (stored - exact).square_().sum().item()
        self.squared_sum[change] += exact.square().sum().item()

    @property
    def relative_error(self) -> dict[str, float]:
        """The root of the squared error's sum over the root of the squared weights' sum."""
        return {
            change: math.sqrt(error / (self.squared_sum[change] or 1))
            for change, error in self.squared_error.items()
        }

    def __str__(self) -> str:
        errors = sorted(self.relative_error.items())
        return ", ".join(f"{change} (relative error {error:.1e})" for change, error in errors)


def pack_weight(
    name: str,
    place: PackedMatrix,
    rows_of: Callable[[int | None], Sequence[Rows]],
    loss: Loss,
    arena: Arena,
) -> PackedMatrix:
    """A weight in the kind and shape of `place`, in the arena's memory. `rows_of(expert)` gives a matrix's
    rows, in one or more parts from above to below; of a stack it is asked for one expert after the other, of
    one matrix for None.

    Raises CheckpointError when the kind can't hold a number.
    """
    *stack, rows, columns = place.shape
    packed = empty_packed(place.kind, rows, columns, stack[0] if stack else None, arena)
    if not stack:
        pack_matrix(name, packed, rows_of(None), loss)
    for expert in range(stack[0] if stack else 0):
        pack_matrix(name, packed[expert], rows_of(expert), None if expert else loss)
    return packed


def pack_matrix(name: str, out: PackedMatrix, parts: Sequence[Rows], loss: Loss | None) -> None:
    """Fills one matrix, some rows at a time, so that little of it is ever in float32."""
    step = max(1, NUMBERS_AT_A_TIME // (out.columns * ROWS_AT_A_TIME)) * ROWS_AT_A_TIME
    others = sorted({part.type for part in parts} - {out.kind})
    for first in range(0, out.rows, step):
        last = min(first + step, out.rows)
        place, cuts = out.row_range(first, last), cut(parts, first, last)
        blocks = [part.blocks(out.kind, a, b) for part, a, b in cuts]
        ready = [part for part in blocks if part is not None]
        is_measured = loss is not None and others and first == 0
        if len(ready) < len(blocks) or is_measured:
            values = joined([part.values(a, b) for part, a, b in cuts])
        if len(ready) == len(blocks):
            pack_blocks(out.kind, joined(ready), last - first, out.columns, place)
        else:
            quantize(out.kind, values, place)
        if loss is not None and is_measured:
            loss.add(f"{' and '.join(others)} as {out.kind}", values, place.dequantize())
    if others and not out.is_finite():
        raise CheckpointError(f"{name} holds a number that {out.kind} can't: huge, infinite or NaN")


def cut(parts: Sequence[Rows], first: int, last: int) -> list[tuple[Rows, int, int]]:
    """Rows first to last - 1 of the parts together, as rows of each."""
    cuts, start = [], 0
    for part in parts:
        a, b = max(first - start, 0), min(last - start, part.count)
        if a < b:
            cuts.append((part, a, b))
        start += part.count
    return cuts


def joined(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))
