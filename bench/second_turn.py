"""What an agent's second turn costs: time to the first token with the prefix cache, and without.

    python bench/second_turn.py --tokens 17300 7000 1300

The first prompt is as long as a coding agent's (Qwen Code sends 17,300 tokens, opencode 7,000, pi 1,300); the
second holds it, the reply, and a tool's result of 800 tokens. SmolLM2, its context stretched to 32,768.
"""

import argparse
import random
import statistics
import time

from lathe import LLM
from lathe.engine.engine import EngineConfig
from lathe.types import SamplingParams

REPLY, RESULT = 60, 800


def first_token(llm: LLM, prompt: list[int], count: int) -> tuple[float, list[int], int]:
    """Seconds to the first token, the reply's ids, and how many of the prompt's tokens were cached."""
    started = time.perf_counter()
    first = None
    for chunk in llm.stream_generate(
        prompt, SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True)
    ):
        first = first or time.perf_counter() - started
        completion = chunk.completion
    assert first is not None
    assert completion is not None
    return first, list(completion.token_ids), completion.num_cached_tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=[17_300, 7_000, 1_300])
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    rng = random.Random(0)
    llm = LLM("smollm2", yarn=4.0, engine_config=EngineConfig(max_num_seqs=2))
    print(f"{'first prompt':>12}  {'turn 1':>8}  {'turn 2':>8}  {'cached':>7}  {'cold':>8}  ratio")
    for num_tokens in options.tokens:
        rows = []
        for _ in range(options.rounds):
            first = [rng.randrange(1000, 40_000) for _ in range(num_tokens)]
            first_s, reply, _ = first_token(llm, first, REPLY)
            second = first + reply + [rng.randrange(1000, 40_000) for _ in range(RESULT)]
            warm_s, _, num_cached = first_token(llm, second, 1)
            llm.engine.pool.forget_all()  # nothing runs now, so nobody else touches it
            cold_s, _, _ = first_token(llm, second, 1)
            rows.append((first_s, warm_s, cold_s, num_cached / len(second)))
        first_s, warm_s, cold_s, share = (statistics.median(column) for column in zip(*rows, strict=True))
        print(
            f"{num_tokens:>12,}  {first_s:>6.1f} s  {warm_s:>6.2f} s  {share:>6.1%}  {cold_s:>6.1f} s  "
            f"{cold_s / warm_s:.1f}x",
            flush=True,
        )
    llm.close()


if __name__ == "__main__":
    main()
