"""Ids equal to llama.cpp's: SmolLM2's GGUF, and small ones with what Lathe writes, for each pre-tokenizer."""

import json
import random
import unicodedata
import urllib.request

import gguf
import numpy as np
import pytest
import xllamacpp
from text_corpus import TEXTS, python_files

from lathe.text.pre_tokenizers import BY_NAME
from lathe.text.tokenizer import Tokenizer


class LlamaCpp:
    """llama.cpp's server, asked for ids only."""

    def __init__(self, path):
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(path)
        parameters.n_ctx, parameters.n_parallel, parameters.warmup = 64, 1, False
        parameters.cpuparams.n_threads = 1
        self.server = xllamacpp.Server(parameters)

    def encode(self, text: str, parse_special: bool = False) -> list[int]:
        body = {"content": text, "parse_special": parse_special, "add_special": False}
        request = urllib.request.Request(
            self.server.listening_address + "/tokenize",
            data=json.dumps(body).encode(),
            headers={"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.load(response)["tokens"]


def write_vocabulary(path, metadata: dict):
    """The smallest Llama that llama.cpp loads, with a real vocabulary."""
    writer = gguf.GGUFWriter(path, "llama")
    width, rows = 32, len(metadata["tokenizer.ggml.tokens"])
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(width)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    for key, value in metadata.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        else:
            writer.add_string(key, value)
    norm, square = np.ones(width, np.float32), np.zeros((width, width), np.float32)
    tensors = {"token_embd.weight": np.zeros((rows, width), np.float32), "output_norm.weight": norm}
    tensors |= {f"blk.0.{name}_norm.weight": norm for name in ("attn", "ffn")}
    tensors |= {f"blk.0.attn_{name}.weight": square for name in ("q", "k", "v", "output")}
    tensors |= {f"blk.0.ffn_{name}.weight": square for name in ("gate", "up", "down")}
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_smollm2_equals_llama_cpp(smollm2, smollm2_gguf, corpus):
    llama = LlamaCpp(smollm2_gguf)
    chance = random.Random(0)
    marks = list(smollm2.special_tokens)
    for text in corpus:
        assert smollm2.encode(text) == llama.encode(text), text[:80]
        place = chance.randrange(len(text) + 1)
        text = text[:place] + "".join(chance.choices(marks, k=2)) + text[place:]
        assert smollm2.encode(text, allow_special=True) == llama.encode(text, parse_special=True), text[:80]


@pytest.mark.parametrize("pre", BY_NAME)
def test_every_pre_tokenizer_equals_llama_cpps(smollm2, tmp_path, pre):
    metadata = smollm2.gguf_metadata() | {"tokenizer.ggml.pre": pre}
    tokenizer = Tokenizer.from_gguf(metadata)
    llama = LlamaCpp(write_vocabulary(tmp_path / "small.gguf", metadata))
    for text in [*TEXTS, *python_files(8)]:
        # Qwen's tokenizer.json normalizes; llama.cpp leaves that to its users.
        text = unicodedata.normalize("NFC", text) if pre == "qwen2" else text
        assert tokenizer.encode(text) == llama.encode(text), text[:80]
