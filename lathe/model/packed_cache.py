"""Packed weights kept on the disk, so that they are packed once: a safetensors file for a source and a mode.

Its name carries the layout's version and the source's size and time, so a file that no longer fits is never
found. Each weight's tiles are one flat uint8 tensor, filled up to a multiple of 64 bytes: mapped again, every
one of them starts where kernels want it to.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from lathe.errors import CheckpointError
from lathe.kernels.cpu.memory import ALIGNMENT
from lathe.kernels.cpu.packed import PackedMatrix
from lathe.model.safetensors import Outgoing, read_safetensors, write_safetensors

LAYOUT = 1  # of the tiles; a new one is a new file


def cache_file(folder: Path, source: Path, parts: list[Path], mode: str) -> Path:
    """Where the packed weights of a checkpoint, whose files are `parts`, are kept."""
    stats = [part.stat() for part in parts]
    size, modified = sum(stat.st_size for stat in stats), max(stat.st_mtime_ns for stat in stats)
    place = hashlib.sha256(str(source.resolve()).encode()).hexdigest()[:8]
    return folder / f"{source.stem}-{place}-{mode}-layout{LAYOUT}-{size}-{modified}.safetensors"


def cached(
    folder: Path, source: Path, parts: list[Path], mode: str, places: Mapping[str, PackedMatrix]
) -> dict[str, Tensor]:
    """The tiles of every weight in `places`, mapped from the disk; nothing where they are not all there."""
    path = cache_file(folder, source, parts, mode)
    if not path.exists():
        return {}
    stored = read_safetensors(path)
    if {name: tensor.num_bytes for name, tensor in stored.items()} != {
        name: padded(place.num_bytes) for name, place in places.items()
    }:
        return {}
    return {
        name: stored[name].read()[: place.num_bytes].view(place.data.shape) for name, place in places.items()
    }


def keep(
    folder: Path, source: Path, parts: list[Path], mode: str, weights: Mapping[str, PackedMatrix]
) -> None:
    """Writes them; the file has its name when it is whole. Raises CheckpointError where that fails."""
    path = cache_file(folder, source, parts, mode)
    tensors = [
        Outgoing(name, torch.uint8, (padded(packed.num_bytes),), partial(_padded, packed.data))
        for name, packed in weights.items()
    ]
    partial_path = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        needed, free = sum(tensor.num_bytes for tensor in tensors), shutil.disk_usage(folder).free
        if free < needed:
            raise CheckpointError(f"{path} will take {needed} bytes, and its disk has {free} free")
        write_safetensors(partial_path, tensors)
        partial_path.replace(path)
    except OSError as error:
        raise CheckpointError(f"{path} can't be written: {error.strerror}") from None
    finally:
        with suppress(OSError):
            partial_path.unlink()


def padded(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT


def _padded(data: Tensor) -> Tensor:
    flat = data.detach().flatten()
    return flat if flat.numel() % ALIGNMENT == 0 else F.pad(flat, (0, -flat.numel() % ALIGNMENT))
