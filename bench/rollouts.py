"""Rollouts a second with a scripted model, and where their time goes.

python bench/rollouts.py --concurrency 1 32 500
"""

from __future__ import annotations

import argparse
import asyncio
import re
import resource
import statistics
import time

from lathe.rollout import rollout
from lathe.rollout.many import Plan, attempt_all
from lathe.sandbox.pool import open_pool
from lathe.testing import ScriptedModel
from lathe.text.tool_calls import render
from lathe.types import HiddenTests, Limits, Rollout, Task, ToolCall

LIMITS = Limits(memory_bytes=512 << 20, num_processes=32, disk_bytes=64 << 20)


def word_task(word: str) -> Task:
    test = f"import words\n\ndef test_word():\n    assert words.word() == {word!r}\n"
    return Task(
        word,
        f"The word is [{word}]. Make words.word() return it.",
        HiddenTests(report="python", files={"test_word.py": test}),
        files={"words.py": "def word():\n    return None\n"},
        limits=LIMITS,
    )


def answer(prompt: str) -> str:
    """Two turns of bash, one of write, and a last word."""
    found = re.search(r"The word is \[([\w-]+)\]", prompt)
    assert found is not None
    word, done = found[1], prompt.count("</tool_response>")
    if done < 2:
        return render([ToolCall("bash", {"command": f"echo {done} >> log.txt; cat words.py log.txt"})])
    if done == 2:
        text = f"def word():\n    return {word!r}\n"
        return render([ToolCall("write", {"file_path": "words.py", "content": text})])
    return "It does."


async def measure(concurrency: int, count: int) -> list[str]:
    done: list[Rollout] = []
    model = ScriptedModel(answer=answer)
    async with open_pool("namespace") as pool:

        async def attempt(task: Task, number: int) -> Rollout:
            return await rollout(task, model, pool)

        plan = Plan([word_task(f"word-{place}") for place in range(count)])
        started, cpu = time.monotonic(), time.process_time()
        await attempt_all(
            plan.jobs(), attempt, concurrency=concurrency, on_done=lambda job, each: done.append(each)
        )
        took, cpu_s = time.monotonic() - started, time.process_time() - cpu
    assert len(done) == count
    assert all(each.verdict is not None and each.verdict.reward == 1.0 for each in done)
    phases = [
        f"{statistics.median(each.info['seconds'][phase] for each in done):.2f}"
        for phase in ("open", "agent", "patch", "verify")
    ]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return [
        str(concurrency),
        str(count),
        f"{count / took:.1f}",
        *phases,
        f"{cpu_s / took:.0%}",
        f"{peak:.0f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 32, 500])
    parser.add_argument("--count", type=int, help="rollouts at each; default: 20, or as many as run at once")
    given = parser.parse_args()
    heads = "at once", "rollouts", "a second", "open", "agent", "patch", "verify", "this process", "peak MiB"
    print("|", " | ".join(heads), "|")
    print("|---" * len(heads) + "|")
    for concurrency in given.concurrency:
        row = asyncio.run(measure(concurrency, given.count or max(20, concurrency)))
        print("|", " | ".join(row), "|", flush=True)


if __name__ == "__main__":
    main()
