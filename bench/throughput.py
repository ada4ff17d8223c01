"""Lathe beside transformers on the same weights, in turn, in one run: prefill and decode in tokens a second.

    python bench/throughput.py [--rounds 5] [--models smollm2 moe1b]

"smollm2" is the real SmolLM2-135M-Instruct; "moe1b" a Qwen3-MoE of 915M parameters with random weights. Both
sides compute in float32 on the CPU, where narrower arithmetic is slower. Lathe is timed through its engine,
transformers through its model's forward with a cache (its `generate` adds some per-token cost on top).
Machines drift: only the ratios of paired rounds mean something.
"""

from __future__ import annotations

import argparse
import multiprocessing
import queue
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import transformers

from lathe import LLM, testing
from lathe.engine.engine import Engine, EngineConfig
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
# what, sequences, tokens of each prompt, new tokens of each
MEASUREMENTS = (("prefill 512", 1, 512, 1), ("decode, batch 1", 1, 128, 33), ("decode, batch 8", 8, 128, 33))


def main() -> None:
    options = parser().parse_args()
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {options.threads} threads,")
    print(f"commit {commit()}, {options.rounds} rounds: median tokens/s, median of paired ratios\n")
    print("| model | what | Lathe | transformers | ratio |")
    print("|---|---|---|---|---|")
    for name in options.models:
        with tempfile.TemporaryDirectory() as folder:
            path = resolve("smollm2") if name == "smollm2" else make_moe_1b(Path(folder))
            compare(name, path, options)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    made.add_argument("--rounds", type=int, default=5)
    made.add_argument("--threads", type=int, default=torch.get_num_threads())
    made.add_argument("--models", nargs="+", default=["smollm2", "moe1b"], choices=["smollm2", "moe1b"])
    return made


def compare(name: str, path: Path, options: argparse.Namespace) -> None:
    """Each side has a process of its own, as it would in use: two OpenMP pools in one hinder each other."""
    lathe, peer = (Side(serve, path, options.threads) for serve in (serve_lathe, serve_transformers))
    random.seed(0)
    rows: dict[str, list[tuple[float, float]]] = {}
    for _ in range(options.rounds + 1):
        for what, batch, num_prompt, num_new in MEASUREMENTS:
            prompts = [[random.randrange(32_000) for _ in range(num_prompt)] for _ in range(batch)]
            rows.setdefault(what, []).append(
                (lathe.measure(prompts, num_new), peer.measure(prompts, num_new))
            )
    lathe.stop()
    peer.stop()
    for what, (_, *pairs) in rows.items():  # the first round warms up
        ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratio = statistics.median(a / b for a, b in pairs)
        print(f"| {name} | {what} | {ours:.1f} | {theirs:.1f} | {ratio:.2f}x |", flush=True)


class Side:
    """A process that measures one of the two when asked to."""

    def __init__(self, serve: Callable[[Connection, Path], None], path: Path, threads: int):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=run_side, args=(serve, theirs, path, threads), daemon=True)
        self.process.start()

    def measure(self, prompts: list[list[int]], num_new: int) -> float:
        """Prompt tokens a second when one new token is asked for, else new tokens a second after it."""
        self.pipe.send((prompts, num_new))
        return self.pipe.recv()

    def stop(self) -> None:
        self.pipe.send(None)
        self.process.join()


def run_side(serve: Callable[[Connection, Path], None], pipe: Connection, path: Path, threads: int) -> None:
    torch.set_num_threads(threads)
    serve(pipe, path)


def serve_lathe(pipe: Connection, path: Path) -> None:
    # One step reads all eight prompts, so that decoding starts with all of them, as transformers' does.
    config = EngineConfig(kv_memory_bytes=2**30, prefill_chunk=8 * 128)
    with LLM(path, engine_config=config) as llm:
        while (asked := pipe.recv()) is not None:
            pipe.send(time_lathe(llm.engine, *asked))


def serve_transformers(pipe: Connection, path: Path) -> None:
    transformers.utils.logging.disable_progress_bar()
    load = transformers.AutoModelForCausalLM.from_pretrained
    if path.suffix == ".gguf":
        model = load(path.parent, gguf_file=path.name, dtype=torch.float32)
    else:
        model = load(path, dtype=torch.float32)
    while (asked := pipe.recv()) is not None:
        pipe.send(time_transformers(model, *asked))


def make_moe_1b(folder: Path) -> Path:
    torch.manual_seed(0)
    model = transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(**MOE_1B)).float()
    model.save_pretrained(folder)
    testing.tiny_tokenizer().save(folder)
    return folder


def time_lathe(engine: Engine, prompts: list[list[int]], num_new: int) -> float:
    reports: queue.SimpleQueue = queue.SimpleQueue()
    sampling = SamplingParams(temperature=0.0, max_tokens=num_new, ignore_eos=True)
    start = time.perf_counter()
    for prompt in prompts:
        engine.submit(tuple(prompt), sampling, reports.put)
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
