"""The safetensors file, both directions, one tensor at a time.

Layout (github.com/huggingface/safetensors): the header's length u64, the header as JSON
{name: {dtype, shape, data_offsets: [first, last + 1]}}, then the data without gaps.

The `safetensors` library maps the file as well, but gives no pages back while the file is open, so a load
that converts on the way holds the model twice; its writer wants a whole shard in memory. At 480B both matter.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lathe.errors import CheckpointError
from lathe.model.mapped import give_back, map_file

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
CODES = {dtype: code for code, dtype in DTYPES.items()}
MAX_HEADER_BYTES = 100_000_000  # the format's own limit


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a mapped file. Reading it costs memory only for the pages that are touched."""

    path: Path
    data: mmap.mmap
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def num_bytes(self) -> int:
        return self.end - self.start

    def read(self) -> Tensor:
        """The tensor, without a copy. The mapping is private: writing to it does not change the file."""
        if self.num_bytes == 0:
            return torch.empty(self.shape, dtype=self.dtype)
        count = math.prod(self.shape)
        return torch.frombuffer(self.data, dtype=self.dtype, count=count, offset=self.start).view(self.shape)

    def release(self) -> None:
        """Gives its pages back to the system; they are read again from the file when touched again.

        Only for tensors that nothing wrote to.
        """
        give_back(self.data, self.start, self.end)


def read_safetensors(path: Path) -> dict[str, StoredTensor]:
    """Reads the header and maps the data. Raises CheckpointError for anything that is not a whole file."""
    try:
        data = map_file(path)
    except (OSError, ValueError) as error:  # ValueError: an empty file
        raise CheckpointError(f"{path} can't be read: {error}") from None
    if data[:8] == b"version ":
        raise CheckpointError(
            f"{path} is a git-lfs pointer, not the weights. Run `git lfs pull` in its folder."
        )
    header_bytes = int.from_bytes(data[:8], "little")
    if len(data) < 8 or header_bytes > min(len(data) - 8, MAX_HEADER_BYTES):
        raise CheckpointError(f"{path} is not a safetensors file, or was cut short ({len(data)} bytes)")
    base = 8 + header_bytes
    try:
        header = json.loads(data[8:base])
        header.pop("__metadata__", None)
        tensors = {name: _stored(path, data, base, entry) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} has a damaged header: {error}") from None
    promised = max((tensor.end for tensor in tensors.values()), default=base)
    if promised > len(data):
        raise CheckpointError(
            f"{path} is {len(data)} bytes long, but its header promises {promised}: "
            "the download was cut short. Delete the file and get it again."
        )
    return tensors


def _stored(path: Path, data: mmap.mmap, base: int, entry: Mapping[str, Any]) -> StoredTensor:
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"dtype {entry['dtype']} is not known")
    dtype, shape = DTYPES[entry["dtype"]], tuple(entry["shape"])
    start, end = entry["data_offsets"]
    if start < 0 or min(shape, default=0) < 0 or end - start != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{end - start} bytes for a tensor {list(shape)} of {entry['dtype']}")
    return StoredTensor(path, data, dtype, shape, base + start, base + end)


@dataclass(frozen=True)
class Outgoing:
    """A tensor to be written: what the header must know, and how to get its values when its turn comes."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    make: Callable[[], Tensor]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write_safetensors(
    path: Path, tensors: Sequence[Outgoing], on_written: Callable[[int], None] = lambda num_bytes: None
) -> None:
    """Writes a file; one tensor is in memory at a time. `on_written` gets each tensor's bytes."""
    # wide types first, so that every tensor is aligned to its own width; readers map them as they lie
    ordered = sorted(tensors, key=lambda tensor: (-tensor.dtype.itemsize, tensor.name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers 4 refuses files without it
    offset = 0
    for tensor in ordered:
        header[tensor.name] = {
            "dtype": CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.num_bytes],
        }
        offset += tensor.num_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)  # spaces are a part of JSON; 64 is a cache line
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in ordered:
            values = tensor.make().detach().cpu().contiguous()
            if values.dtype != tensor.dtype or values.shape != tensor.shape:
                raise AssertionError(
                    f"{tensor.name} is not what was announced: {values.dtype} {values.shape}"
                )
            if tensor.num_bytes:
                file.write(values.flatten().view(torch.uint8).numpy().data)
            on_written(tensor.num_bytes)
