"""What quantized weights cost, in Lathe and in llama.cpp: distance from float32 on a fixed text, same files.

    python bench/quality.py [--models smollm2 moe1b] [--tokens 4096] [--threads 2]

The text is source code from Python's standard library, in windows of 512 tokens; numbers compare where the
hash of the text, which is printed, is the same. The reference is Lathe's float32 model in plain PyTorch. All
types are made from the reference's very weights (smollm2's are the published Q4_1 ones: for that type the
weights are exact, and only the arithmetic differs).

Perplexity over all tokens but each window's first; mean KL divergence from the reference in nats; how often
the likeliest token is the reference's. Lathe's logits are those that its engine samples from; llama.cpp's
come with its defaults, which keep keys and values in float16.
"""

from __future__ import annotations

import argparse
import hashlib
import heapq
import textwrap
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import torch
from cpu_models import MODELS, model_file
from lathe_side import engine_of
from llamacpp.build import VERSION
from llamacpp.peer import Peer
from machine import describe, kernels
from torch import Tensor

from lathe.engine.engine import Engine
from lathe.engine.loading import load_tokenizer
from lathe.model.checkpoint import open_checkpoint
from lathe.types import SamplingParams

# T tokens, V vocabulary

WINDOW = 512
SOURCES = (textwrap, heapq)
TYPES = {"smollm2": ("q8_0", "q4_1", "q4_0"), "moe1b": ("q8_0", "q4_0")}


@dataclass
class Distance:
    """Sums over the tokens that were scored."""

    num_tokens: int = 0
    surprise: float = 0.0
    kl: float = 0.0
    num_same: int = 0

    def add(self, ids: list[int], logits_TV: Tensor, reference_TV: Tensor) -> None:
        """One window: each row of logits scores the token behind its own."""
        for start in range(0, len(ids) - 1, 64):  # float64 of a few rows at a time
            rows = slice(start, min(start + 64, len(ids) - 1))
            ours, theirs = (logits[rows].double().log_softmax(-1) for logits in (logits_TV, reference_TV))
            following = torch.tensor(ids[rows.start + 1 : rows.stop + 1])
            self.num_tokens += len(following)
            self.surprise -= ours.gather(-1, following[:, None]).sum().item()
            self.kl += (theirs.exp() * (theirs - ours)).sum().item()
            self.num_same += int((ours.argmax(-1) == theirs.argmax(-1)).sum())

    def row(self, *names: str) -> str:
        perplexity = torch.tensor(self.surprise / self.num_tokens).exp().item()
        share = self.num_same / self.num_tokens
        return f"| {' | '.join(names)} | {perplexity:.4f} | {self.kl / self.num_tokens:.2e} | {share:.2%} |"


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    made.add_argument("--models", nargs="+", default=list(TYPES), choices=list(TYPES))
    made.add_argument("--tokens", type=int, default=4096)
    made.add_argument("--threads", type=int, default=2)
    made.add_argument("--folder", type=Path, default=MODELS, help="where cpu_models.py writes")
    options = made.parse_args()
    torch.set_num_threads(options.threads)
    text = "".join(Path(str(module.__file__)).read_text(encoding="utf-8") for module in SOURCES)
    print(f"{describe()}\nLathe's kernels: {kernels(options.threads)}")
    print(f"llama.cpp of llama-cpp-python {VERSION}; {options.tokens} tokens of a text with ", end="")
    print(f"the SHA-256 {hashlib.sha256(text.encode()).hexdigest()[:16]}\n")
    print("| model | type | engine | perplexity | mean KL from float32 | same likeliest token |")
    print("|---|---|---|---|---|---|", flush=True)
    for name in options.models:
        compare(name, text, options)


def compare(name: str, text: str, options: argparse.Namespace) -> None:
    folder = options.folder.expanduser()
    exact = model_file(f"{name}-f32", folder)
    ids = list(load_tokenizer(open_checkpoint(exact)).encode(text))[: options.tokens]
    windows = [ids[start : start + WINDOW] for start in range(0, len(ids), WINDOW)]
    with lathe_logits(exact, quantize=None, compiled=False) as logits:
        reference = [logits(window) for window in windows]
    print(measure(windows, reference, reference).row(name, "f32", "the reference"), flush=True)
    for type in ("f32", *TYPES[name]):
        path = model_file(f"{name}-{type}", folder)
        with lathe_logits(path) as logits:
            found = measure(windows, map(logits, windows), reference)
        print(found.row(name, type, "Lathe"), flush=True)
        with Peer(path, options.threads) as peer:
            theirs = (torch.from_numpy(peer.logits(window)) for window in windows)
            print(measure(windows, theirs, reference).row(name, type, "llama.cpp"), flush=True)


def measure(windows: list[list[int]], found: Iterable[Tensor], reference: list[Tensor]) -> Distance:
    distance = Distance()
    for window, logits_TV, reference_TV in zip(windows, found, reference, strict=True):
        distance.add(window, logits_TV, reference_TV)
    return distance


@contextmanager
def lathe_logits(path: Path, **options) -> Iterator[Callable[[list[int]], Tensor]]:
    """A function from a window's ids to float32 [T, V], as the engine computes them."""
    engine = engine_of(path, **options)
    steps: list[Tensor] = []
    run = engine.runner.run

    def kept(*args, **options) -> Tensor:
        logits_RV = run(*args, **options)
        steps.append(logits_RV.float().clone())
        return logits_RV

    def logits(window: list[int]) -> Tensor:
        steps.clear()
        read_whole(engine, window)
        return torch.cat(steps)

    engine.runner.run = kept
    try:
        yield logits
    finally:
        engine.close()


def read_whole(engine: Engine, window: list[int]) -> None:
    """Has the engine score a prompt, for which it computes the logits of all its tokens."""
    reports: SimpleQueue = SimpleQueue()
    engine.submit(tuple(window), SamplingParams(max_tokens=0, prompt_logprobs=0), reports.put)
    if error := reports.get().error:
        raise error


if __name__ == "__main__":
    main()
