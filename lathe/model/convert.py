"""From one format of checkpoint to another, tensor by tensor: safetensors, GGUF, block FP8.

The tokenizer is another room's: whoever calls passes in how its vocabulary becomes GGUF metadata and how it
becomes Hugging Face's files. Where both sides have the same format, the files or the metadata are copied as
they are and neither function is called.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lathe.errors import CheckpointError
from lathe.kernels.fp8 import FP8, dequantize_blocks
from lathe.model import gguf, gguf_names
from lathe.model.checkpoint import Checkpoint, open_checkpoint, save_tensors
from lathe.model.gguf import GgufFile, Written
from lathe.model.quantization import quantize_blocks
from lathe.model.safetensors import Outgoing, StoredTensor, read_safetensors
from lathe.model.transformer import Transformer
from lathe.model.weights import (
    SCALE,
    Progress,
    Slot,
    check_stored,
    goes_to_fp8,
    in_fp8,
    tensor_slots,
    weight_files,
)

Kind = Literal["safetensors", "gguf", "fp8"]
# (checkpoint, rows of the embedding) -> tokenizer.ggml.* with one token a row
TokenizerMetadata = Callable[[Checkpoint, int], Mapping[str, Any]]
# writes tokenizer.json and what belongs to it into the folder
SaveTokenizer = Callable[[Checkpoint, Path], None]

# What surrounds the weights in a folder, and is copied from folder to folder.
COPIED = (
    "tokenizer*.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template*",
    "additional_chat_templates/*.jinja",
    "*.tiktoken",
    "LICENSE*",
)
# What a GGUF file says about itself alone.
NOT_COPIED = ("general.architecture", "general.file_type", "general.alignment", "general.sampling.")


@dataclass(frozen=True)
class Summary:
    """What a conversion did. Types are those on the new side; a rounding error of 0.01 is one percent.

    `relative_error` is, per type, the root of the squared error's sum over that of the squared weights' sum.
    """

    source_bytes: int
    target_bytes: int
    num_tensors: dict[str, int]
    relative_error: dict[str, float]


@dataclass(frozen=True)
class Source:
    """A checkpoint's tensors under Hugging Face's names, experts one by one; reading costs one of them."""

    checkpoint: Checkpoint
    slots: dict[str, Slot]
    shapes: dict[str, tuple[int, ...]]
    read: Callable[[str], Tensor]
    num_bytes: int


def convert(
    source: Path | str,
    target: Path | str,
    *,
    kind: Kind,
    type: str = "q8_0",
    tokenizer_metadata: TokenizerMetadata,
    save_tokenizer: SaveTokenizer,
    overwrite: bool = False,
    shard_bytes: float = 5e9,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Summary:
    """Writes `source` (a folder or a .gguf file) as `target`: a .gguf file for kind "gguf", else a folder.

    `type` is one of gguf.FILE_TYPES and means nothing to the other kinds: "safetensors" is written in the
    config's dtype, "fp8" in blocks of 128 x 128. Quantizing runs on `device`.
    Raises CheckpointError when the target exists (unless `overwrite`), and for what the format can't say.
    """
    source, target = Path(source), Path(target)
    _check_target(source, target, kind, overwrite)
    tensors = open_source(source)
    if kind == "gguf":
        written = _write_gguf(tensors, target, type, tokenizer_metadata, device, progress)
    else:
        written = _write_folder(tensors, target, kind == "fp8", shard_bytes, device, progress)
        _write_surroundings(tensors.checkpoint, target, save_tokenizer)
    return Summary(tensors.num_bytes, written.num_bytes, dict(written.num_tensors), written.relative_error)


def _check_target(source: Path, target: Path, kind: Kind, overwrite: bool) -> None:
    if kind == "gguf" and target.suffix != ".gguf":
        raise CheckpointError(f"a GGUF file's name ends in .gguf, and {target} does not")
    if kind != "gguf" and target.suffix == ".gguf":
        raise CheckpointError(f"{kind} is written as a folder, and {target} is named like a GGUF file")
    if target.exists() and target.samefile(source):
        raise CheckpointError(f"{target} is the source itself; name another target")
    if kind == "gguf" and target.is_dir():
        raise CheckpointError(f"{target} is a folder; name a file")
    if kind != "gguf" and target.is_file():
        raise CheckpointError(f"{target} is a file; name a folder")
    taken = any(target.iterdir()) if target.is_dir() else target.exists()
    if taken and not overwrite:
        raise CheckpointError(f"{target} exists already; name another target, or ask to overwrite it")
    target.parent.mkdir(parents=True, exist_ok=True)


def open_source(path: Path) -> Source:
    """Reads a checkpoint's headers. Raises CheckpointError for what is missing, extra or misshapen."""
    checkpoint = open_checkpoint(path)
    model = Transformer(checkpoint.config, device="meta")
    slots, meta = tensor_slots(model), model.state_dict()
    shapes = {name: tuple(slot.of(meta[slot.weight]).shape) for name, slot in slots.items()}
    if checkpoint.format == "gguf":
        file = gguf.open_gguf(path)
        theirs = {(slot.ours, slot.half): slot for slot in gguf_names.slots(file.config)}

        def read(name: str) -> Tensor:
            ours = slots[name]
            return _read_gguf(file, theirs[ours.weight, ours.half], ours.expert, shapes[name])

        return Source(checkpoint, slots, shapes, read, file.num_bytes)
    stored: dict[str, StoredTensor] = {}
    for shard in weight_files(path):
        stored |= read_safetensors(shard)
    stacked = any(name.endswith(".mlp.experts.gate_up_proj") for name in stored)
    check_stored(path, model, tensor_slots(model, stacked_experts=stacked), stored)
    num_bytes = sum(tensor.num_bytes for tensor in stored.values())
    return Source(checkpoint, slots, shapes, partial(_read_stored, stored, slots), num_bytes)


def _read_gguf(file: GgufFile, slot: gguf_names.Slot, expert: int | None, shape: tuple[int, ...]) -> Tensor:
    values = torch.empty(shape)
    gguf.read_slot(file, slot, values, expert)
    return values


def _read_stored(stored: Mapping[str, StoredTensor], slots: Mapping[str, Slot], name: str) -> Tensor:
    """As it is stored, but for FP8, which becomes float32."""
    part = slots[name]
    if name not in stored:  # the file has the experts stacked
        name = f"model.{part.weight}"
    else:
        part = Slot(part.weight)
    values = part.of(stored[name].read())
    if values.dtype != FP8:
        return values
    return dequantize_blocks(values, part.of(stored[name + SCALE].read()))


def _write_gguf(
    source: Source,
    target: Path,
    type: str,
    tokenizer_metadata: TokenizerMetadata,
    device: torch.device | str,
    progress: Progress | None,
) -> Written:
    checkpoint = source.checkpoint
    metadata: Mapping[str, Any]
    if checkpoint.gguf_metadata is None:
        metadata = tokenizer_metadata(checkpoint, checkpoint.config.vocab_size)
    else:
        kept = ("general.", "tokenizer.")
        metadata = {
            key: value
            for key, value in checkpoint.gguf_metadata.items()
            if key.startswith(kept) and not key.startswith(NOT_COPIED)
        }
    names = {slot: name for name, slot in source.slots.items()}
    return gguf.write_gguf(
        target,
        checkpoint.config,
        lambda slot, expert: source.read(names[Slot(slot.ours, expert, slot.half)]),
        type=type,
        metadata=metadata,
        chat_template=checkpoint.chat_template,
        generation=checkpoint.generation_config,
        device=device,
        progress=progress,
    )


def _write_folder(
    source: Source,
    target: Path,
    fp8: bool,
    shard_bytes: float,
    device: torch.device | str,
    progress: Progress | None,
) -> Written:
    checkpoint, written = source.checkpoint, Written()
    dtype = getattr(torch, checkpoint.config.dtype)

    def rounded(name: str) -> Tensor:
        exact = source.read(name).to(device).float()
        written.add(name, checkpoint.config.dtype, exact, values := exact.to(dtype))
        return values

    def matrix(name: str) -> Tensor:
        return source.read(name).to(device).float()

    def measured(name: str) -> Tensor:
        exact = matrix(name)
        quantized, scale = quantize_blocks(exact)
        written.add(name, "fp8", exact, dequantize_blocks(quantized, scale))
        return quantized

    tensors: list[Outgoing] = []
    for name, shape in source.shapes.items():
        if fp8 and goes_to_fp8(name):
            values, scales = in_fp8(Outgoing(name, torch.float32, shape, partial(matrix, name)))
            tensors += [replace(values, make=partial(measured, name)), scales]
            written.num_tensors["fp8"] += 1
        else:
            tensors.append(Outgoing(name, dtype, shape, partial(rounded, name)))
            written.num_tensors[checkpoint.config.dtype] += 1
    save_tensors(
        tensors,
        checkpoint.config,
        target,
        fp8=fp8,
        shard_bytes=shard_bytes,
        generation_config=checkpoint.generation_config,
        progress=progress,
    )
    written.num_bytes = sum(tensor.num_bytes for tensor in tensors)
    return written


def _write_surroundings(checkpoint: Checkpoint, target: Path, save_tokenizer: SaveTokenizer) -> None:
    if checkpoint.format == "safetensors":
        for pattern in COPIED:
            for path in checkpoint.path.glob(pattern):
                copy = target / path.relative_to(checkpoint.path)
                copy.parent.mkdir(exist_ok=True)
                shutil.copyfile(path, copy)
        return
    save_tokenizer(checkpoint, target)
    if checkpoint.chat_template is not None:
        (target / "chat_template.jinja").write_text(checkpoint.chat_template, encoding="utf-8")
