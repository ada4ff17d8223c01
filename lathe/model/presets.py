"""The published shapes, by name, and what they weigh.

`Transformer(preset(name), device="meta")` builds one without memory.

Sources: config.json and model cards of Qwen/Qwen3-Coder-*-Instruct and Qwen/Qwen3-*.
"""

from __future__ import annotations

import difflib
from types import MappingProxyType
from typing import Any

from lathe.errors import ModelNotFound
from lathe.model.config import ModelConfig
from lathe.model.transformer import Transformer


def _coder(**sizes: Any) -> ModelConfig:
    return ModelConfig(
        architecture="qwen3_moe",
        vocab_size=151_936,
        head_dim=128,
        num_experts_per_tok=8,
        norm_topk_prob=True,
        rope_theta=10_000_000.0,
        max_position_embeddings=262_144,
        **sizes,
    )


def _dense(**sizes: Any) -> ModelConfig:
    return ModelConfig(
        architecture="qwen3",
        vocab_size=151_936,
        num_kv_heads=8,
        head_dim=128,
        rope_theta=1_000_000.0,
        max_position_embeddings=40_960,
        **sizes,
    )


PRESETS = MappingProxyType(
    {
        "qwen3-coder-480b-a35b-instruct": _coder(
            hidden_size=6144,
            num_layers=62,
            num_heads=96,
            num_kv_heads=8,
            intermediate_size=8192,
            num_experts=160,
            moe_intermediate_size=2560,
        ),
        "qwen3-coder-30b-a3b-instruct": _coder(
            hidden_size=2048,
            num_layers=48,
            num_heads=32,
            num_kv_heads=4,
            intermediate_size=5472,
            num_experts=128,
            moe_intermediate_size=768,
        ),
        "qwen3-32b": _dense(hidden_size=5120, num_layers=64, num_heads=64, intermediate_size=25_600),
        "qwen3-14b": _dense(hidden_size=5120, num_layers=40, num_heads=40, intermediate_size=17_408),
        "qwen3-8b": _dense(hidden_size=4096, num_layers=36, num_heads=32, intermediate_size=12_288),
        "qwen3-4b": _dense(
            hidden_size=2560, num_layers=36, num_heads=32, intermediate_size=9728, tie_word_embeddings=True
        ),
        "qwen3-1.7b": _dense(
            hidden_size=2048, num_layers=28, num_heads=16, intermediate_size=6144, tie_word_embeddings=True
        ),
        "qwen3-0.6b": _dense(
            hidden_size=1024, num_layers=28, num_heads=16, intermediate_size=3072, tie_word_embeddings=True
        ),
    }
)


def preset(name: str) -> ModelConfig:
    """The shape of a published model; its hub id does as well. Raises ModelNotFound."""
    key = name.lower().removeprefix("qwen/")
    if key not in PRESETS:
        close = difflib.get_close_matches(key, PRESETS, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise ModelNotFound(f"there is no preset {name!r}. Known are: {', '.join(PRESETS)}.{hint}")
    return PRESETS[key]


def count_parameters(config: ModelConfig) -> tuple[int, int]:
    """All parameters, and those read to make one token.

    Read are attention, norms, routers, the chosen experts and the head; of the embedding only one row, not
    counted. A tied embedding is read in full, as the head.
    """
    total = read = 0
    for name, parameter in Transformer(config, device="meta").named_parameters():
        total += parameter.numel()
        if ".experts." in name:
            read += parameter.numel() * config.num_experts_per_tok // config.num_experts
        elif name != "embed_tokens.weight" or config.tie_word_embeddings:
            read += parameter.numel()
    return total, read
