"""Is what the benchmarks say of llama.cpp what its own benchmarks say? Both in turn, medians of pairs.

    python bench/llamacpp/check.py [--models moe1b-q4_0 ...] [--rounds 5] [--options no-mmap ...]

peer.cpp beside `llama-bench` (decode at depth 128, prefill of 512) and `llama-batched-bench` (8 sequences).
A ratio above 1 means that peer.cpp gives llama.cpp the better number. `--options` are peer.cpp's: to see
whether one of them is faster than llama.cpp's defaults, which the benchmarks use.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from cpu import DEFAULT, MEASUREMENTS, Measurement, prompts_of
from cpu_models import MODELS, model_file
from llamacpp.build import built
from llamacpp.peer import Peer
from machine import MAX_TRIES, NOISE_LIMIT, describe, quietly


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    made.add_argument("--models", nargs="+", default=DEFAULT)
    made.add_argument("--rounds", type=int, default=5)
    made.add_argument("--threads", type=int, default=2)
    made.add_argument("--folder", type=Path, default=MODELS)
    made.add_argument("--tries", type=int, default=MAX_TRIES)
    made.add_argument("--options", nargs="*", default=[])
    options = made.parse_args()
    print(f"{describe()}, {options.threads} threads, {options.rounds} rounds: median tokens/s\n")
    print(
        "| model | what | peer.cpp | llama.cpp's own | ratio | noisy |\n|---|---|---|---|---|---|", flush=True
    )
    for name in options.models:
        path = model_file(name, options.folder.expanduser())
        with Peer(path, options.threads, *options.options) as peer:
            for measurement in MEASUREMENTS:
                print(
                    f"| {name} | {measurement.name} | {compare(peer, path, measurement, options)} |",
                    flush=True,
                )


def compare(peer: Peer, path: Path, measurement: Measurement, options: argparse.Namespace) -> str:
    rng = random.Random(1)  # llama-bench, too, reads random tokens
    following = [
        [rng.randrange(32_000) for _ in range(measurement.num_new - 1)] for _ in range(measurement.num_seqs)
    ]
    prompts = prompts_of(measurement)
    peer.measure(prompts, following)  # warms up, as theirs do
    pairs, noisy = [], 0
    for _ in range(options.rounds):
        seconds, noise = quietly(lambda: peer.measure(prompts, following), [peer.pid], options.tries)
        theirs, their_noise = quietly(lambda: own_rate(path, measurement, options.threads), [], options.tries)
        pairs.append((measurement.rate(*seconds), theirs))
        noisy += max(noise, their_noise) > NOISE_LIMIT
    ours, own = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(a / b for a, b in pairs)
    return f"{ours:.1f} | {own:.1f} | {ratio:.2f}x | {noisy} of {options.rounds}"


def own_rate(path: Path, measurement: Measurement, threads: int) -> float:
    """What llama.cpp's own benchmark measures once, warmed up: tokens a second."""
    if measurement.num_seqs > 1:
        shape = {"npp": measurement.num_prompt, "ntg": measurement.num_new - 1, "npl": measurement.num_seqs}
        command = [
            built("llama-batched-bench"),
            "-m",
            path,
            "-t",
            threads,
            "-c",
            4096,
            "--output-format",
            "jsonl",
        ]
        for name, value in shape.items():
            command += [f"-{name}", value]
        lines = [json.loads(line) for line in output(command).splitlines() if line.startswith("{")]
        return lines[-1]["speed_tg"]
    decode = measurement.num_new > 1
    what = ["-p", 0, "-n", measurement.num_new - 1, "-d", measurement.num_prompt]
    what = what if decode else ["-p", measurement.num_prompt, "-n", 0]
    command = [built("llama-bench"), "-m", path, "-t", threads, *what, "-r", 1, "-o", "json"]
    return json.loads(output(command))[-1]["avg_ts"]


def output(command: list) -> str:
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    main()
