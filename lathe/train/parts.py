"""A model with its words: what a run begins with, and what it exports."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lathe.engine.loading import eos_token_ids, load_template, load_tokenizer
from lathe.errors import UserError
from lathe.model import hub
from lathe.model.checkpoint import load_model, open_checkpoint, save_model
from lathe.model.config import ModelConfig
from lathe.model.convert import convert
from lathe.model.transformer import Transformer
from lathe.model.weights import Progress
from lathe.text.chat_template import ChatTemplate
from lathe.text.tokenizer import Tokenizer

INITIAL_STD = 0.02  # of a new model's matrices, as GPT-2's


@dataclass(frozen=True)
class Parts:
    """`generation_config` is that of the checkpoint: sampling defaults, and the ids that end a reply."""

    model: Transformer
    tokenizer: Tokenizer
    template: ChatTemplate
    eos_token_ids: tuple[int, ...]
    generation_config: Mapping[str, Any] = field(default_factory=dict)


def load_parts(name: str, *, progress: Progress | None = None) -> Parts:
    """A checkpoint to train: an alias, a folder, a .gguf file or a hub id. Its weights become float32."""
    checkpoint = open_checkpoint(hub.resolve(name, progress=progress))
    tokenizer = load_tokenizer(checkpoint)
    model = load_model(checkpoint, dtype=torch.float32, progress=progress)
    return Parts(
        model,
        tokenizer,
        load_template(checkpoint, tokenizer),
        eos_token_ids(checkpoint, tokenizer),
        checkpoint.generation_config,
    )


def new_parts(
    config: ModelConfig, tokenizer: Tokenizer, template: ChatTemplate | None = None, *, seed: int = 0
) -> Parts:
    """A model of that shape with random weights, the same for the same seed.

    Raises UserError where the tokenizer has more tokens than the model has rows, or none that ends a turn.
    """
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"vocab_size is {config.vocab_size}, and the tokenizer has {tokenizer.vocab_size} tokens: make "
            "it at least that."
        )
    ends = {tokenizer.eos_token_id, tokenizer.special_tokens.get("<|im_end|>")} - {None}
    if not ends:
        raise UserError("This tokenizer has no token that ends a text; replies would never end.")
    eos = tuple(sorted(each for each in ends if each is not None))
    model = new_model(config, seed)
    return Parts(model, tokenizer, template or ChatTemplate.builtin(), eos, {"eos_token_id": list(eos)})


def new_model(config: ModelConfig, seed: int = 0) -> Transformer:
    """Random weights in float32. What is added to the residual stream starts smaller, the more there is of
    it (Radford et al. 2019, GPT-2)."""
    generator = torch.Generator().manual_seed(seed)
    model = Transformer(config, dtype=torch.float32, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.zero_()
            elif weight.dim() == 1:
                weight.fill_(1.0)
            else:
                adds = name.endswith(("o_proj.weight", "down_proj.weight", "down_proj"))
                std = INITIAL_STD * ((2 * config.num_layers) ** -0.5 if adds else 1.0)
                weight.normal_(std=std, generator=generator)
    return model


def export(parts: Parts, target: Path | str, *, gguf_type: str = "q8_0") -> Path:
    """Writes what transformers, `lathe serve` and, for a name ending in .gguf, llama.cpp load: weights,
    config, tokenizer, chat template and generation config. Replaces an older export.

    A folder's weights are in the model's own type, a GGUF's in `gguf_type`.
    """
    target = Path(target)
    if target.suffix != ".gguf":
        _export_folder(parts, target)
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".exporting-", dir=target.parent) as staging:
        _export_folder(parts, Path(staging))
        convert(
            staging,
            target,
            kind="gguf",
            type=gguf_type,
            tokenizer_metadata=lambda checkpoint, rows: load_tokenizer(checkpoint).gguf_metadata(rows),
            save_tokenizer=lambda checkpoint, folder: load_tokenizer(checkpoint).save(folder),
            overwrite=True,
        )
    return target


def _export_folder(parts: Parts, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    parts.tokenizer.save(folder)
    parts.template.save(folder)
    generation = {**parts.generation_config, "eos_token_id": list(parts.eos_token_ids)}
    save_model(parts.model, folder, generation_config=generation)
