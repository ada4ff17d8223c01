"""A GGUF file's weights in tiles: its blocks as they are, wherever a packed kind has their numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from lathe.kernels.cpu.blocks import q5_0_as_q8_0
from lathe.kernels.cpu.memory import Arena
from lathe.kernels.cpu.packed import PackedMatrix
from lathe.model.gguf import GgufFile, read_slot
from lathe.model.gguf_kquants import q4_k_as_q4_1
from lathe.model.gguf_names import Slot, slots
from lathe.model.gguf_types import GgufType, dequantize_into
from lathe.model.packed import packed_weights
from lathe.model.packing import Loss, Rows, pack_weight
from lathe.model.transformer import Transformer
from lathe.model.weights import Progress, memory_for

# (type in the file, packed kind) -> what turns the one's blocks into the other's without rounding the quants
AS_THEY_ARE: dict[tuple[str, str], Callable[[Tensor], Tensor]] = {
    ("q4_k", "q4_1"): q4_k_as_q4_1,
    ("q5_0", "q8_0"): q5_0_as_q8_0,
}


def slots_by_weight(file: GgufFile) -> dict[str, list[Slot]]:
    """Our weights' names -> the file's tensors that make them up: two for gate_up_proj, gate first."""
    grouped: dict[str, list[Slot]] = {}
    for slot in slots(file.config):
        grouped.setdefault(slot.ours, []).append(slot)
    return grouped


def types(file: GgufFile) -> dict[str, list[str]]:
    """Of each weight of the model (by its name there), its tensors' types."""
    return {
        name: [file.type_of(slot.gguf).name for slot in parts]
        for name, parts in slots_by_weight(file).items()
    }


def read_packed(
    file: GgufFile,
    model: Transformer,
    ready: Mapping[str, Tensor],
    loss: Loss,
    arena: Arena,
    progress: Progress | None,
) -> dict[str, Tensor]:
    """The weights of a model on the meta device that has room for packed ones, by their names in its state
    dict. What is `ready` is taken as it is."""
    meta, packed = model.state_dict(), packed_weights(model)
    weights: dict[str, Tensor] = {}
    done, total = 0, file.num_bytes
    for name, parts in slots_by_weight(file).items():
        infos = [file.containers[slot.gguf].tensors[slot.gguf] for slot in parts]
        if name in ready:
            weights[name] = ready[name]
        elif name in packed:
            weights[name] = _pack(file, name, parts, packed[name], loss, arena)
        elif len(parts) == 1 and not parts[0].rotary_heads and infos[0].type.name == _name(meta[name].dtype):
            raw = file.containers[parts[0].gguf].raw(parts[0].gguf)
            weights[name] = raw.view(meta[name].dtype).view(meta[name].shape)  # stays mapped from the file
        else:
            weights[name] = memory_for(meta[name], "cpu")
            for slot in parts:
                read_slot(file, slot, slot.of(weights[name]))
        done += sum(info.num_bytes for info in infos)
        if progress:
            progress(done, total)
    return weights


def _name(dtype: torch.dtype) -> str:
    return {torch.float32: "f32", torch.bfloat16: "bf16"}.get(dtype, "")


def _pack(
    file: GgufFile, name: str, parts: list[Slot], place: PackedMatrix, loss: Loss, arena: Arena
) -> Tensor:
    def rows_of(expert: int | None) -> list[Rows]:
        return [_rows(file, slot, expert) for slot in parts]

    packed = pack_weight(name, place, rows_of, loss, arena)
    for slot in parts:
        file.containers[slot.gguf].release(slot.gguf)
    return packed.data


def _rows(file: GgufFile, slot: Slot, expert: int | None) -> Rows:
    type, count = file.type_of(slot.gguf), slot.shape[-2]
    raw_RB = file.containers[slot.gguf].raw(slot.gguf).view(-1, type.num_bytes(slot.shape[-1:]))
    if expert is not None:
        raw_RB = raw_RB[expert * count : (expert + 1) * count]
    if slot.rotary_heads:  # as gguf.py's _read_interleaved
        raw_RB = raw_RB.unflatten(0, (slot.rotary_heads, -1, 2)).transpose(1, 2).flatten(0, 2)
    return Rows(type.name, count, partial(_values, raw_RB, type), partial(_blocks, raw_RB, type))


def _values(raw_RB: Tensor, type: GgufType, first: int, last: int) -> Tensor:
    raw = raw_RB[first:last]
    out = torch.empty(last - first, raw.shape[1] // type.block_bytes * type.block_size)
    dequantize_into(raw, type, out)
    return out


def _blocks(raw_RB: Tensor, type: GgufType, kind: str, first: int, last: int) -> Tensor | None:
    if type.name == kind:
        return raw_RB[first:last]
    convert = AS_THEY_ARE.get((type.name, kind))
    if convert is None:
        return None
    return convert(raw_RB[first:last].reshape(-1, type.block_bytes)).view(last - first, -1)
