"""Lathe beside llama.cpp on a CPU, on the same file: decode of one and of eight sequences, prefill.

    python bench/llamacpp/build.py      # once: llama.cpp for this very machine
    python bench/cpu.py [--models moe1b-q4_0 smollm2-q4_1 ...] [--rounds 9] [--threads 2]

Each side is a process that sleeps while the other is measured. A round measures Lathe and llama.cpp right
after one another, in turns which comes first, and the memory's bandwidth before each; the ratio is the
median of the rounds' ratios, because machines drift. A measurement during which other processes had more
than a tenth of a core is repeated; rounds that never were quiet are counted under "noisy".

What is fair to llama.cpp: it is built for this machine's instructions, with OpenMP, llamafile and
repacking on. It is timed in C++ without sampling, where Lathe's time holds its engine's scheduling and
greedy sampling. It reads the tokens that Lathe sampled, so that both route to the same experts. Its cache
is as long as the measurement needs, and one of each sequence's own, as its header recommends. Both sides
read eight prompts in one call. bench/llamacpp/check.py holds its numbers beside llama-bench's.

No prefix cache, no speculation. coder30b (17 GB) fits into memory once: there a round loads one side after
the other, and measures each three times.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

from cpu_models import MODELS, WRITERS, model_file
from lathe_side import LatheSide
from llamacpp.build import VERSION
from llamacpp.peer import Ids, Peer
from machine import MAX_TRIES, NOISE_LIMIT, Bandwidth, describe, kernels, quietly

from lathe.model.checkpoint import Quantize
from lathe.model.gguf import GgufFile, open_gguf

WEIGHTS: dict[str, Quantize | None] = {"keep": "keep", "float32": None}
DEFAULT = ["moe1b-q4_0", "moe1b-q8_0", "dense06-q4_0", "dense06-q8_0", "smollm2-q4_1"]


@dataclass(frozen=True)
class Measurement:
    name: str
    num_seqs: int
    num_prompt: int
    num_new: int

    def rate(self, prefill_s: float, decode_s: float) -> float:
        """Tokens a second: of the prompts where only one token follows, else those behind the first."""
        if self.num_new == 1:
            return self.num_seqs * self.num_prompt / prefill_s
        return self.num_seqs * (self.num_new - 1) / decode_s


DECODE = Measurement("decode, batch 1", 1, 128, 65)
MEASUREMENTS = (
    DECODE,
    Measurement("decode, 8 sequences", 8, 128, 33),
    Measurement("prefill 512", 1, 512, 1),
)


@dataclass(frozen=True)
class Sample:
    """Tokens a second, the memory's GB/s just before, and the share of a core that others had meanwhile."""

    rate: float
    bandwidth: float
    noise: float


Rounds = dict[Measurement, list[tuple[Sample, Sample]]]  # Lathe's and llama.cpp's


def main() -> None:
    options = parser().parse_args()
    print(f"{describe()}\nLathe's kernels: {kernels(options.threads)}")
    print(f"llama.cpp of llama-cpp-python {VERSION}, ", end="")
    print(f"{options.threads} threads, {options.rounds} rounds: medians\n")
    print(
        "| model | what | Lathe, tok/s | llama.cpp, tok/s | ratio | of bandwidth: Lathe | llama.cpp | noisy |"
    )
    print("|---|---|---|---|---|---|---|---|", flush=True)
    bandwidth = Bandwidth(options.threads)
    for name in options.models:
        path = model_file(name, options.folder.expanduser())
        compare = compare_apart if name.startswith("coder30b") else compare_beside
        num_bytes = bytes_per_token(open_gguf(path))
        for measurement, pairs in compare(path, bandwidth, options).items():
            print(row(name, measurement, pairs, num_bytes), flush=True)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    made.add_argument("--models", nargs="+", default=DEFAULT, help=f"of smollm2-q4_1, {', '.join(WRITERS)}")
    made.add_argument("--rounds", type=int, default=9)
    made.add_argument("--threads", type=int, default=2)
    made.add_argument(
        "--weights", default="keep", choices=list(WEIGHTS), help="Lathe's in memory: keep the file's"
    )
    made.add_argument("--folder", type=Path, default=MODELS, help="where cpu_models.py writes")
    made.add_argument("--tries", type=int, default=MAX_TRIES, help="of a measurement that others disturb")
    return made


def compare_beside(path: Path, bandwidth: Bandwidth, options: argparse.Namespace) -> Rounds:
    """Both sides are loaded, and each measurement of one is next to the other's."""
    rounds: Rounds = {measurement: [] for measurement in MEASUREMENTS}
    with (
        LatheSide(path, options.threads, WEIGHTS[options.weights]) as lathe,
        Peer(path, options.threads) as peer,
    ):
        following = {measurement: follow(lathe, measurement) for measurement in MEASUREMENTS}
        for measurement in MEASUREMENTS:
            agree(path, measurement, following[measurement], peer)
        for number in range(options.rounds):
            for measurement in MEASUREMENTS:
                sides = (lathe, peer) if number % 2 == 0 else (peer, lathe)
                by_side = {
                    side: sample(side, measurement, following[measurement], bandwidth, options.tries)
                    for side in sides
                }
                rounds[measurement].append((by_side[lathe], by_side[peer]))
                tell(path, measurement, *rounds[measurement][-1])
    return rounds


def compare_apart(path: Path, bandwidth: Bandwidth, options: argparse.Namespace) -> Rounds:
    """One side is loaded, measured and ended before the other is."""
    rounds: Rounds = {measurement: [] for measurement in MEASUREMENTS}
    following: dict[Measurement, Ids] = {}
    for _ in range(options.rounds):
        with LatheSide(path, options.threads, WEIGHTS[options.weights]) as lathe:
            following = {measurement: follow(lathe, measurement) for measurement in MEASUREMENTS}
            ours = sample_thrice(lathe, following, bandwidth, options.tries)
        with Peer(path, options.threads) as peer:
            for measurement in MEASUREMENTS:
                agree(path, measurement, following[measurement], peer)
            theirs = sample_thrice(peer, following, bandwidth, options.tries)
        for measurement in MEASUREMENTS:
            rounds[measurement].append((ours[measurement], theirs[measurement]))
            tell(path, measurement, ours[measurement], theirs[measurement])
    return rounds


def follow(lathe: LatheSide, measurement: Measurement) -> Ids:
    """What Lathe samples: also its warm-up."""
    lathe.generate(prompts_of(measurement), measurement.num_new)
    return lathe.last_ids


def agree(path: Path, measurement: Measurement, sampled: Ids, peer: Peer) -> None:
    """Says how many of Lathe's tokens llama.cpp finds likeliest, too: do they run the same model?"""
    likeliest = peer.greedy(prompts_of(measurement), [ids[:-1] for ids in sampled])
    pairs = [pair for both in zip(sampled, likeliest, strict=True) for pair in zip(*both, strict=True)]
    same = sum(ours == theirs for ours, theirs in pairs)
    print(
        f"{path.stem}, {measurement.name}: {same} of {len(pairs)} tokens are llama.cpp's too", file=sys.stderr
    )


def sample(
    side: LatheSide | Peer, measurement: Measurement, sampled: Ids, bandwidth: Bandwidth, tries: int
) -> Sample:
    prompts, following = prompts_of(measurement), [ids[:-1] for ids in sampled]
    speed, _ = quietly(bandwidth.measure, [], tries)
    seconds, noise = quietly(lambda: side.measure(prompts, following), [side.pid], tries)
    return Sample(measurement.rate(*seconds), speed, noise)


def sample_thrice(
    side: LatheSide | Peer, following: dict[Measurement, Ids], bandwidth: Bandwidth, tries: int
) -> dict[Measurement, Sample]:
    found: dict[Measurement, Sample] = {}
    for measurement, sampled in following.items():
        samples = [sample(side, measurement, sampled, bandwidth, tries) for _ in range(3)]
        found[measurement] = sorted(samples, key=lambda one: one.rate)[1]
    return found


def prompts_of(measurement: Measurement) -> list[list[int]]:
    """The same in each round: sampled tokens are, too, then."""
    rng = random.Random(0)
    return [
        [rng.randrange(32_000) for _ in range(measurement.num_prompt)] for _ in range(measurement.num_seqs)
    ]


def tell(path: Path, measurement: Measurement, ours: Sample, theirs: Sample) -> None:
    print(
        f"{path.stem}, {measurement.name}: {ours.rate:.1f} and {theirs.rate:.1f} tok/s, "
        f"{ours.rate / theirs.rate:.2f}x, at {ours.bandwidth:.1f} and {theirs.bandwidth:.1f} GB/s, "
        f"noise {ours.noise:.0%} and {theirs.noise:.0%}",
        file=sys.stderr,
    )


def row(name: str, measurement: Measurement, pairs: list[tuple[Sample, Sample]], num_bytes: int) -> str:
    sides = list(zip(*pairs, strict=True))
    ours, theirs = (statistics.median(one.rate for one in side) for side in sides)
    ratio = statistics.median(a.rate / b.rate for a, b in pairs)
    shares = ["", ""]
    if measurement is DECODE:  # the one that only waits for memory
        shares = [f"{median_share(side, num_bytes):.0%}" for side in sides]
        speed = statistics.median(one.bandwidth for one in sides[0])
        shares[0] += f" of {speed:.1f} GB/s"
    noisy = sum(max(a.noise, b.noise) > NOISE_LIMIT for a, b in pairs)
    return (
        f"| {name} | {measurement.name} | {ours:.1f} | {theirs:.1f} | {ratio:.2f}x "
        f"| {shares[0]} | {shares[1]} | {noisy} of {len(pairs)} |"
    )


def median_share(samples: tuple[Sample, ...], num_bytes: int) -> float:
    return statistics.median(num_bytes * one.rate / (1e9 * one.bandwidth) for one in samples)


def bytes_per_token(file: GgufFile) -> int:
    """Bytes of weights that a step for one token reads: the chosen experts; an embedding only as a head."""
    config, total = file.config, 0
    for name, container in file.containers.items():
        num_bytes = container.tensors[name].num_bytes
        if "_exps." in name:
            num_bytes = num_bytes * config.num_experts_per_tok // config.num_experts
        if name != "token_embd.weight" or config.tie_word_embeddings:
            total += num_bytes
    return total


if __name__ == "__main__":
    main()
