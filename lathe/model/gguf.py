"""A model in a GGUF file, both directions: `open_gguf` and `load_into`, `write_gguf`.

Built on gguf_container.py (the file), gguf_types.py (how numbers are stored) and gguf_names.py (what things
are called).
"""

# E experts, R rows, C columns, d head dimension

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lathe.errors import CheckpointError
from lathe.model.config import ModelConfig
from lathe.model.gguf_container import Container, read_container, split_paths
from lathe.model.gguf_names import (
    DERIVED_TENSORS,
    Slot,
    config_from_metadata,
    generation_from_metadata,
    slots,
)
from lathe.model.gguf_types import GgufType, dequantize_into

Progress = Callable[[int, int], None]  # (bytes done, bytes in total)


@dataclass(frozen=True)
class GgufFile:
    """A model whose header was read and checked; its numbers are still on the disk.

    `metadata` holds plain Python values. A checkpoint that was split has several containers.
    """

    path: Path
    config: ModelConfig
    metadata: dict[str, Any]
    containers: dict[str, Container]  # of each tensor's name

    @property
    def generation_config(self) -> dict[str, Any]:
        """Sampling defaults under the names of generation_config.json."""
        return generation_from_metadata(self.metadata)

    @property
    def chat_template(self) -> str | None:
        return self.metadata.get("tokenizer.chat_template")

    @property
    def num_bytes(self) -> int:
        """What the tensors take on the disk."""
        return sum(container.tensors[name].num_bytes for name, container in self.containers.items())

    def type_of(self, name: str) -> GgufType:
        return self.containers[name].tensors[name].type


def open_gguf(path: Path) -> GgufFile:
    """Reads the header of a GGUF file, or of all files of a split one when given any of them.

    Raises CheckpointError when the file is damaged, when its model is none that runs here, and when tensors
    are missing, unknown or misshapen: all of them are named.
    """
    first = read_container(path)
    count = first.metadata.get("split.count", 1)
    paths = split_paths(path, count) if isinstance(count, int) and count > 1 else [path]
    files = [first if other == path else read_container(other) for other in paths]
    containers = {name: file for file in files for name in file.tensors}
    try:
        config = config_from_metadata(
            files[0].metadata, {name: _shape(file, name) for name, file in containers.items()}
        )
        _check_tensors(config, containers)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    return GgufFile(path, config, files[0].metadata, containers)


def _shape(file: Container, name: str) -> tuple[int, ...]:
    return file.tensors[name].shape


def _check_tensors(config: ModelConfig, containers: Mapping[str, Container]) -> None:
    expected = {slot.gguf: slot.shape for slot in slots(config)}
    derived = {name for name in containers if name.endswith(DERIVED_TENSORS)}
    faults = [f"{name} is missing" for name in expected if name not in containers]
    faults += [f"{name} is not known" for name in containers if name not in expected.keys() | derived]
    for name in expected.keys() & containers.keys():
        shape = _shape(containers[name], name)
        if shape != expected[name]:
            faults.append(f"{name} has the shape {list(shape)}, not {list(expected[name])}")
    if faults:
        more = f" … and {len(faults) - 10} more" if len(faults) > 10 else ""
        raise CheckpointError(
            f"its tensors don't fit a {config.architecture} model: {'; '.join(faults[:10])}{more}"
        )
    for name in derived & {"rope_freqs.weight"}:  # Llama 3.1 and later divide their frequencies by these
        factors = torch.empty(_shape(containers[name], name))
        dequantize_into(containers[name].raw(name), containers[name].tensors[name].type, factors)
        if (factors != 1).any():
            raise CheckpointError(
                f"{name} scales the rotary frequencies (Llama 3.1), which is not implemented"
            )


def load_into(weights: Mapping[str, Tensor], file: GgufFile, progress: Progress | None = None) -> None:
    """Fills a model's weights (by state-dict name; any float dtype and device), without second copies."""
    done, total = 0, file.num_bytes
    for slot in slots(file.config):
        read_slot(file, slot, slot.of(weights[slot.ours]))
        done += file.containers[slot.gguf].tensors[slot.gguf].num_bytes
        if progress:
            progress(done, total)


def read_slot(file: GgufFile, slot: Slot, out: Tensor, expert: int | None = None) -> None:
    """Dequantizes one tensor of the file, or one expert of it, into `out`, whose matrices are contiguous."""
    container = file.containers[slot.gguf]
    info, raw = container.tensors[slot.gguf], container.raw(slot.gguf)
    if expert is not None:
        raw = raw.view(slot.shape[0], -1)[expert]
    if slot.rotary_heads:
        _read_interleaved(raw, info.type, out, slot.rotary_heads)
    elif out.is_contiguous():
        dequantize_into(raw, info.type, out)
    else:  # gate or up of all experts: each is a contiguous part of the shared matrix
        for raw_RC, out_RC in zip(raw.view(len(out), -1), out, strict=True):
            dequantize_into(raw_RC, info.type, out_RC)
    container.release(slot.gguf)


def _read_interleaved(raw: Tensor, type: GgufType, out: Tensor, heads: int) -> None:
    """Puts a head's rows from the file's order 0, d/2, 1, d/2 + 1 ... in order. See gguf_names.py."""
    for raw_head, out_head in zip(raw.view(heads, -1), out.unflatten(0, (heads, -1)), strict=True):
        head = torch.empty_like(out_head)
        dequantize_into(raw_head, type, head)
        out_head.unflatten(0, (2, -1)).copy_(head.unflatten(0, (-1, 2)).transpose(0, 1))
