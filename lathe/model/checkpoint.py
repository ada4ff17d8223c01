"""A checkpoint on disk, both directions: what is in it, loading it into a `Transformer`, saving one.

Two formats: a folder in Hugging Face's layout (weights.py reads its safetensors), and a GGUF file
(gguf.py).
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from lathe.errors import CheckpointError
from lathe.model import gguf
from lathe.model.config import ModelConfig
from lathe.model.packed_checkpoint import load_packed
from lathe.model.packing import MODES, Loss, Quantize
from lathe.model.quantization import quantization_config
from lathe.model.safetensors import Outgoing, write_safetensors
from lathe.model.transformer import Transformer
from lathe.model.weights import (
    INDEX,
    SINGLE,
    Progress,
    cut_shards,
    keep_stored_fp8,
    memory_for,
    open_weights,
    outgoing,
    read_json,
    read_weights,
    weight_files,
)

TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose headers were read. `quantization` is "fp8" for block FP8, else None.

    `generation_config` holds at least the token ids (eos_token_id …) that the checkpoint names anywhere.
    """

    path: Path
    format: Literal["safetensors", "gguf"]
    config: ModelConfig
    generation_config: dict[str, Any]
    chat_template: str | None
    gguf_metadata: dict[str, Any] | None = None
    quantization: str | None = None


def open_checkpoint(path: Path | str, *, weights: bool = True) -> Checkpoint:
    """Reads the headers of a folder (config.json and safetensors) or of a .gguf file.

    Without `weights` a folder need not hold any: what is wanted is what surrounds them.
    Raises CheckpointError when files are missing, damaged, or describe what does not run here.
    """
    path = Path(path)
    if path.suffix == ".gguf":
        return _open_gguf(path)
    if not path.is_dir():
        raise CheckpointError(f"{path} is neither a folder nor a .gguf file")
    if not (path / "config.json").exists():
        raise CheckpointError(
            f"{path} has no config.json: it is no model in Hugging Face's layout, or not whole"
        )
    config = read_json(path / "config.json")
    if weights:
        weight_files(path)
    generation = {name: config[name] for name in TOKEN_IDS if config.get(name) is not None}
    if (path / "generation_config.json").exists():
        generation |= read_json(path / "generation_config.json")
    return Checkpoint(
        path=path,
        format="safetensors",
        config=ModelConfig.from_hf(config),
        generation_config=generation,
        chat_template=_read_chat_template(path),
        quantization=_read_quantization(config),
    )


def _open_gguf(path: Path) -> Checkpoint:
    file = gguf.open_gguf(path)
    return Checkpoint(
        path=path,
        format="gguf",
        config=file.config,
        generation_config=file.generation_config,
        chat_template=file.chat_template,
        gguf_metadata=file.metadata,
    )


def _read_chat_template(path: Path) -> str | None:
    if (path / "chat_template.jinja").exists():
        return (path / "chat_template.jinja").read_text(encoding="utf-8")
    if not (path / "tokenizer_config.json").exists():
        return None
    template = read_json(path / "tokenizer_config.json").get("chat_template")
    if isinstance(template, list):  # several, by name
        return next((entry["template"] for entry in template if entry.get("name") == "default"), None)
    return template


def _read_quantization(config: Mapping[str, Any]) -> str | None:
    quantization = config.get("quantization_config")
    if not quantization:
        return None
    method = quantization.get("quant_method")
    if method != "fp8":
        raise CheckpointError(
            f"the weights are quantized by {method!r}; of those, only block FP8 (fp8) is read"
        )
    if (
        quantization.get("weight_block_size") != [128, 128]
        or quantization.get("activation_scheme") == "static"
    ):
        raise CheckpointError(
            "FP8 weights are read only with weight_block_size [128, 128] and activation_scheme dynamic"
        )
    return "fp8"


def default_dtype(checkpoint: Checkpoint, device: torch.device) -> torch.dtype:
    """What a model runs in unless told: fp32 on a CPU, elsewhere what the config says."""
    return torch.float32 if device.type == "cpu" else getattr(torch, checkpoint.config.dtype)


def load_model(
    checkpoint: Checkpoint,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    keep_fp8: bool = False,
    quantize: Quantize | None = None,
    loss: Loss | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Transformer:
    """The model, on its device, in `dtype`; without it fp32 on a CPU, elsewhere what the config says.

    (On a CPU without bf16 units, bf16 arithmetic is some 40 times slower.) Weights that need no change stay
    mapped from the file; the others are copied into place one by one, so memory holds the model once.
    `keep_fp8` leaves block-FP8 weights at one byte, to be dequantized on every use.

    `quantize` stores weights in a CPU's memory as they are in the file ("keep"), or rounds wider ones to four
    or eight bits ("q4", "q8"): see packing.py. The model then computes in fp32. What rounding cost is added
    to `loss`; `cache` is a folder where packed weights are kept for the next time.

    Raises CheckpointError that names missing, extra and misshapen tensors.
    """
    device = torch.device(device)
    dtype = dtype or default_dtype(checkpoint, device)
    if quantize is not None:
        check_quantize(quantize, dtype, device, keep_fp8)
        return load_packed(
            checkpoint.path, checkpoint.config, quantize, loss=loss, progress=progress, cache=cache
        )
    model = Transformer(checkpoint.config, device="meta", dtype=dtype)
    if checkpoint.format == "gguf":
        weights = {name: memory_for(meta, device) for name, meta in model.state_dict().items()}
        gguf.load_into(weights, gguf.open_gguf(checkpoint.path), progress)
    else:
        opened = open_weights(checkpoint.path, model)
        if keep_fp8:
            keep_stored_fp8(opened, model)
        weights = read_weights(opened, model, device, progress)
    model.load_state_dict(weights, assign=True)
    return model


def check_quantize(mode: str, dtype: torch.dtype, device: torch.device, keep_fp8: bool) -> None:
    """Raises CheckpointError for settings that make no sense together."""
    if mode not in MODES:
        raise CheckpointError(f"{mode!r} is no way to quantize; known are {', '.join(MODES)}")
    if device.type != "cpu":
        raise CheckpointError(f"quantized weights are for a CPU, not for {device}: load them as they are")
    if dtype != torch.float32:
        name = str(dtype).removeprefix("torch.")
        raise CheckpointError(f"a model of quantized weights computes in float32, not in {name}")
    if keep_fp8 and mode != "keep":
        raise CheckpointError(f"to keep FP8 weights and to quantize to {mode} exclude each other")


def save_model(
    model: Transformer,
    folder: Path | str,
    *,
    fp8: bool = False,
    shard_bytes: float = 5e9,
    generation_config: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> None:
    """Writes config.json and safetensors that transformers loads, in the model's dtype or in block FP8.

    Experts are written one by one, as in the published checkpoints. Everything is written beside the old
    files first and renamed when complete: a crash while writing leaves them as they were. Raises
    CheckpointError, before anything is written, when the disk has no room.
    """
    dtype = str(model.norm.weight.dtype).removeprefix("torch.")
    save_tensors(
        list(outgoing(model, fp8)),
        replace(model.config, dtype=dtype),
        Path(folder),
        fp8=fp8,
        shard_bytes=shard_bytes,
        generation_config=generation_config,
        progress=progress,
    )


def save_tensors(
    tensors: list[Outgoing],
    config: ModelConfig,
    folder: Path,
    *,
    fp8: bool = False,
    shard_bytes: float = 5e9,
    generation_config: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> None:
    """`save_model` for tensors that come one by one, so that no more than one is in memory."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = list(cut_shards(tensors, shard_bytes))
    done, total = 0, sum(tensor.num_bytes for tensor in tensors)
    free = shutil.disk_usage(folder).free
    if free < total:  # said now, and not by the last shard
        raise CheckpointError(f"{folder} will take {total} bytes, and its disk has {free} free")

    def on_written(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        if progress:
            progress(done, total)

    config_json = config.to_hf()
    if fp8:
        config_json["quantization_config"] = quantization_config(config)
    with tempfile.TemporaryDirectory(prefix=".saving-", dir=folder) as staging_name:
        staging = Path(staging_name)
        weight_map: dict[str, str] = {}
        for number, shard in enumerate(shards, start=1):
            name = SINGLE if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
            write_safetensors(staging / name, shard, on_written)
            weight_map |= {tensor.name: name for tensor in shard}
        if len(shards) > 1:
            write_json(staging / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
        if generation_config is not None:
            write_json(staging / "generation_config.json", generation_config)
        write_json(staging / "config.json", config_json)
        written = {path.name for path in staging.iterdir()}
        for name in written:
            (staging / name).replace(folder / name)
    for path in [*folder.glob("model*.safetensors"), folder / INDEX]:  # of a former save, in other shards
        if path.name not in written:
            path.unlink(missing_ok=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
