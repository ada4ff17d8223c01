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

Plain PyTorch: what compiled kernels are tested against, and how weights are packed and used without them.
"""

# R rows of tiles, C columns of tiles, r the 16 rows of a tile, B its bytes, n rows, E experts

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lathe.kernels.cpu import blocks as b
from lathe.kernels.cpu.memory import aligned_empty

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
        out = torch.empty(self.shape, dtype=dtype, device=self.data.device)
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        for data, rows in self._parts(out):
            rows.copy_(_values(self.kind, data, exact).flatten(0, 1)[: len(rows)].flatten(1))
        return out

    def take_rows(self, ids: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """The numbers of these rows alone, [*ids.shape, columns]: what an embedding looks up."""
        kind, data = KINDS[self.kind], self.data.unflatten(0, (-1, self.columns // GROUP))
        flat = ids.flatten()
        tile, row = flat // TILE_ROWS, flat % TILE_ROWS
        halves, words = data.view(torch.float16), data.view(torch.int32)
        halves = halves[..., : 16 * kind.num_halves].unflatten(-1, (-1, 16))
        words = words[..., 8 * kind.num_halves :].unflatten(-1, (-1, 16))
        halves_nCk = halves[tile, :, :, row]
        quants_nCc = _quants(self.kind, words[tile, :, :, row].contiguous().view(torch.uint8))
        values = _scaled(self.kind, quants_nCc, halves_nCk, torch.float32)
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


def empty_packed(kind: str, rows: int, columns: int, experts: int | None = None) -> PackedMatrix:
    """Room for a matrix or a stack, with arbitrary content, in huge pages where it is large."""
    if columns % GROUP or not columns:
        raise ValueError(f"{columns} columns are no whole groups of {GROUP}")
    stack = () if experts is None else (experts,)
    data = aligned_empty(packed_bytes(kind, rows, columns, experts if experts is not None else 1))
    shape = (*stack, num_tiles(rows, columns), KINDS[kind].tile_bytes)
    return PackedMatrix(kind, rows, columns, data.view(shape))


def pack_blocks(
    kind: str, blocks: Tensor, rows: int, columns: int, out: PackedMatrix | None = None
) -> PackedMatrix:
    """GGUF's blocks of a matrix (uint8 of any shape, row after row) in tiles; of a stack, if there are
    several matrices' blocks. Nothing is rounded. `out` is filled, where it is given."""
    matrices, rest = divmod(blocks.numel(), rows * columns // GROUP * KINDS[kind].block_bytes)
    if rest or not matrices:
        raise ValueError(f"{blocks.numel()} bytes are no blocks of {kind} [{rows}, {columns}]")
    if out is None:
        out = empty_packed(kind, rows, columns, None if matrices == 1 and blocks.dim() < 3 else matrices)
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


# One chunk's order of bytes, both directions. A vector's four bytes of a row are one int32: whole words are
# moved about, which PyTorch does four times as fast as bytes.


def _write_tiles(kind: str, blocks_nCb: Tensor, data_RCB: Tensor) -> None:
    """Blocks of rows -> tiles; n may be short of the 16 rows of the last tiles."""
    head = 2 * KINDS[kind].num_halves
    short = TILE_ROWS * len(data_RCB) - len(blocks_nCb)
    blocks_RrCb = F.pad(blocks_nCb, (0, 0, 0, 0, 0, short)).unflatten(0, (-1, TILE_ROWS))
    halves_RrCk = blocks_RrCb[..., :head].contiguous().view(torch.float16)
    quants = blocks_RrCb[..., head:]
    if kind != "q8_0":
        # columns 0 to 15 in low halves and 16 to 31 in high ones -> a word is columns 8s to 8s + 3, and
        # 8s + 4 to 8s + 7 above them
        pairs = torch.stack([quants & 15, quants >> 4], -2).unflatten(-1, (2, 2, 4))
        quants = (pairs[..., 0, :] | (pairs[..., 1, :] << 4)).flatten(-3)
    words_RrCs = quants.contiguous().view(torch.int32)
    data_RCB.view(torch.float16)[..., : 8 * head].unflatten(-1, (-1, 16)).copy_(halves_RrCk.movedim(1, -1))
    data_RCB.view(torch.int32)[..., 4 * head :].unflatten(-1, (-1, 16)).copy_(words_RrCs.movedim(1, -1))


def _read_tiles(kind: str, data_RCB: Tensor) -> tuple[Tensor, Tensor]:
    """(float16 [R, 16, C, 1 or 2], bytes of the vectors [R, 16, C, 16 or 32])"""
    head = 2 * KINDS[kind].num_halves
    halves_RCkr = data_RCB.view(torch.float16)[..., : 8 * head].unflatten(-1, (-1, 16))
    words_RCsr = data_RCB.view(torch.int32)[..., 4 * head :].unflatten(-1, (-1, 16))
    # not .contiguous(): an axis of length 1 keeps the stride that it had, and can't be viewed as bytes
    halves_RrCk, words_RrCs = (
        part.movedim(-1, 1).clone(memory_format=torch.contiguous_format) for part in (halves_RCkr, words_RCsr)
    )
    return halves_RrCk, words_RrCs.view(torch.uint8)


def _blocks(kind: str, data_RCB: Tensor) -> Tensor:
    """Tiles -> GGUF's blocks [R, 16, C, bytes]."""
    halves, quants = _read_tiles(kind, data_RCB)
    if kind != "q8_0":
        columns = _quants(kind, quants)
        quants = columns[..., :16] | (columns[..., 16:] << 4)
    return torch.cat([halves.view(torch.uint8), quants], -1)


def _quants(kind: str, packed: Tensor) -> Tensor:
    """A row's bytes in the tiles' order [..., 16 or 32] -> its 32 quants: int8 of q8_0, else uint8."""
    if kind == "q8_0":
        return packed.view(torch.int8)
    packed = packed.unflatten(-1, (4, 4))
    return torch.stack([packed & 15, packed >> 4], -2).flatten(-3)


def _scaled(kind: str, quants: Tensor, halves: Tensor, dtype: torch.dtype) -> Tensor:
    numbers = quants.to(dtype)
    if kind == "q4_0":
        numbers -= 8
    numbers *= halves[..., :1].to(dtype)
    if kind == "q4_1":
        numbers += halves[..., 1:].to(dtype)
    return numbers


def _values(kind: str, data_RCB: Tensor, dtype: torch.dtype) -> Tensor:
    """Tiles -> their numbers [R, 16, C, 32]."""
    halves, packed = _read_tiles(kind, data_RCB)
    return _scaled(kind, _quants(kind, packed), halves, dtype)
