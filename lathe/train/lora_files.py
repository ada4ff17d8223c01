"""Adapters in PEFT's format, both directions: adapter_config.json and adapter_model.safetensors.

PEFT's names are base_model.model.NAME.lora_A.weight, where NAME is the module's. Stacked experts it adapts as
parameters ("target_parameters", from PEFT 0.17): the factors of all experts are one matrix each, A
[E r, I] with an expert's rows together and B [O, r E] with an expert's columns E apart; where both stacks of
a layer are adapted, those of gate_up_proj are the wrapped layer's, "base_layer".
"""

# E experts, O outputs, I inputs, r rank

from __future__ import annotations

import tempfile
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lathe.errors import CheckpointError
from lathe.model.checkpoint import write_json
from lathe.model.safetensors import Outgoing, read_safetensors, write_safetensors
from lathe.model.transformer import Transformer
from lathe.model.weights import read_json
from lathe.train.lora import Lora, LoraConfig

CONFIG, FACTORS = "adapter_config.json", "adapter_model.safetensors"
EXPERTS, GATE_UP, DOWN = ".mlp.experts.", "gate_up_proj", "down_proj"


def save_lora(lora: Lora, folder: Path | str, *, base_model: str | None = None) -> None:
    """Writes both files, in fp32; each replaces an older one only when it is complete."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    adapted, tensors = list(lora.adapters), []
    for name, adapter in lora.adapters.items():
        for letter, factor in (("A", adapter.a), ("B", adapter.b)):
            flat = flatten(factor.detach(), letter)
            file_name = peft_name(name, letter, adapted)
            tensors.append(Outgoing(file_name, flat.dtype, tuple(flat.shape), partial(torch.clone, flat)))
    with tempfile.TemporaryDirectory(prefix=".saving-", dir=folder) as staging:
        write_safetensors(Path(staging, FACTORS), tensors)
        write_json(Path(staging, CONFIG), config_json(lora.config, adapted, base_model))
        for file in (FACTORS, CONFIG):
            Path(staging, file).replace(folder / file)


def load_lora(model: Transformer, folder: Path | str) -> Lora:
    """Saved adapters on a model, merged. Raises CheckpointError for what is no LoRA of this model, or one of
    a kind that isn't known here."""
    folder = Path(folder)
    content, stored = read_json(folder / CONFIG), read_safetensors(folder / FACTORS)
    config, stacks = read_config(folder / CONFIG, content)
    adapted = [
        name for name, weight in model.named_parameters() if weight.dim() > 1 and _has(stored, name, stacks)
    ]
    if not adapted:
        raise CheckpointError(f"{folder / FACTORS} adapts no weight of this model")
    lora = Lora(model, replace(config, targets=tuple(name.removesuffix(".weight") for name in adapted)))
    state = {}
    for name, factor in lora.named_parameters():
        weight, _, letter = name.rpartition(".lora_")
        file_name = peft_name(weight, letter, adapted)
        flat, wanted = stored.pop(file_name, None), tuple(flatten(factor.detach(), letter).shape)
        if flat is None or flat.shape != wanted:
            raise CheckpointError(f"{folder / FACTORS} lacks {file_name} of the shape {list(wanted)}")
        state[name] = unflatten(flat.read(), letter, tuple(factor.shape))
    if stored:
        raise CheckpointError(f"{folder / FACTORS}: {min(stored)} is of no weight of this model")
    lora.load_state_dict(state)
    return lora


def _has(stored: Mapping[str, Any], name: str, stacks: Sequence[str]) -> bool:
    """Whether the file adapts this weight. One stack alone is not told from the other by its name."""
    prefix, experts, kind = name.partition(EXPERTS)
    if not experts:
        return peft_name(name, "A", ()) in stored
    both = (prefix + experts + GATE_UP, prefix + experts + DOWN)
    if peft_name(both[0], "A", both) in stored:
        return True
    return peft_name(name, "A", ()) in stored and any(end.endswith(kind) for end in stacks)


def peft_name(name: str, letter: str, adapted: Container[str]) -> str:
    """What a factor of this weight is called in the file, if these are adapted."""
    prefix, experts, kind = name.partition(EXPERTS)
    if not experts:
        return f"base_model.model.model.{name.removesuffix('.weight')}.lora_{letter}.weight"
    is_wrapped = kind == GATE_UP and f"{prefix}{EXPERTS}{DOWN}" in adapted
    inner = "base_layer." if is_wrapped else ""
    return f"base_model.model.model.{prefix}{EXPERTS}{inner}lora_{letter}.weight"


def flatten(factor: Tensor, letter: str) -> Tensor:
    """A factor as it is in the file: that of a stack as one matrix."""
    if factor.dim() == 2:
        return factor
    return factor.flatten(0, 1) if letter == "A" else factor.permute(1, 2, 0).flatten(1)


def unflatten(flat: Tensor, letter: str, shape: tuple[int, ...]) -> Tensor:
    """The factor of this shape again."""
    if len(shape) == 2:
        return flat
    num_experts, rows, columns = shape
    return flat.view(shape) if letter == "A" else flat.view(rows, columns, num_experts).permute(2, 0, 1)


def config_json(config: LoraConfig, adapted: Sequence[str], base_model: str | None) -> dict[str, Any]:
    """What PEFT must know to load the adapters."""
    plain = [name.removesuffix(".weight") for name in adapted if EXPERTS not in name]
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "use_rslora": config.rslora,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        # None would mean: choose by the architecture. A list of whole names is what was adapted, and no more.
        "target_modules": [f"model.{name}" for name in plain],
        "target_parameters": [f"model.{name}" for name in adapted if EXPERTS in name] or None,
    }


def read_config(path: Path, content: Mapping[str, Any]) -> tuple[LoraConfig, Sequence[str]]:
    """Rank and scale, and which stacked weights are adapted. Raises CheckpointError for another kind."""
    if content.get("peft_type") != "LORA":
        raise CheckpointError(f"{path}: the kind is {content.get('peft_type')}; only LORA is known")
    unknown = ("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "fan_in_fan_out", "lora_bias")
    used = [name for name in unknown if content.get(name)]
    if content.get("bias", "none") != "none":
        used.append("bias")
    if used:
        raise CheckpointError(f"{path}: {', '.join(used)} is not supported")
    try:
        config = LoraConfig(int(content["r"]), float(content["lora_alpha"]), bool(content.get("use_rslora")))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} names no r and lora_alpha ({error})") from None
    return config, content.get("target_parameters") or ()
