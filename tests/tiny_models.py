"""Models small enough to build in a test."""

import torch

from lathe.model.config import ModelConfig
from lathe.model.transformer import Transformer


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
