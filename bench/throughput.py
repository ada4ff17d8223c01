"""Lathe beside transformers on the same weights, in turn, in one run: prefill and decode in tokens a second.

    python bench/throughput.py [--rounds 5] [--models smollm2 moe1b]

"smollm2" is the real SmolLM2-135M-Instruct; "moe1b" a Qwen3-MoE of 915M parameters with random weights. Both
sides compute in float32 on the CPU, where narrower arithmetic is slower. Lathe is timed through its engine,
transformers through its model's forward with a cache (its `generate` adds some per-token cost on top).
Machines drift: only the ratios of paired rounds mean something.
"""

from __future__ import annotations

import argparse
import queue
import statistics
import subprocess
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
import transformers

from lathe.engine.engine import Engine, EngineConfig
from lathe.model.checkpoint import load_model, open_checkpoint
from lathe.model.hub import resolve
from lathe.types import SamplingParams

MOE_1B = dict(
    vocab_size=32_768,
    hidden_size=1024,
    intermediate_size=3072,
    moe_intermediate_size=512,
    num_hidden_layers=16,
    num_attention_heads=8,
    num_key_value_heads=2,
    head_dim=128,
    num_experts=32,
    num_experts_per_tok=4,
    tie_word_embeddings=False,
    max_position_embeddings=4096,
)
PROMPT, NEW = 512, 32


def main() -> None:
    options = parser().parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {options.threads} threads,")
    print(f"commit {commit()}, {options.rounds} rounds: median tokens/s, median of paired ratios\n")
    print("| model | what | Lathe | transformers | ratio |")
    print("|---|---|---|---|---|")
    for name in options.models:
        with tempfile.TemporaryDirectory() as folder:
            compare(name, Path(folder), options.rounds)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    made.add_argument("--rounds", type=int, default=5)
    made.add_argument("--threads", type=int, default=torch.get_num_threads())
    made.add_argument("--models", nargs="+", default=["smollm2", "moe1b"], choices=["smollm2", "moe1b"])
    return made


def compare(name: str, folder: Path, rounds: int) -> None:
    path, theirs = resolve("smollm2"), None
    if name == "smollm2":
        theirs = transformers.AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32
        )
    else:
        torch.manual_seed(0)
        theirs = transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(**MOE_1B)).float()
        theirs.save_pretrained(folder)
        path = folder
    # One step reads all eight prompts, so that decoding starts with all of them, as transformers' does.
    config = EngineConfig(kv_memory_bytes=2**30, prefill_chunk=8 * 128)
    ours = Engine(load_model(open_checkpoint(path)), config=config)
    vocab = theirs.config.vocab_size
    rows: dict[str, list[tuple[float, float]]] = {}
    for _ in range(rounds):
        for what, batch in (("prefill 512", 1), ("decode, batch 1", 1), ("decode, batch 8", 8)):
            prompts = torch.randint(vocab, (batch, PROMPT if "prefill" in what else 128)).tolist()
            num_new = 1 if "prefill" in what else NEW
            measured = (time_lathe(ours, prompts, num_new), time_transformers(theirs, prompts, num_new))
            rows.setdefault(what, []).append(measured)
    ours.close()
    for what, pairs in rows.items():
        lathe, peer = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratio = statistics.median(a / b for a, b in pairs)
        print(f"| {name} | {what} | {lathe:.1f} | {peer:.1f} | {ratio:.2f}x |", flush=True)


def time_lathe(engine: Engine, prompts: list[list[int]], num_new: int) -> float:
    """Prompt tokens a second when one token is asked for, else new tokens a second after the first."""
    reports: queue.SimpleQueue = queue.SimpleQueue()
    sampling = SamplingParams(temperature=0.0, max_tokens=num_new, ignore_eos=True)
    start = time.perf_counter()
    for prompt in prompts:
        engine.submit(tuple(prompt), replace(sampling), reports.put)
    for _ in prompts:
        reports.get()
    first = time.perf_counter()
    if num_new == 1:
        return len(prompts[0]) / (first - start)
    remaining = len(prompts) * num_new - len(prompts)
    for _ in range(remaining):
        reports.get()
    return remaining / (time.perf_counter() - first)


@torch.inference_mode()
def time_transformers(model, prompts: list[list[int]], num_new: int) -> float:
    ids = torch.tensor(prompts)
    start = time.perf_counter()
    out = model(ids, use_cache=True, logits_to_keep=1)
    token = out.logits[:, -1:].argmax(-1)
    first = time.perf_counter()
    if num_new == 1:
        return ids.shape[1] / (first - start)
    for _ in range(num_new - 1):
        out = model(token, past_key_values=out.past_key_values, use_cache=True, logits_to_keep=1)
        token = out.logits[:, -1:].argmax(-1)
    return len(prompts) * (num_new - 1) / (time.perf_counter() - first)


def commit() -> str:
    return subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()


if __name__ == "__main__":
    main()
