"""What surrounds a checkpoint's weights: its tokenizer, template, end marks and sampling defaults."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lathe.engine.kv_cache import available_memory
from lathe.errors import CheckpointError, UserError
from lathe.kernels.cpu import library
from lathe.model.checkpoint import Checkpoint
from lathe.model.packed_checkpoint import packed_memory
from lathe.model.packing import Quantize
from lathe.model.presets import count_parameters
from lathe.text.chat_template import ChatTemplate
from lathe.text.tokenizer import Tokenizer
from lathe.types import SamplingParams

# Where a checkpoint recommends nothing: what Qwen3-Coder's generation_config.json says.
FALLBACK_SAMPLING = SamplingParams(temperature=0.7, top_p=0.8, top_k=20, repetition_penalty=1.05)


def default_quantize(dtype: torch.dtype, device: torch.device) -> Quantize | None:
    """How weights are held where nobody says: as the file has them where compiled kernels read such, else in
    `dtype`. Plain PyTorch dequantizes packed weights on every use: several times slower than wide ones."""
    if device.type != "cpu" or dtype != torch.float32 or library.load() is None:
        return None
    return "keep"


def check_memory(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    device: torch.device,
    keep_fp8: bool,
    quantize: Quantize | None = None,
    pack_cache: Path | None = None,
) -> None:
    """Refuses weights that memory can't hold. The system would end the process instead, after minutes."""
    if quantize is not None:
        needed = packed_memory(checkpoint.path, checkpoint.config, quantize, pack_cache)
        _refuse_if_larger(checkpoint, quantize, needed, device)
        return
    stored = getattr(torch, checkpoint.config.dtype)
    is_plain = checkpoint.format == "safetensors" and checkpoint.quantization is None
    if is_plain and dtype == stored and device.type == "cpu":
        return  # they stay mapped from the file, and the system reads and drops them as it needs
    total, _ = count_parameters(checkpoint.config)
    needed = total * (1 if keep_fp8 and checkpoint.quantization == "fp8" else dtype.itemsize)
    _refuse_if_larger(checkpoint, str(dtype).removeprefix("torch."), needed, device)


def _refuse_if_larger(checkpoint: Checkpoint, how: str, needed: int, device: torch.device) -> None:
    free = available_memory(device)
    if needed <= free:
        return
    total, _ = count_parameters(checkpoint.config)
    narrower = "fewer bits (--quantize q4)" if device.type == "cpu" and how != "q4" else "a narrower dtype"
    advice = f"{narrower}, a smaller model" if how != "q4" else "a smaller model"
    raise UserError(
        f"{checkpoint.path.name} has {total / 1e9:.1f}B parameters, in {how} {needed / 1e9:.0f} GB, and "
        f"{free / 1e9:.0f} GB are free. Choose {advice} or a larger machine."
    )


def load_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """From the folder's tokenizer files, or a GGUF's metadata."""
    if checkpoint.gguf_metadata is not None:
        return Tokenizer.from_gguf(checkpoint.gguf_metadata)
    return Tokenizer.from_folder(checkpoint.path)


def load_template(checkpoint: Checkpoint, tokenizer: Tokenizer) -> ChatTemplate:
    """The checkpoint's own template, or the built-in one."""
    if checkpoint.gguf_metadata is None:
        return ChatTemplate.from_folder(checkpoint.path, tokenizer) or ChatTemplate.builtin()
    if checkpoint.chat_template is None:
        return ChatTemplate.builtin()
    return ChatTemplate(
        checkpoint.chat_template, bos_token=tokenizer.bos_token, eos_token=tokenizer.eos_token
    )


def eos_token_ids(checkpoint: Checkpoint, tokenizer: Tokenizer) -> tuple[int, ...]:
    """All ids that end a reply: the generation config's (one or a list) and the tokenizer's own."""
    named = checkpoint.generation_config.get("eos_token_id")
    ids = set(named) if isinstance(named, list) else {named} if named is not None else set()
    if tokenizer.eos_token_id is not None:
        ids.add(tokenizer.eos_token_id)
    # A chat turn ends here in every model of the family, whatever a converted file says.
    if "<|im_end|>" in tokenizer.special_tokens:
        ids.add(tokenizer.special_tokens["<|im_end|>"])
    if not ids:
        raise CheckpointError(
            f"{checkpoint.path} names no end-of-sequence token; its replies would never end."
        )
    return tuple(sorted(ids))


def default_sampling(generation_config: Mapping[str, Any]) -> SamplingParams:
    """The checkpoint's recommendation from its generation_config.json."""
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    given = {name: generation_config[name] for name in names if generation_config.get(name) is not None}
    if generation_config.get("do_sample") is False:
        given["temperature"] = 0.0
    return SamplingParams(**given) if given else FALLBACK_SAMPLING
