"""Loading a checkpoint into packed layers, one matrix at a time, and what that takes in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from lathe.kernels.cpu.memory import Arena
from lathe.kernels.cpu.packed import KINDS, PackedMatrix
from lathe.kernels.fp8 import BLOCK, dequantize_blocks, num_blocks
from lathe.model import gguf_packing
from lathe.model.config import ModelConfig
from lathe.model.gguf import GgufFile, open_gguf
from lathe.model.packed import packed_weights, weight_shapes
from lathe.model.packed_cache import cache_file, cached, keep
from lathe.model.packing import (
    Loss,
    Quantize,
    Rows,
    choose_storage,
    make_room,
    pack_weight,
    stored_bytes,
)
from lathe.model.safetensors import StoredTensor
from lathe.model.transformer import Transformer
from lathe.model.weights import Progress, StoredWeights, open_weights, read_weights


@dataclass(frozen=True)
class Opened:
    """A checkpoint's weights whose headers were read, and the model without weights that they belong to."""

    source: GgufFile | StoredWeights
    model: Transformer
    types: Mapping[str, list[str]]  # in the files, of each weight's tensors

    @property
    def paths(self) -> list[Path]:
        if isinstance(self.source, GgufFile):
            return sorted({container.path for container in self.source.containers.values()})
        return sorted({tensor.path for tensor in self.source.tensors.values()})

    def storage(self, mode: Quantize) -> dict[str, str]:
        return choose_storage(mode, weight_shapes(self.model), self.types)


def open_for_packing(path: Path, config: ModelConfig) -> Opened:
    """Reads the headers of a folder or a .gguf file. Raises CheckpointError as loading does."""
    model = Transformer(config, device="meta", dtype=torch.float32)
    if path.suffix == ".gguf":
        file = open_gguf(path)
        return Opened(file, model, gguf_packing.types(file))
    opened = open_weights(path, model)
    return Opened(opened, model, opened.types())


def load_packed(
    path: Path,
    config: ModelConfig,
    mode: Quantize,
    *,
    loss: Loss | None = None,
    progress: Progress | None = None,
    cache: Path | None = None,
) -> Transformer:
    """The model on the CPU, computing in float32, with its weights stored as `packing.py` says for this mode.

    `loss` gets what rounding cost. With `cache`, a folder, tiles are kept there and mapped the next time,
    when nothing is packed nor measured.
    """
    opened, loss = open_for_packing(path, config), loss or Loss()
    source, model = opened.source, opened.model
    make_room(model, opened.storage(mode))
    places = packed_weights(model)
    ready = cached(cache, path, opened.paths, mode, places) if cache else {}
    arena = Arena(place.num_bytes for name, place in places.items() if name not in ready)
    if isinstance(source, GgufFile):
        weights = gguf_packing.read_packed(source, model, ready, loss, arena, progress)
    else:
        pack = partial(_pack_stored, source, ready, loss, arena)
        weights = read_weights(source, model, torch.device("cpu"), progress, pack)
    model.load_state_dict(weights, assign=True)
    if cache and not ready and places:
        keep(cache, path, opened.paths, mode, packed_weights(model))
    return model


def packed_memory(path: Path, config: ModelConfig, mode: Quantize, cache: Path | None = None) -> int:
    """Bytes that `load_packed` takes. What stays mapped from files is not counted: the system reads and drops
    it as it needs."""
    opened = open_for_packing(path, config)
    shapes, total = weight_shapes(opened.model), 0
    is_kept = cache is not None and cache_file(cache, path, opened.paths, mode).exists()
    for name, storage in opened.storage(mode).items():
        is_as_stored = opened.types[name] == [storage] and storage in ("bf16", "f32")
        if not is_as_stored and not (is_kept and storage in KINDS):
            total += stored_bytes(storage, shapes[name])
    return total


def packed_sizes(path: Path | None, config: ModelConfig, mode: Quantize) -> Counter[str]:
    """Bytes of a model's weights by how they would be stored: "q4_0", "bf16" …; None: from bf16."""
    if path is None:
        shapes = weight_shapes(Transformer(config, device="meta"))
        chosen = choose_storage(mode, shapes, {name: ["bf16"] for name in shapes})
    else:
        opened = open_for_packing(path, config)
        shapes, chosen = weight_shapes(opened.model), opened.storage(mode)
    sizes = Counter[str]()
    for name, storage in chosen.items():
        sizes[storage] += stored_bytes(storage, shapes[name])
    return sizes


def _pack_stored(
    opened: StoredWeights,
    ready: Mapping[str, Tensor],
    loss: Loss,
    arena: Arena,
    name: str,
    place: PackedMatrix,
    parts: list[str],
) -> Tensor:
    """A packed weight of the tensors with these names; see `read_weights`."""
    if name in ready:
        return ready[name]
    held: list[StoredTensor] = []

    def rows_of(expert: int | None) -> list[Rows]:
        mine = [part for part in parts if opened.slots[part].expert in (None, expert)]
        sources = [opened.tensors[part] for part in mine]
        for source in held:
            if source not in sources:
                source.release()
        held[:] = sources
        return [_rows(opened, part, expert) for part in mine]

    packed = pack_weight(name, place, rows_of, loss, arena)
    for source in held:
        source.release()
    return packed.data


def _rows(opened: StoredWeights, name: str, expert: int | None) -> Rows:
    scale = opened.scale(name)
    values, scales = opened.tensors[name].read(), None if scale is None else scale.read()
    if values.dim() == 3:  # the file has the experts stacked
        values, scales = values[expert], None if scales is None else scales[expert]
    return Rows(opened.type(name), len(values), partial(_float_rows, values, scales))


def _float_rows(values: Tensor, scales: Tensor | None, first: int, last: int) -> Tensor:
    if scales is None:
        return values[first:last].float()
    block = first // BLOCK
    rows = dequantize_blocks(values[block * BLOCK : last], scales[block : num_blocks(last)])
    return rows[first - block * BLOCK :]
