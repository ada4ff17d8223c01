"""Models that every room's tests share, and how hypothesis searches."""

import os

import pytest
from hypothesis import settings
from tiny_models import random_model, tiny_config

from lathe.model.transformer import Transformer

# CI judges a change: the same examples each time. A developer's runs search on with new ones.
settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("search", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "search")


@pytest.fixture(scope="session")
def tiny_model() -> Transformer:
    return random_model(tiny_config())


@pytest.fixture(scope="session")
def tiny_moe() -> Transformer:
    return random_model(
        tiny_config(architecture="qwen3_moe", num_experts=8, num_experts_per_tok=3, moe_intermediate_size=32)
    )
