"""Quantized weights in the order in which kernels read them: tiles of 16 rows and 32 columns.

A matrix [rows, columns] is tiles [ceil(rows / 16)][columns / 32], row of tiles after row of tiles; rows that
the last tiles have too many have scales of 0. A tile holds 16 of GGUF's blocks, one a row, with their bytes
in another order and their groups, scales and values as they are, so packing a file's matrix loses nothing:

    q4_0, 288 bytes: 16 float16 scales d (row 0 to 15), then eight vectors of 32 bytes, number 2s + h for s
                     from 0 to 3 and h 0 or 1. Byte 4r + b of a vector (r 0 to 7, b 0 to 3) has row 8h + r's
                     q of column 8s + b in its low half and that of column 8s + 4 + b in its high half.
                     q is 0 to 15, and the weight d (q - 8)
    q4_1, 320 bytes: 16 scales d, 16 float16 minima m, and the same vectors: d q + m
    q8_0, 544 bytes: 16 scales d, then sixteen vectors of 32 bytes, number 2s + h for s from 0 to 7. Byte
                     4r + b is row 8h + r's q of column 4s + b, an int8: d q

So a vector instruction holds eight rows' next few numbers, which it multiplies with the same activations:
eight sums go side by side, and none is ever added up across a register.

Plain PyTorch, but for packing a file's blocks: what compiled kernels are tested against, and how weights are
packed and used without them.
"""

# R rows of tiles, C columns of tiles, r the 16 rows of a tile, B its bytes, n rows, E experts

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lathe.kernels.cpu import blocks as b
from lathe.kernels.cpu import library, table
from lathe.kernels.cpu.memory import Arena, aligned_empty

TILE_ROWS = 16
GROUP = 32  # numbers that share a scale: a block of GGUF's, a row of a tile
CHUNK = (
    1 << 19
)  # numbers that are converted at a time: 2 MB of float32, so that what lies between stays cached


@dataclass(frozen=True)
class Kind:
    """One way to store numbers in groups of 32. `num_halves` float16 (scale, minimum) precede the values."""

    block_bytes: int  # GGUF's block, and a tile's sixteenth
    num_halves: int
    dequantize: Callable[[Tensor], Tensor]
    quantize: Callable[[Tensor], Tensor]

    @property
    def tile_bytes(self) -> int:
        return TILE_ROWS * self.block_bytes


KINDS = {
    "q4_0": Kind(18, 1, b.dequantize_q4_0, b.quantize_q4_0),
    "q4_1": Kind(20, 2, b.dequantize_q4_1, b.quantize_q4_1),
    "q8_0": Kind(34, 1, b.dequantize_q8_0, b.quantize_q8_0),
}


@dataclass(frozen=True, eq=False)
class PackedMatrix:
    """A matrix [rows, columns] of the kind "q4_0", "q4_1" or "q8_0", or a stack [E, rows, columns] of them.

    `data` is contiguous uint8 [tiles, bytes of a tile], or [E, tiles, bytes]; kernels need it to start at a
    multiple of 64, as everything made here does.
    """

    kind: str
    rows: int
    columns: int
    data: Tensor

    def __post_init__(self) -> None:
        tile_bytes = KINDS[self.kind].tile_bytes
        if self.data.dtype != torch.uint8 or self.data.shape[-2:] != (self.num_tiles, tile_bytes):
            raise ValueError(
                f"{self.kind} [{self.rows}, {self.columns}] is uint8 [{self.num_tiles}, {tile_bytes}], "
                f"not {self.data.dtype} {list(self.data.shape)}"
            )

    @property
    def num_tiles(self) -> int:
        """Of one matrix."""
        return num_tiles(self.rows, self.columns)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the numbers: [rows, columns] or [E, rows, columns]."""
        return (*self.data.shape[:-2], self.rows, self.columns)

    @property
    def num_bytes(self) -> int:
        return self.data.numel()

    def __getitem__(self, expert: int) -> PackedMatrix:
        """One matrix of a stack, without a copy."""
        return PackedMatrix(self.kind, self.rows, self.columns, self.data[expert])

    def row_range(self, first: int, last: int) -> PackedMatrix:
        """Rows first to last - 1 of one matrix, without a copy; `first` begins a row of tiles."""
        if first % TILE_ROWS:
            raise ValueError(f"row {first} begins no row of tiles")
        tiles = self.data[num_tiles(first, self.columns) : num_tiles(last, self.columns)]
        return PackedMatrix(self.kind, last - first, self.columns, tiles)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The numbers, of this shape. Computed in float32, and as GGUF means them: bit for bit those of the
        blocks that were packed. In float64 they are exact."""
        if self.data.device.type == "cpu":  # in huge pages: first touches took two thirds of the time
            out = aligned_empty(math.prod(self.shape) * dtype.itemsize).view(dtype).view(self.shape)
        else:
            out = torch.empty(self.shape, dtype=dtype, device=self.data.device)
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        for data, rows in self._parts(out):
            rows.copy_(_values(self.kind, data, exact).flatten(0, 1)[: len(rows)].flatten(1))
        return out

    def take_rows(self, ids: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """The numbers of these rows alone, [*ids.shape, columns]: what an embedding looks up."""
        flat = ids.flatten()
        tile, row = flat // TILE_ROWS, flat % TILE_ROWS
        halves_RCkr, words_RCsr = _places(self.kind, self.data.unflatten(0, (-1, self.columns // GROUP)))
        values = _numbers(self.kind, words_RCsr[tile, :, :, row], halves_RCkr[tile, :, :, row], torch.float32)
        return values.to(dtype).view(*ids.shape, self.columns)

    def is_finite(self) -> bool:
        """Whether every scale and minimum is a number: float16 ends at 65,504."""
        return bool(self.data.view(torch.float16)[..., : 16 * KINDS[self.kind].num_halves].isfinite().all())

    def _parts(self, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows of tiles [R, C, bytes] and the rows [16 R or fewer, …] of `rows` that belong to them, a chunk
        at a time."""
        data = self.data.view(-1, *self.data.shape[-2:]).unflatten(1, (-1, self.columns // GROUP))
        step = max(1, CHUNK // (TILE_ROWS * self.columns))
        for matrix, numbers in zip(data, rows.view(len(data), self.rows, -1), strict=True):
            yield from zip(matrix.split(step), numbers.split(step * TILE_ROWS), strict=True)


def num_tiles(rows: int, columns: int) -> int:
    return -(-rows // TILE_ROWS) * (columns // GROUP)


def packed_bytes(kind: str, rows: int, columns: int, experts: int = 1) -> int:
    """What a packed matrix, or a stack of them, takes in memory."""
    return experts * num_tiles(rows, columns) * KINDS[kind].tile_bytes


def empty_packed(
    kind: str, rows: int, columns: int, experts: int | None = None, arena: Arena | None = None
) -> PackedMatrix:
    """Room for a matrix or a stack, with arbitrary content: of the arena, or its own."""
    if columns % GROUP or not columns:
        raise ValueError(f"{columns} columns are no whole groups of {GROUP}")
    stack = () if experts is None else (experts,)
    num_bytes = packed_bytes(kind, rows, columns, experts if experts is not None else 1)
    data = aligned_empty(num_bytes) if arena is None else arena.take(num_bytes)
    shape = (*stack, num_tiles(rows, columns), KINDS[kind].tile_bytes)
    return PackedMatrix(kind, rows, columns, data.view(shape))


def pack_blocks(
    kind: str, blocks: Tensor, rows: int, columns: int, out: PackedMatrix | None = None
) -> PackedMatrix:
    """GGUF's blocks of a matrix (uint8 of any shape, row after row) in tiles; of a stack, if there are
    several matrices' blocks. Nothing is rounded. `out` is filled, where it is given.

    The compiled kernels do it, where they are: as fast as memory is."""
    matrices, rest = divmod(blocks.numel(), rows * columns // GROUP * KINDS[kind].block_bytes)
    if rest or not matrices:
        raise ValueError(f"{blocks.numel()} bytes are no blocks of {kind} [{rows}, {columns}]")
    if out is None:
        out = empty_packed(kind, rows, columns, None if matrices == 1 and blocks.dim() < 3 else matrices)
    kernels = library.load() if blocks.device.type == out.data.device.type == "cpu" else None
    if kernels is not None:
        code = table.Kind[kind.upper()]
        for matrix, data in zip(blocks.reshape(matrices, -1), out.data.view(matrices, -1), strict=True):
            kernels.native.lathe_pack(code, matrix.data_ptr(), rows, columns, data.data_ptr())
        return out
    for data, part in out._parts(blocks.reshape(matrices * rows, -1)):
        _write_tiles(kind, part.unflatten(-1, (columns // GROUP, -1)), data)
    return out


def unpack_blocks(packed: PackedMatrix) -> Tensor:
    """The way back of `pack_blocks`: uint8 [rows, bytes of a row's blocks], or [E, rows, bytes]."""
    row_bytes = packed.columns // GROUP * KINDS[packed.kind].block_bytes
    out = torch.empty((*packed.shape[:-1], row_bytes), dtype=torch.uint8, device=packed.data.device)
    for data, rows in packed._parts(out):
        rows.copy_(_blocks(packed.kind, data).flatten(0, 1)[: len(rows)].flatten(1))
    return out


def quantize(kind: str, weight: Tensor, out: PackedMatrix | None = None) -> PackedMatrix:
    """A matrix, or a stack of them, of any float type, rounded as llama.cpp would, in tiles."""
    rows, columns = weight.shape[-2:]
    if out is None:
        out = empty_packed(kind, rows, columns, len(weight) if weight.dim() == 3 else None)
    for data, part in out._parts(weight.reshape(-1, columns)):
        blocks = KINDS[kind].quantize(part.reshape(-1, GROUP).float())
        _write_tiles(kind, blocks.view(len(part), columns // GROUP, -1), data)
    return out


def linear_reference(x_TK: Tensor, packed: PackedMatrix) -> Tensor:
    """x W^T in float64, [T, rows]: how far a kernel may be from this is for its own tests to say."""
    return x_TK.double() @ packed.dequantize(torch.float64).T


# One chunk's order of bytes, both directions. Four bytes of a row stay together: they are moved about as one
# int32, which PyTorch does several times as fast as bytes.

LOW = 0x0F0F0F0F  # the low halves of four bytes; ~LOW the high ones


def _write_tiles(kind: str, blocks_nCb: Tensor, data_RCB: Tensor) -> None:
    """Blocks of rows -> tiles; n may be short of the 16 rows of the last tiles."""
    head = 2 * KINDS[kind].num_halves
    if short := TILE_ROWS * len(data_RCB) - len(blocks_nCb):
        blocks_nCb = F.pad(blocks_nCb, (0, 0, 0, 0, 0, short))
    blocks_RrCb = blocks_nCb.unflatten(0, (-1, TILE_ROWS))
    halves_RCkr = blocks_RrCb[..., :head].contiguous().view(torch.float16).movedim(1, -1)
    words_RCsr = blocks_RrCb[..., head:].contiguous().view(torch.int32).movedim(1, -1)
    into_RCkr, into_RCsr = _places(kind, data_RCB)
    into_RCkr.copy_(halves_RCkr)
    if kind == "q8_0":
        into_RCsr.copy_(words_RCsr)
        return
    # the file's word i has columns 4i to 4i + 3 in low halves and 16 more in high ones; a tile's word s has
    # 8s to 8s + 3 in low halves and 4 more in high ones
    even, odd = words_RCsr[:, :, 0::2], words_RCsr[:, :, 1::2]
    into_RCsr[:, :, :2] = (even & LOW) | ((odd & LOW) << 4)
    into_RCsr[:, :, 2:] = ((even >> 4) & LOW) | (odd & ~LOW)


def _blocks(kind: str, data_RCB: Tensor) -> Tensor:
    """Tiles -> GGUF's blocks [R, 16, C, bytes]."""
    halves_RCkr, words_RCsr = _places(kind, data_RCB)
    if kind != "q8_0":
        first, last = words_RCsr[:, :, :2], words_RCsr[:, :, 2:]
        even, odd = (first & LOW) | ((last & LOW) << 4), ((first >> 4) & LOW) | (last & ~LOW)
        words_RCsr = torch.stack([even, odd], 3).flatten(2, 3)
    return torch.cat([_as_bytes(halves_RCkr.movedim(-1, 1)), _as_bytes(words_RCsr.movedim(-1, 1))], -1)


def _values(kind: str, data_RCB: Tensor, dtype: torch.dtype) -> Tensor:
    """Tiles -> their numbers [R, 16, C, 32]."""
    halves_RCkr, words_RCsr = _places(kind, data_RCB)
    return _numbers(kind, words_RCsr.movedim(-1, 1), halves_RCkr.movedim(-1, 1), dtype)


def _places(kind: str, data_RCB: Tensor) -> tuple[Tensor, Tensor]:
    """Views of tiles: float16 [R, C, 1 or 2, 16] and the vectors' words, int32 [R, C, 4 or 8, 16]."""
    head = 16 * KINDS[kind].num_halves
    halves_RCkr = data_RCB.view(torch.float16)[..., :head].unflatten(-1, (-1, TILE_ROWS))
    words_RCsr = data_RCB.view(torch.int32)[..., head // 2 :].unflatten(-1, (-1, TILE_ROWS))
    return halves_RCkr, words_RCsr


def _numbers(kind: str, words: Tensor, halves: Tensor, dtype: torch.dtype) -> Tensor:
    """A row's words [..., 4 or 8] and halves [..., 1 or 2] -> its 32 numbers."""
    scale = halves[..., :1].to(dtype)
    # converted first: a product of two types takes twenty times as long
    if kind == "q8_0":
        return _as_bytes(words).view(torch.int8).to(dtype).mul_(scale)
    # all four columns' low halves, then the next four's: words of one byte a number
    quants = _as_bytes(torch.stack([words & LOW, (words >> 4) & LOW], -1).flatten(-2)).view(torch.int8)
    if kind == "q4_0":
        return (quants - 8).to(dtype).mul_(scale)
    return quants.to(dtype).mul_(scale).add_(halves[..., 1:].to(dtype))


def _as_bytes(x: Tensor) -> Tensor:
    # not .contiguous(): an axis of length 1 keeps the stride that it had, and can't be viewed as bytes
    return x.clone(memory_format=torch.contiguous_format).view(torch.uint8)
