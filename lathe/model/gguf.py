"""A model in a GGUF file, both directions: `open_gguf` and `load_into`, `write_gguf`.

Built on gguf_container.py (the file), gguf_types.py (how numbers are stored) and gguf_names.py (what things
are called).
"""

# E experts, R rows, C columns, d head dimension

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lathe.errors import CheckpointError
from lathe.model.config import ModelConfig
from lathe.model.gguf_container import (
    Container,
    OutgoingTensor,
    read_container,
    split_paths,
    write_container,
)
from lathe.model.gguf_names import (
    DERIVED_TENSORS,
    Slot,
    config_from_metadata,
    config_to_metadata,
    generation_from_metadata,
    generation_to_metadata,
    slots,
)
from lathe.model.gguf_types import (
    BF16,
    F16,
    F32,
    Q4_0,
    Q4_1,
    Q4_K,
    Q5_0,
    Q5_1,
    Q6_K,
    Q8_0,
    GgufType,
    dequantize_into,
    quantize_chunks,
)
from lathe.model.weights import Progress


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
        template = self.metadata.get("tokenizer.chat_template")
        return template if isinstance(template, str) else None

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


ReadTensor = Callable[[Slot, int | None], Tensor]  # (slot, expert or None) -> float tensor in PyTorch's order

# What a whole file is called -> llama.cpp's number for it, and the type of its matrices.
# Every one is a mixture: see `type_for`.
FILE_TYPES = {
    "f32": (0, F32),
    "f16": (1, F16),
    "bf16": (32, BF16),
    "q8_0": (7, Q8_0),
    "q6_k": (18, Q6_K),
    "q5_1": (9, Q5_1),
    "q5_0": (8, Q5_0),
    "q4_k_m": (15, Q4_K),
    "q4_k": (14, Q4_K),
    "q4_1": (3, Q4_1),
    "q4_0": (2, Q4_0),
}
FALLBACK = {Q4_K: Q5_0, Q6_K: Q8_0}  # as llama.cpp: rows that are no multiple of 256


def type_for(slot: Slot, file_type: str, config: ModelConfig, *, pure: bool = False) -> GgufType:
    """The type that a tensor gets in a file of this type, by llama.cpp's rules.

    Vectors and routers stay float32. The output head (or the embedding that serves as one) gets at least 6
    bits: its errors go straight into the logits. q4_k_m also gives 6 bits to half of the v and down
    projections. `pure` leaves out both exceptions, as `llama-quantize --pure` does.
    """
    if len(slot.shape) == 1 or slot.gguf.endswith("ffn_gate_inp.weight"):
        return F32
    type = FILE_TYPES[file_type][1]
    head = "token_embd.weight" if config.tie_word_embeddings else "output.weight"
    below_six_bits = type.block_size > 1 and type not in (Q8_0, Q6_K)
    if slot.gguf == head and below_six_bits and not pure:
        type = Q6_K
    if file_type == "q4_k_m" and not pure and _needs_more_bits(slot, config):
        type = Q6_K
    if slot.shape[-1] % type.block_size:
        type = FALLBACK.get(type, F16)
    return type if slot.shape[-1] % type.block_size == 0 else F16


def _needs_more_bits(slot: Slot, config: ModelConfig) -> bool:
    """The first and last eighth of the layers, and every third between."""
    if not slot.gguf.startswith("blk.") or not any(part in slot.gguf for part in (".attn_v.", ".ffn_down")):
        return False
    layer, eighth = int(slot.gguf.split(".")[1]), config.num_layers // 8
    return layer < eighth or layer >= 7 * config.num_layers // 8 or (layer - eighth) % 3 == 2


@dataclass
class Written:
    """What became of a model: its size on disk, how many tensors are of each type, and what rounding cost."""

    num_bytes: int = 0
    num_tensors: Counter[str] = field(default_factory=Counter)
    squared_error: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    squared_sum: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    def add(self, name: str, type: str, exact: Tensor, stored: Tensor) -> None:
        """Counts one piece of a tensor. Raises CheckpointError when the type can't hold a number of it."""
        error = (stored.float() - exact).square_().sum().item()
        if not math.isfinite(error):
            raise CheckpointError(f"{name} holds a number that {type} can't: huge, infinite or NaN")
        self.squared_error[type] += error
        self.squared_sum[type] += exact.square().sum().item()

    @property
    def relative_error(self) -> dict[str, float]:
        """By type: the root of the squared error's sum over the root of the squared weights' sum."""
        return {
            type: math.sqrt(error / (self.squared_sum[type] or 1))
            for type, error in self.squared_error.items()
        }


def write_gguf(
    path: Path,
    config: ModelConfig,
    read: ReadTensor,
    *,
    type: str = "q8_0",
    pure: bool = False,
    metadata: Mapping[str, Any],
    chat_template: str | None = None,
    generation: Mapping[str, Any] | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Written:
    """Writes a model, one matrix in memory at a time, so that llama.cpp runs it.

    `read(slot, expert)` gives the tensors, in the file's order; of stacked experts it is asked for one at a
    time. `type` is a name in FILE_TYPES; `pure` gives it to every matrix, the head's too. `metadata` holds
    the tokenizer's keys (tokenizer.ggml.*), with one token for every row of the embedding, and any others.
    Quantizing runs on `device`.

    Raises CheckpointError when GGUF can't say what the config says, and when a type can't hold a number.
    """
    if type not in FILE_TYPES:
        known = ", ".join(FILE_TYPES)
        raise CheckpointError(f"{type!r} is no type of GGUF file that can be written; known are {known}")
    pairs = {
        **config_to_metadata(config),
        "general.type": "model",
        "general.name": path.stem,
        **metadata,
        "general.file_type": FILE_TYPES[type][0],
        "general.quantization_version": 2,
        **generation_to_metadata(generation or {}),
    }
    num_tokens = len(metadata.get("tokenizer.ggml.tokens", range(config.vocab_size)))
    if num_tokens != config.vocab_size:  # llama.cpp would refuse the file
        raise CheckpointError(
            f"the metadata has {num_tokens} tokens, and the embedding {config.vocab_size} rows"
        )
    if chat_template is not None:
        pairs["tokenizer.chat_template"] = chat_template
    written = Written()
    tensors = []
    for slot in slots(config):
        chosen = type_for(slot, type, config, pure=pure)
        written.num_tensors[chosen.name] += 1
        tensors.append(
            OutgoingTensor(
                slot.gguf, slot.shape, chosen, partial(_quantized, slot, chosen, read, device, written)
            )
        )
    done, total = 0, sum(tensor.num_bytes for tensor in tensors)

    def on_written(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        if progress:
            progress(done, total)

    written.num_bytes = write_container(path, pairs, tensors, on_written)
    return written


def _quantized(
    slot: Slot, type: GgufType, read: ReadTensor, device: torch.device | str, written: Written
) -> Iterator[Tensor]:
    experts = range(slot.shape[0]) if len(slot.shape) == 3 else [None]
    for expert in experts:
        values = read(slot, expert).to(device)
        shape = slot.shape if expert is None else slot.shape[1:]
        if values.shape != shape:
            raise CheckpointError(f"{slot.ours} has the shape {list(values.shape)}, not {list(shape)}")
        if slot.rotary_heads:  # the way back of _read_interleaved
            values = values.unflatten(0, (slot.rotary_heads, 2, -1)).transpose(1, 2).flatten(0, 2)
        for exact, raw in quantize_chunks(values, type):
            written.add(slot.ours, type.name, exact, type.dequantize(raw))
            yield raw.cpu()
