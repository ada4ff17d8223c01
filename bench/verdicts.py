"""HumanEval's 164 published solutions and 164 stubs, judged: verdicts a second, and whether all are right.

python bench/verdicts.py [--concurrency 4] [--limit 20]
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time

from lathe.sandbox.pool import open_pool
from lathe.tasks.humaneval import humaneval_problems, humaneval_solution, humaneval_task
from lathe.tasks.verify import verify_many


async def main(concurrency: int, limit: int | None) -> None:
    problems = list(humaneval_problems())[:limit]
    async with open_pool() as pool:
        for what, body, earned in (("solutions", None, 1.0), ("stubs", "    pass\n", 0.0)):
            pairs = [(humaneval_task(each), humaneval_solution(each, body)) for each in problems]
            started = time.monotonic()
            verdicts = await verify_many(pairs, pool, concurrency=concurrency)
            wall = time.monotonic() - started
            num_right = sum(verdict.reward == earned for verdict in verdicts)
            median = statistics.median(verdict.evidence.get("duration_s", 0.0) for verdict in verdicts)
            print(
                f"{what:9}  {num_right} of {len(verdicts)} earn {earned}  {wall:.1f} s"
                f"  {len(verdicts) / wall:.1f} verdicts/s  median {median * 1000:.0f} ms each"
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--limit", type=int)
    asyncio.run(main(**vars(parser.parse_args())))
