"""Writes the models that Lathe and llama.cpp are compared on, as GGUF files that both run.

    python bench/cpu_models.py [--folder ~/.cache/lathe-bench/models] [moe1b-q4_0 dense06-q8_0 ...]

Without names: all but coder30b-q4_0, whose 17 GB are only written when it is named. What is there already
stays.

moe1b       Qwen3-MoE, 915M parameters, 177M of them read per token; random weights
dense06     the shape of Qwen3-0.6B, head tied to the embedding; random weights
coder30b    the shape of Qwen3-Coder-30B-A3B; random weights, drawn as Q4_0 blocks
smollm2     the real SmolLM2-135M-Instruct: -q4_1 is the file as it was published; the others are made from it

In the types f32, q8_0 and q4_0 all matrices have that one type, embedding and head included, as
`llama-quantize --pure` does it. Vectors and routers are float32 as always. One seed makes the same floats
for each type. The random models' vocabulary is made of bytes and numbers, for text has no meaning to them.
"""

from __future__ import annotations

import argparse
import math
import shutil
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from llamacpp.build import FOLDER
from tokenizers.pre_tokenizers import ByteLevel

from lathe.model.config import ModelConfig
from lathe.model.gguf import open_gguf, read_slot, type_for, write_gguf
from lathe.model.gguf_container import OutgoingTensor, write_container
from lathe.model.gguf_names import Slot, config_to_metadata, slots
from lathe.model.gguf_types import F32, Q4_0, GgufType
from lathe.model.hub import resolve
from lathe.model.presets import preset

MODELS = FOLDER / "models"
STD = 0.02
MOE_1B = ModelConfig(
    architecture="qwen3_moe",
    vocab_size=32_768,
    hidden_size=1024,
    num_layers=16,
    num_heads=8,
    num_kv_heads=2,
    head_dim=128,
    intermediate_size=3072,
    num_experts=32,
    num_experts_per_tok=4,
    moe_intermediate_size=512,
    max_position_embeddings=32_768,
)


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    made.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(WRITERS)}")
    made.add_argument("--folder", type=Path, default=MODELS)
    options = made.parse_args()
    for name in options.names or [name for name in WRITERS if name != "coder30b-q4_0"]:
        print(f"{name}: {model_file(name, options.folder.expanduser())}", flush=True)


def model_file(name: str, folder: Path = MODELS) -> Path:
    """The model's file, written now if it isn't there. Exits for an unknown name or a full disk."""
    if name == "smollm2-q4_1":
        return resolve("smollm2")
    if name not in WRITERS:
        sys.exit(f"{name!r} is no model of the benchmark; known are smollm2-q4_1, {', '.join(WRITERS)}")
    path = folder / f"{name}.gguf"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        started = time.perf_counter()
        WRITERS[name](path)
        print(
            f"wrote {path.stat().st_size / 1e9:.2f} GB in {time.perf_counter() - started:.0f} s", flush=True
        )
    return path


def write_random(path: Path, config: ModelConfig, type: str) -> None:
    def read(slot: Slot, expert: int | None) -> torch.Tensor:
        shape = slot.shape if expert is None else slot.shape[1:]
        if len(slot.shape) == 1:
            return torch.ones(shape)
        seed = zlib.crc32(f"{slot.gguf} {expert}".encode())
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * STD

    write_gguf(path, config, read, type=type, pure=True, metadata=vocabulary(config.vocab_size))


def write_smollm2(path: Path, type: str) -> None:
    """The published Q4_1 weights as floats, and those rounded to `type`."""
    file = open_gguf(resolve("smollm2"))

    def read(slot: Slot, _: int | None) -> torch.Tensor:
        values = torch.empty(slot.shape)
        read_slot(file, slot, values)
        return values

    write_gguf(
        path,
        file.config,
        read,
        type=type,
        pure=True,
        metadata={key: value for key, value in file.metadata.items() if key.startswith("tokenizer.ggml.")},
        chat_template=file.chat_template,
        generation=file.generation_config,
    )


def write_blocks(path: Path, config: ModelConfig) -> None:
    """Q4_0 blocks of random bits with scales that make their standard deviation STD: no float is quantized.

    A block's numbers are -8 to 7, whose mean is not 0: half of the scales are negative, so that the matrix's
    is. The file is written in pieces of 64 MB.
    """
    spread = math.sqrt(np.square(np.arange(-8.0, 8.0)).mean())
    random = np.random.Generator(np.random.SFC64(0))

    def chunks(slot: Slot, type: GgufType) -> Iterator[torch.Tensor]:
        if type is F32:
            ones = len(slot.shape) == 1
            values = torch.ones(slot.shape) if ones else torch.from_numpy(random.standard_normal(slot.shape))
            yield (values if ones else values * STD).float().flatten().view(torch.uint8)
            return
        remaining = math.prod(slot.shape) // type.block_size
        while remaining:
            count = min(remaining, 64_000_000 // type.block_bytes)
            blocks = np.frombuffer(random.bytes(count * type.block_bytes), np.uint8).reshape(count, -1).copy()
            signs = random.integers(0, 2, count) * 2 - 1
            scales = (signs * random.uniform(0.9, 1.1, count) * STD / spread).astype("<f2")
            blocks[:, :2] = scales.view(np.uint8).reshape(count, 2)
            yield torch.from_numpy(blocks.reshape(-1))
            remaining -= count

    pairs = {
        **config_to_metadata(config),
        "general.type": "model",
        "general.name": path.stem,
        **vocabulary(config.vocab_size),
        "general.file_type": Q4_0.id,
        "general.quantization_version": 2,
    }
    tensors = []
    for slot in slots(config):
        type = type_for(slot, "q4_0", config, pure=True)
        tensors.append(OutgoingTensor(slot.gguf, slot.shape, type, partial(chunks, slot, type)))
    needed, free = sum(tensor.num_bytes for tensor in tensors), shutil.disk_usage(path.parent).free
    if free < needed + 10e9:
        sys.exit(f"{path} takes {needed / 1e9:.0f} GB, and its disk has {free / 1e9:.0f} free")
    write_container(path, pairs, tensors)


def vocabulary(num_rows: int) -> dict[str, Any]:
    """Byte-level BPE without merges: 256 bytes, then tokens that stand for nothing, then an end."""
    tokens = sorted(ByteLevel.alphabet())
    tokens += [f"Ġ{number}" for number in range(len(tokens), num_rows - 1)] + ["<|endoftext|>"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * (num_rows - 1) + [3],
        "tokenizer.ggml.merges": [],
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.eos_token_id": num_rows - 1,
    }


WRITERS: dict[str, Callable[[Path], None]] = {
    **{f"moe1b-{type}": partial(write_random, config=MOE_1B, type=type) for type in ("q4_0", "q8_0", "f32")},
    **{
        f"dense06-{type}": partial(write_random, config=preset("qwen3-0.6b"), type=type)
        for type in ("q4_0", "q8_0")
    },
    **{f"smollm2-{type}": partial(write_smollm2, type=type) for type in ("q4_0", "q8_0", "f32")},
    "coder30b-q4_0": partial(write_blocks, config=preset("qwen3-coder-30b-a3b-instruct")),
}


if __name__ == "__main__":
    main()
