"""The GGUF file itself, both directions: typed metadata, a table of tensors, aligned data. No models here.

Layout (github.com/ggml-org/ggml, docs/gguf.md), all little-endian:
    "GGUF", version u32, number of tensors u64, number of metadata pairs u64,
    pairs: key string, type u32, value (string: length u64, UTF-8; array: type u32, count u64, values),
    tensors: name string, number of dimensions u32, dimensions u64 (fastest first), type u32, offset u64,
    padding to the alignment, then the data; offsets count from there.

The `gguf` package's GGUFReader wraps every string of the vocabulary in numpy views: 3.4 s for SmolLM2's
49,152 tokens on one core, where this reader takes a twentieth of a second.
"""

from __future__ import annotations

import mmap
import os
import re
import shutil
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from lathe.errors import CheckpointError
from lathe.model.gguf_types import GgufType, type_of_id
from lathe.model.mapped import give_back, map_file

MAGIC = b"GGUF"
VERSION = 3
ALIGNMENT = 32
MAX_DIMENSIONS = 4

# value type -> struct format; 7 is a bool of one byte, 8 a string, 9 an array
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY, _UINT64, _INT64 = 4, 5, 6, 7, 8, 9, 10, 11
_SPLIT_NAME = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf$")


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies. `shape` is in PyTorch's order; `offset` counts from the file's start."""

    name: str
    shape: tuple[int, ...]
    type: GgufType
    offset: int
    num_bytes: int


@dataclass(frozen=True)
class Container:
    """A GGUF file whose header is read and whose data is mapped; one per file of a split checkpoint."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]
    data: mmap.mmap

    def raw(self, name: str) -> torch.Tensor:
        """The tensor's bytes as they are on disk (uint8, flat), without a copy. Do not write to them."""
        info = self.tensors[name]
        if info.num_bytes == 0:
            return torch.empty(0, dtype=torch.uint8)
        return torch.frombuffer(self.data, dtype=torch.uint8, count=info.num_bytes, offset=info.offset)

    def release(self, name: str) -> None:
        """Gives the tensor's pages back to the system, so that loading does not hold the model twice."""
        info = self.tensors[name]
        give_back(self.data, info.offset, info.offset + info.num_bytes)


def read_container(path: Path) -> Container:
    """Reads the header and maps the data. Raises CheckpointError for what is not a whole GGUF file."""
    try:
        data = map_file(path)
    except (OSError, ValueError) as error:  # ValueError: an empty file
        raise CheckpointError(f"{path} can't be read as a GGUF file: {error}") from None
    try:
        metadata, tensors = _read_header(data)
    except _Damaged as damage:
        raise CheckpointError(
            f"{path} is not a whole GGUF file: {damage}. Its size is {len(data)} bytes; was the download cut?"
        ) from None
    return Container(path, metadata, tensors, data)


def split_paths(path: Path, count: int) -> list[Path]:
    """The files of a checkpoint that was split in `count`, first to last, found from any one's name."""
    match = _SPLIT_NAME.match(path.name)
    if not match or int(match[3]) != count:
        raise CheckpointError(
            f"{path.name} says that it is one of {count} files, "
            f"but its name does not end in -00001-of-{count:05d}.gguf"
        )
    paths = [path.with_name(f"{match[1]}-{number:05d}-of-{count:05d}.gguf") for number in range(1, count + 1)]
    missing = [other.name for other in paths if not other.is_file()]
    if missing:
        raise CheckpointError(
            f"{path.parent} lacks {', '.join(missing)} of a checkpoint that was split in {count} files"
        )
    return paths


class _Damaged(Exception):
    """What is wrong with the bytes; the caller adds the path."""


class _Cursor:
    """Reads typed values one after the other, and never past the end."""

    def __init__(self, data: mmap.mmap):
        self.data, self.position, self.size = data, 0, len(data)

    def unpack(self, format: str) -> Any:
        start, end = self.position, self.position + struct.calcsize(format)
        self.need(end - start)
        self.position = end
        return struct.unpack_from("<" + format, self.data, start)[0]

    def need(self, num_bytes: int) -> None:
        if num_bytes > self.size - self.position:
            raise _Damaged(f"byte {self.position} announces {num_bytes} more bytes than the file holds")

    def strings(self, count: int) -> list[str]:
        """`count` strings; a plain loop with everything local, because vocabularies hold 300,000 of them."""
        self.need(8 * count)
        data, end, size, unpack = self.data, self.position, self.size, struct.Struct("<Q").unpack_from
        strings = []
        try:
            for _ in range(count):
                start = end + 8
                end = start + unpack(data, end)[0]
                if end > size:
                    raise _Damaged(f"the string at byte {start} is longer than the file")
                strings.append(data[start:end].decode())
        except UnicodeDecodeError:
            raise _Damaged(f"the string at byte {start} is not UTF-8") from None
        except struct.error:
            raise _Damaged(f"the file ends inside the strings at byte {end}") from None
        self.position = end
        return strings

    def value(self, type_id: int) -> Any:
        if type_id == _STRING:
            return self.strings(1)[0]
        if type_id == _ARRAY:
            return self.array(self.unpack("I"), self.unpack("Q"))
        if type_id not in _SCALARS:
            raise _Damaged(f"unknown value type {type_id} before byte {self.position}")
        value = self.unpack(_SCALARS[type_id])
        # 1e-6 is stored as 9.999999974752427e-07; the shortest decimal that names the same float32 is meant
        return float(str(np.float32(value))) if type_id == _FLOAT32 else value

    def array(self, type_id: int, count: int) -> list[Any]:
        if type_id == _STRING:
            return self.strings(count)
        if type_id not in _SCALARS:  # arrays of arrays: llama.cpp refuses them too
            raise _Damaged(f"array of unknown type {type_id} before byte {self.position}")
        dtype = np.dtype(_SCALARS[type_id]).newbyteorder("<")
        self.need(count * dtype.itemsize)
        values = np.frombuffer(self.data, dtype, count, self.position)
        self.position += count * dtype.itemsize
        return values.tolist()


def _read_header(data: mmap.mmap) -> tuple[dict[str, Any], dict[str, TensorInfo]]:
    if data[:4] != MAGIC:
        raise _Damaged(f"it begins with {data[:4]!r}, not {MAGIC!r}")
    cursor = _Cursor(data)
    cursor.position = 4
    version = cursor.unpack("I")
    if version not in (2, 3):
        big_endian = "; it was written for a big-endian machine" if version in (2 << 24, 3 << 24) else ""
        raise _Damaged(f"version {version} is none of 2 and 3{big_endian}")
    num_tensors, num_pairs = cursor.unpack("Q"), cursor.unpack("Q")
    if num_tensors * 24 + num_pairs * 13 > cursor.size:  # the least that a table row and a pair can take
        raise _Damaged(f"{num_tensors} tensors and {num_pairs} metadata pairs can't fit in it")
    metadata: dict[str, Any] = {}
    for _ in range(num_pairs):
        key = cursor.strings(1)[0]
        metadata[key] = cursor.value(cursor.unpack("I"))
    alignment = metadata.get("general.alignment", ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 8 or alignment & (alignment - 1):
        raise _Damaged(f"general.alignment {alignment!r} is no power of two from 8 on")
    table = [_read_table_row(cursor) for _ in range(num_tensors)]
    data_start = -(-cursor.position // alignment) * alignment
    tensors: dict[str, TensorInfo] = {}
    for name, shape, type, offset in table:
        num_bytes = type.num_bytes(shape)
        if name in tensors:
            raise _Damaged(f"tensor {name} is listed twice")
        if offset % alignment or data_start + offset + num_bytes > cursor.size:
            raise _Damaged(
                f"tensor {name}, {num_bytes} bytes at {data_start + offset}, is not inside the file"
            )
        tensors[name] = TensorInfo(name, shape, type, data_start + offset, num_bytes)
    return metadata, tensors


def _read_table_row(cursor: _Cursor) -> tuple[str, tuple[int, ...], GgufType, int]:
    name = cursor.strings(1)[0]
    num_dimensions = cursor.unpack("I")
    if not 1 <= num_dimensions <= MAX_DIMENSIONS:
        raise _Damaged(f"tensor {name!r} has {num_dimensions} dimensions")
    shape = tuple(cursor.unpack("Q") for _ in range(num_dimensions))[::-1]
    type_id = cursor.unpack("I")
    type = type_of_id(type_id)
    if type is None:
        raise _Damaged(f"tensor {name} has the unknown type {type_id}")
    if shape[-1] % type.block_size:
        raise _Damaged(
            f"tensor {name} has rows of {shape[-1]}, no multiple of {type.name}'s block of {type.block_size}"
        )
    return name, shape, type, cursor.unpack("Q")


@dataclass(frozen=True)
class OutgoingTensor:
    """A tensor to be written: what the header must know, and later its bytes (uint8, on the CPU)."""

    name: str
    shape: tuple[int, ...]
    type: GgufType
    chunks: Callable[[], Iterable[torch.Tensor]]

    @property
    def num_bytes(self) -> int:
        return self.type.num_bytes(self.shape)


def write_container(
    path: Path,
    metadata: Mapping[str, Any],
    tensors: Sequence[OutgoingTensor],
    on_written: Callable[[int], None] = lambda num_bytes: None,
) -> int:
    """Writes a file, one chunk of one tensor in memory at a time; returns its size in bytes.

    Metadata values are bool, int (u32, i32, u64 or i64, whichever fits first), float (f32), str, or lists of
    one of these (ints as i32, which is what llama.cpp expects of token types). `on_written` gets each chunk's
    bytes. The file appears under its name when it is complete, and an old one stays until then.
    """
    header = bytearray(MAGIC + struct.pack("<IQQ", VERSION, len(tensors), len(metadata)))
    for key, value in metadata.items():
        header += _pack_string(key) + _pack_value(key, value)
    end = 0
    for tensor in tensors:
        dimensions = tensor.shape[::-1]
        header += _pack_string(tensor.name)
        header += struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions)
        header += struct.pack("<IQ", tensor.type.id, end)
        end += tensor.num_bytes + -tensor.num_bytes % ALIGNMENT
    header += bytes(-len(header) % ALIGNMENT)
    with _atomic_file(path, len(header) + end) as file:
        file.write(header)
        for tensor in tensors:
            written = 0
            for chunk in tensor.chunks():
                written += file.write(chunk.contiguous().numpy().data)
                on_written(chunk.numel())
            if written != tensor.num_bytes:
                raise AssertionError(f"{tensor.name} has {written} bytes, not {tensor.num_bytes}")
            file.write(bytes(-written % ALIGNMENT))
    return len(header) + end


@contextmanager
def _atomic_file(path: Path, num_bytes: int) -> Iterator[IO[bytes]]:
    """A file under another name beside `path`, renamed to it if all went well and removed if not."""
    free = shutil.disk_usage(path.parent).free
    if free < num_bytes:
        raise CheckpointError(f"{path} will take {num_bytes} bytes, and its disk has {free} free")
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            yield file
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _pack_string(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _value_type(value: Any) -> int | None:
    if isinstance(value, bool):
        return _BOOL
    if isinstance(value, str):
        return _STRING
    if isinstance(value, float):
        return _FLOAT32
    if isinstance(value, int):
        ranges = {_UINT32: (0, 2**32), _INT32: (-(2**31), 0), _UINT64: (0, 2**64), _INT64: (-(2**63), 0)}
        return next((type_id for type_id, (low, high) in ranges.items() if low <= value < high), None)
    return None


def _pack_value(key: str, value: Any) -> bytes:
    if isinstance(value, (list, tuple)):
        return _pack_array(key, value)
    type_id = _value_type(value)
    if type_id is None:
        raise ValueError(f"{key} is {value!r}, which GGUF metadata can't hold")
    packed = _pack_string(value) if type_id == _STRING else struct.pack("<" + _SCALARS[type_id], value)
    return struct.pack("<I", type_id) + packed


def _pack_array(key: str, values: Sequence[Any]) -> bytes:
    kinds = {_value_type(value) for value in values}
    if kinds <= {_STRING}:
        type_id, packed = _STRING, b"".join(map(_pack_string, values))
    elif kinds <= {_BOOL}:
        type_id, packed = _BOOL, bytes(values)
    elif kinds <= {_UINT32, _INT32} and max(values) < 2**31:
        type_id, packed = _INT32, np.asarray(values, "<i4").tobytes()
    elif kinds <= {_FLOAT32}:
        type_id, packed = _FLOAT32, np.asarray(values, "<f4").tobytes()
    else:
        raise ValueError(
            f"{key} is a list that GGUF metadata can't hold: one type throughout, integers of 32 bits"
        )
    return struct.pack("<IIQ", _ARRAY, type_id, len(values)) + packed
