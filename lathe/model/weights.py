"""The weights in a folder of safetensors, both directions. Owns the names of Hugging Face's tensors."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lathe.errors import CheckpointError
from lathe.kernels.cpu.memory import aligned_empty
from lathe.kernels.cpu.packed import PackedMatrix
from lathe.kernels.fp8 import BLOCK, FP8, dequantize_blocks, num_blocks
from lathe.model.config import ModelConfig
from lathe.model.packed import packed_weights
from lathe.model.quantization import block_scales, keep_fp8_weights, quantize_blocks
from lathe.model.safetensors import CODES, Outgoing, StoredTensor, read_safetensors
from lathe.model.transformer import Transformer

Progress: TypeAlias = Callable[[int, int], None]  # (bytes done, bytes in total)

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SCALE = "_scale_inv"


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that make up the model. Raises CheckpointError when one is missing."""
    if (folder / SINGLE).exists():
        return [folder / SINGLE]
    if not (folder / INDEX).exists():
        if list(folder.glob("*.bin")) or list(folder.glob("*.pt")):
            raise CheckpointError(
                f"{folder} holds pickled weights, which can run code; save them as safetensors"
            )
        raise CheckpointError(f"{folder} has neither {SINGLE} nor {INDEX}")
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{folder / INDEX} names no shards; get it again from the model's repository")
    shards = sorted(set(map(str, weight_map.values())))
    missing = [shard for shard in shards if not (folder / shard).exists()]
    if missing:
        raise CheckpointError(f"{folder} lacks {len(missing)} of {len(shards)} shards: {_first_ten(missing)}")
    return [folder / shard for shard in shards]


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} can't be read: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} does not hold a JSON object")
    return content


@dataclass(frozen=True)
class Slot:
    """Where a tensor of a file lives in the model: a weight, or one expert's share of a stacked one."""

    weight: str
    expert: int | None = None
    half: int | None = None  # of gate_up_proj: 0 the rows of gate, 1 those of up

    def of(self, tensor: Tensor) -> Tensor:
        """The view of the weight (or of its scales) that belongs to the slot."""
        if self.expert is not None:
            tensor = tensor[self.expert]
        if self.half is not None:
            tensor = tensor.chunk(2)[self.half]
        return tensor


def tensor_slots(model: Transformer, *, stacked_experts: bool = False) -> dict[str, Slot]:
    """Hugging Face's name of every weight -> where it lives in the model.

    Published files hold experts one by one. A file may also hold them stacked, as transformers 5
    does in memory.
    """
    slots = {}
    for name in model.state_dict():
        if name.endswith(SCALE):
            continue
        hf_name = name if name.startswith("lm_head.") else f"model.{name}"
        prefix, experts, kind = hf_name.partition(".mlp.experts.")
        if not experts or stacked_experts:
            slots[hf_name] = Slot(name)
            continue
        for expert in range(model.config.num_experts):
            if kind == "down_proj":
                slots[f"{prefix}{experts}{expert}.down_proj.weight"] = Slot(name, expert)
            else:
                slots[f"{prefix}{experts}{expert}.gate_proj.weight"] = Slot(name, expert, 0)
                slots[f"{prefix}{experts}{expert}.up_proj.weight"] = Slot(name, expert, 1)
    return slots


def memory_for(meta: Tensor, device: torch.device | str) -> Tensor:
    """A tensor like this one of the meta device, to be filled; on a CPU in huge pages where it is large.
    `torch.empty_like` would import SymPy first, which takes longer than reading a small model."""
    if torch.device(device).type != "cpu":
        return torch.empty(meta.shape, dtype=meta.dtype, device=device)
    return aligned_empty(meta.nbytes).view(meta.dtype).view(meta.shape)


@dataclass(frozen=True)
class StoredWeights:
    """A folder's tensors whose headers were read and checked, by Hugging Face's names, and their places."""

    folder: Path
    tensors: dict[str, StoredTensor]
    slots: dict[str, Slot]

    def types(self) -> dict[str, list[str]]:
        """Of each weight of the model (by its name there), its tensors' types: "f32", "bf16", "fp8" …"""
        types: dict[str, list[str]] = {}
        for name, slot in self.slots.items():
            types.setdefault(slot.weight, []).append(self.type(name))
        return types

    def type(self, name: str) -> str:
        dtype = self.tensors[name].dtype
        if dtype == FP8:
            return "f32" if self.has_common_blocks(name) else "fp8"
        return CODES[dtype].lower()

    def has_common_blocks(self, name: str) -> bool:
        """Whether gate and up of an expert lie in common FP8 blocks, which can't be kept."""
        return name.endswith(".gate_up_proj") and self.tensors[name].shape[-2] // 2 % BLOCK > 0

    def scale(self, name: str) -> StoredTensor | None:
        return self.tensors.get(name + SCALE)


def open_weights(folder: Path, model: Transformer) -> StoredWeights:
    """Raises CheckpointError unless the folder holds exactly the model's weights."""
    stored: dict[str, StoredTensor] = {}
    for path in weight_files(folder):
        stored |= read_safetensors(path)
    stacked = any(name.endswith(".mlp.experts.gate_up_proj") for name in stored)
    slots = tensor_slots(model, stacked_experts=stacked)
    check_stored(folder, model, slots, stored)
    return StoredWeights(folder, stored, slots)


def keep_stored_fp8(opened: StoredWeights, model: Transformer) -> None:
    """Makes room in FP8 for what the files have so."""
    kept = {name: slot for name, slot in opened.slots.items() if opened.tensors[name].dtype == FP8}
    if any(map(opened.has_common_blocks, kept)):
        raise CheckpointError(
            f"{opened.folder} has gate and up in common FP8 blocks: load it without keep_fp8"
        )
    keep_fp8_weights(model, {slot.weight for slot in kept.values()})


# (weight, its room, its tensors' names) -> its bytes
Pack: TypeAlias = Callable[[str, PackedMatrix, list[str]], Tensor]


def read_weights(
    opened: StoredWeights,
    model: Transformer,
    device: torch.device,
    progress: Progress | None,
    pack: Pack | None = None,
) -> dict[str, Tensor]:
    """The weights of a model that stands on the meta device, by their names in its state dict.

    They are stored as the model has room for them: FP8 as it is or dequantized; `pack` makes packed ones.
    """
    stored, slots = opened.tensors, opened.slots
    meta, packed = model.state_dict(), packed_weights(model)
    weights: dict[str, Tensor] = {}

    def copy(weight: str, slot: Slot, tensor: Tensor) -> None:
        if weight not in weights:
            weights[weight] = memory_for(meta[weight], device)
        slot.of(weights[weight]).copy_(tensor)

    def read(name: str, slot: Slot, source: StoredTensor, scale: StoredTensor | None) -> None:
        target = meta[slot.weight]
        values = source.read()
        if scale is not None and target.dtype != FP8:
            scales = scale.read().to(device)
            copy(slot.weight, slot, dequantize_blocks(values.to(device), scales, target.dtype))
            source.release()
        elif values.dtype == target.dtype and values.shape == target.shape and values.device == device:
            weights[slot.weight] = values  # as it lies in the file
        else:
            copy(slot.weight, slot, values)
            source.release()
        if scale is not None and target.dtype == FP8:
            copy(slot.weight + SCALE, slot, scale.read())

    done, total = 0, sum(tensor.num_bytes for tensor in stored.values())
    ordered = sorted(slots, key=lambda name: (stored[name].path, stored[name].start))  # as the disk has them
    parts: dict[str, list[str]] = {}
    for name in slots:
        parts.setdefault(slots[name].weight, []).append(name)
    for name in ordered:
        slot, scale = slots[name], opened.scale(name)
        if pack is None or slot.weight not in packed:
            read(name, slot, stored[name], scale)
        elif slot.weight not in weights:  # all of it when the first of its tensors comes
            weights[slot.weight] = pack(slot.weight, packed[slot.weight], parts[slot.weight])
        done += stored[name].num_bytes + (scale.num_bytes if scale else 0)
        if progress:
            progress(done, total)
    return weights


def check_stored(
    folder: Path, model: Transformer, slots: Mapping[str, Slot], stored: Mapping[str, StoredTensor]
) -> None:
    """Raises CheckpointError unless the files hold exactly the model's weights."""
    meta = model.state_dict()
    expected = {name: tuple(slot.of(meta[slot.weight]).shape) for name, slot in slots.items()}
    for name, tensor in stored.items():
        if tensor.dtype == FP8 and name in slots:
            *stack, rows, columns = expected[name]
            expected[name + SCALE] = (*stack, num_blocks(rows), num_blocks(columns))
        elif name in slots and not tensor.dtype.is_floating_point:
            raise CheckpointError(
                f"{name} in {tensor.path} holds {tensor.dtype}: these weights are not supported"
            )
    missing = [f"{name} {list(shape)}" for name, shape in expected.items() if name not in stored]
    extra = [
        f"{name} {list(tensor.shape)} in {tensor.path.name}"
        for name, tensor in stored.items()
        if name not in expected and not _is_redundant(name, model.config, stored)
    ]
    misshapen = [
        f"{name} is {list(stored[name].shape)} in {stored[name].path.name} and should be {list(shape)}"
        for name, shape in expected.items()
        if name in stored and stored[name].shape != shape
    ]
    refuse(folder, missing, extra, misshapen)


def _is_redundant(name: str, config: ModelConfig, stored: Mapping[str, StoredTensor]) -> bool:
    """Old files carry the rotary frequencies, and tied models sometimes their head."""
    if name.endswith(".rotary_emb.inv_freq"):
        return True
    if (
        name != "lm_head.weight"
        or not config.tie_word_embeddings
        or "model.embed_tokens.weight" not in stored
    ):
        return False
    head, embedding = stored[name], stored["model.embed_tokens.weight"]
    same = head.shape == embedding.shape and torch.equal(head.read(), embedding.read())
    head.release()
    embedding.release()
    if not same:
        raise CheckpointError(
            f"config.json says tie_word_embeddings, but lm_head.weight in {head.path} differs from the "
            "embedding. Set tie_word_embeddings to false to use the head."
        )
    return True


def refuse(path: Path, missing: list[str], extra: list[str], misshapen: list[str]) -> None:
    kinds = {"missing": missing, "not of this model": extra, "misshapen": misshapen}
    complaints = [f"{len(names)} {kind}: {_first_ten(names)}" for kind, names in kinds.items() if names]
    if complaints:
        raise CheckpointError(
            f"{path} does not hold the weights that its config describes. " + ". ".join(complaints) + "."
        )


def _first_ten(names: list[str]) -> str:
    rest = f", and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(names[:10]) + rest


def outgoing(model: Transformer, fp8: bool) -> Iterator[Outgoing]:
    """Every tensor of the file. Norms, embedding, head, router and biases are never quantized."""
    state, packed = model.state_dict(), packed_weights(model)
    dtype = model.norm.weight.dtype
    for name, slot in tensor_slots(model).items():
        if slot.weight in packed:
            matrix = packed_outgoing(name, slot, packed[slot.weight], dtype)
            yield from in_fp8(matrix) if fp8 and goes_to_fp8(name) else [matrix]
            continue
        weight = slot.of(state[slot.weight])
        shape = tuple(weight.shape)
        if weight.dtype == FP8:
            scale = slot.of(state[slot.weight + SCALE])
            if fp8:
                yield Outgoing(name, FP8, shape, partial(_as_is, weight))
                yield Outgoing(name + SCALE, scale.dtype, tuple(scale.shape), partial(_as_is, scale))
            else:
                yield Outgoing(name, dtype, shape, partial(dequantize_blocks, weight, scale, dtype))
        elif fp8 and goes_to_fp8(name):
            yield from in_fp8(Outgoing(name, weight.dtype, shape, partial(_as_is, weight)))
        else:
            yield Outgoing(name, weight.dtype, shape, partial(_as_is, weight))


def packed_outgoing(name: str, slot: Slot, packed: PackedMatrix, dtype: torch.dtype) -> Outgoing:
    """A packed weight's tensor of the file: its numbers."""
    shape = tuple(slot.of(torch.empty(packed.shape, device="meta")).shape)
    matrix = packed if slot.expert is None else packed[slot.expert]
    return Outgoing(name, dtype, shape, lambda: replace(slot, expert=None).of(matrix.dequantize(dtype)))


def goes_to_fp8(name: str) -> bool:
    """Whether a tensor of Hugging Face's name is converted: the projections, and nothing else."""
    return name.endswith("_proj.weight")


def in_fp8(matrix: Outgoing) -> list[Outgoing]:
    """The values and the scales that a matrix becomes. Both ask for it when their turn comes."""
    rows, columns = matrix.shape
    return [
        Outgoing(matrix.name, FP8, matrix.shape, lambda: quantize_blocks(matrix.make())[0]),
        Outgoing(
            matrix.name + SCALE,
            torch.bfloat16,
            (num_blocks(rows), num_blocks(columns)),
            lambda: block_scales(matrix.make()),
        ),
    ]


def _as_is(tensor: Tensor) -> Tensor:
    return tensor


def cut_shards(tensors: list[Outgoing], shard_bytes: float) -> Iterator[list[Outgoing]]:
    """Cuts the list where a file would grow beyond `shard_bytes`."""
    shard: list[Outgoing] = []
    size = 0
    for tensor in tensors:
        if shard and size + tensor.num_bytes > shard_bytes:
            yield shard
            shard, size = [], 0
        shard.append(tensor)
        size += tensor.num_bytes
    yield shard
