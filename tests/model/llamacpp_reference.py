"""llama.cpp as a reference: it runs a GGUF file and says how likely it finds the next tokens."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xllamacpp

from lathe.model.checkpoint import Checkpoint


@dataclass(frozen=True)
class Continuation:
    """Greedy tokens, and for each the ids and log-probabilities of the likeliest ten, best first."""

    token_ids: list[int]
    top: list[list[tuple[int, float]]]


def continue_greedily(path: Path, prompt: list[int], count: int) -> Continuation:
    """Runs llama.cpp with a float32 cache and without its fused attention, which rounds to float16."""
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.n_gpu_layers = 512, 1, 0
    params.warmup, params.fit_params, params.verbosity = False, False, -1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    answer = xllamacpp.Server(params).handle_completions(
        {"prompt": prompt, "n_predict": count, "temperature": 0, "n_probs": 10}
    )
    assert "choices" in answer, answer
    steps = answer["choices"][0]["logprobs"]["content"]
    assert len(steps) == count or len(steps) > 8  # a random model may end its turn
    top = [[(entry["id"], entry["logprob"]) for entry in step["top_logprobs"]] for step in steps]
    return Continuation([step["id"] for step in steps], top)


def plain_vocabulary(_: Checkpoint, rows: int) -> dict[str, Any]:
    """Byte-level BPE with no merges whose tokens are all whole characters: llama.cpp reports no half ones."""
    tokens = [chr(33 + number) if number < 94 else f"token{number}" for number in range(rows)]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * rows,
        "tokenizer.ggml.merges": [],
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.eos_token_id": rows - 1,  # without one, llama.cpp takes number 11
    }
