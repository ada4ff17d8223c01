"""What is correct: an attempt's patch, laid over a clean sandbox and judged there by tests that it never saw.

The verdict is written out here, from what each test was seen to do; no exit code decides. A fault of the
machine at any step makes the verdict invalid: it says nothing of the attempt.
"""

from __future__ import annotations

import asyncio
import json
import posixpath
import secrets
import sys
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from importlib import resources
from typing import Any

from lathe.errors import InfrastructureError, SandboxError
from lathe.sandbox.pool import Pool
from lathe.tasks.controls import with_controls
from lathe.tasks.patch import NEVER, Listing, Patch, apply_patch, take_listing
from lathe.tasks.place import open_place
from lathe.tasks.reports import Report, names_of_tests, outcomes_of, read_signed_records, score
from lathe.types import ExecResult, Sandbox, Task, Verdict

# What decides how tests are found and run is the task's, not the attempt's.
ALWAYS_PROTECTED = (
    "conftest.py", "*/conftest.py", "pytest.ini", ".pytest.ini", "tox.ini", "setup.cfg", "pyproject.toml",
    "sitecustomize.py", "*/sitecustomize.py", "usercustomize.py", "*/usercustomize.py", "*.pth", "pyvenv.cfg",
)  # fmt: skip
# A file of such a name beside the tests would stand before the real module.
PRELOADED = ("unittest", "unittest.mock", "unittest.case", "random", "math", "re", "itertools", "collections",
             "dataclasses", "decimal", "fractions", "functools", "operator", "string", "time", "datetime",
             "tempfile", "subprocess", "inspect", "copy", "pathlib", "typing", "io", "contextlib", "asyncio",
             "_pytest.assertion.rewrite", "_pytest.python", "_pytest.unittest")  # fmt: skip
OUTPUT_BYTES = 16 << 20
MAX_EVIDENCE_CHARS = 4000
STDIO_BYTES = 8 << 20

Judge = Callable[[Task, Sandbox, Patch], Coroutine[Any, Any, Report]]


async def verify(task: Task, patch: Patch, pool: Pool) -> Verdict:
    """The reward is 1.0 when every deciding test passed, else 0.0; `evidence` has what became of each.

    Never raises for what the attempt or the machine did: an infrastructure fault is an invalid verdict.
    """
    started = time.monotonic()
    kept = patch.without((*ALWAYS_PROTECTED, *task.protected, *task.tests.files), "protected")
    kept = kept.without(NEVER, "never part of a patch")
    needed = deciding_tests(task)
    suspects: list[str] = []
    try:
        report, left_out = await judge(task, kept, pool, JUDGES[task.tests.report])
        if not report.passed and not report.texts:
            await check_judge_runs(task, pool)
        outcomes, timed_out = score(report, needed), report.timed_out
        if task.tests.report == "pytest" and is_solved(outcomes) and not report.suspects:
            control, _ = await judge(task, kept, pool, partial(judge_with_pytest, spoiled=True))
            suspects = in_spite_of(control, task, needed)
            if control.timed_out:
                outcomes, timed_out = dict.fromkeys(outcomes, "missing"), True
    except SandboxError as error:
        return Verdict(reason=f"{type(error).__name__}: {error}")
    suspects = [*report.suspects, *suspects]
    evidence = {
        "num_tests": len(outcomes),
        "num_passed": sum(outcome == "passed" for outcome in outcomes.values()),
        "failed": {name: outcome for name, outcome in outcomes.items() if outcome != "passed"},
        "texts": dict(list(report.texts.items())[:20]),
        "left_out": left_out,
        "timed_out": timed_out,
        "log": report.log[-MAX_EVIDENCE_CHARS:],
        "duration_s": round(time.monotonic() - started, 3),
    }
    suspect = "; ".join(suspects) or None
    return Verdict(1.0 if is_solved(outcomes) and suspect is None else 0.0, evidence, suspect=suspect)


async def verify_many(
    attempts: Iterable[tuple[Task, Patch]], pool: Pool, *, concurrency: int = 8
) -> list[Verdict]:
    """The verdicts in the attempts' order, so many at once. When it is cancelled, no sandbox stays behind."""
    turns = asyncio.Semaphore(concurrency)

    async def one(task: Task, patch: Patch) -> Verdict:
        async with turns:
            return await verify(task, patch, pool)

    async with asyncio.TaskGroup() as group:
        running = [group.create_task(one(task, patch)) for task, patch in attempts]
    return [each.result() for each in running]


async def judge(task: Task, patch: Patch, pool: Pool, run: Judge) -> tuple[Report, dict[str, str]]:
    """One judge's report from a sandbox of its own, and the changes that were not made there."""
    shadows = [path for path in patch.changes if shadows_module(task, path)]
    box = await open_place(task, pool)
    try:
        before = await take_listing(box) if shadows else Listing({})
        refused = await apply_patch(box, patch)
        report = await run(task, box, patch)
    finally:
        with suppress(SandboxError):
            await box.close()
    new = [path for path in shadows if path not in before.entries]
    seen = tuple(f"{path} stands before Python's own module" for path in new)
    return replace(report, suspects=report.suspects + seen), {**patch.left_out, **refused}


async def check_judge_runs(task: Task, pool: Pool) -> None:
    """Raises InfrastructureError where the task's own place lacks what its judge needs: a judge that could
    not start says nothing of the attempt."""
    needs = {"pytest": "import pytest", "python": "import ctypes, json"}.get(task.tests.report)
    if needs is None:
        return
    box = await open_place(task, pool)
    try:
        told = await box.python(needs)
    finally:
        with suppress(SandboxError):
            await box.close()
    if told.exit_code != 0:
        last = (told.stderr.strip() or f"exit code {told.exit_code}").splitlines()[-1]
        raise InfrastructureError(f"the task's judge can't run in its place: {last}")


def is_solved(outcomes: Mapping[str, str]) -> bool:
    return bool(outcomes) and set(outcomes.values()) == {"passed"}


def in_spite_of(control: Report, task: Task, needed: list[str]) -> list[str]:
    """What is suspect about a run of spoiled tests: each must be seen to fail, unless time ran out."""
    own = {name for path in files_with_tests(task) for name in names_of_tests(path, task.tests.files[path])}
    signs = list(control.suspects)
    for name in needed:
        if name.split("[")[0] not in own:
            continue
        outcomes = outcomes_of(control, name)
        if any(outcomes):
            signs.append(f"{name} passes whatever it asks")
        elif not outcomes and not control.timed_out:
            signs.append(f"{name} passes, but is not seen to fail when it must")
    return signs


def deciding_tests(task: Task) -> list[str]:
    """The names of the tests that an attempt must pass."""
    tests = task.tests
    if tests.must_pass:
        return list(tests.must_pass)
    if tests.report == "stdio":
        return [f"case {place}" for place in range(1, len(tests.cases) + 1)]
    names = [name for path in files_with_tests(task) for name in names_of_tests(path, tests.files[path])]
    return names if tests.report == "pytest" else names or files_with_tests(task)


def files_with_tests(task: Task) -> list[str]:
    """The hidden files that hold tests."""
    return [path for path in task.tests.files if posixpath.basename(path).startswith("test_")]


def shadows_module(task: Task, path: str) -> bool:
    """Would this file be imported in the place of one of Python's own modules, or of the test runner?"""
    if task.tests.report != "pytest":
        return False
    folder, name = posixpath.split(path)
    on_path = {"", *(posixpath.dirname(test) for test in task.tests.files)}
    package, module = posixpath.split(folder)
    own = sys.stdlib_module_names | {"pytest", "_pytest", "pluggy", "hypothesis"}
    if name == "__init__.py":
        return package in on_path and module in own
    return folder in on_path and name.endswith(".py") and name[:-3] in own


# The judges


async def judge_with_pytest(task: Task, box: Sandbox, patch: Patch, spoiled: bool = False) -> Report:
    """Hidden files are laid into the workdir and run by pytest; see `inside/pytest_judge.py`. Those with the
    tests are empty there: pytest has their code from memory."""
    tests = task.tests
    in_memory = files_with_tests(task)
    for path, text in tests.files.items():
        await box.write(path, "" if path in in_memory else text)
    hidden = list(tests.files)
    before = await take_listing(box, hidden)
    key = secrets.token_bytes(32)
    job = {
        "folder": box.workdir,
        "hidden": hidden,
        "patched": list(patch.changes),
        "paths": in_memory,
        "tests": {path: with_controls(tests.files[path], spoiled=spoiled) for path in in_memory},
        "arguments": list(tests.command),
        "preload": PRELOADED,
        "key": key.hex(),
    }
    done = await run_inside(box, "pytest_judge.py", job, tests.timeout_s)
    passed, texts, suspects = read_signed_records(done.stdout, key)
    after = await take_listing(box, hidden)
    suspects += [
        f"{path} was changed while the tests ran"
        for path in hidden
        if after.entries.get(path) != before.entries.get(path)
    ]
    return Report(passed, texts, tuple(suspects), done.stderr, done.timed_out)


async def judge_with_python(task: Task, box: Sandbox, patch: Patch) -> Report:
    """Test functions run in one process, the solution in another; see `inside/python_judge.py`."""
    job = {
        "folder": box.workdir,
        "files": dict(task.tests.files),
        "server": source("solution_server.py"),
    }
    done = await run_inside(box, "python_judge.py", job, task.tests.timeout_s)
    try:
        results = json.loads(done.stdout)
    except ValueError:  # the judge was ended: out of time, out of memory, or killed by the solution
        return Report(log=done.stderr, timed_out=done.timed_out)
    passed = {name: failure is None for name, failure in results.items()}
    return Report(passed, {name: text for name, text in results.items() if text}, log=done.stderr)


async def judge_with_cases(task: Task, box: Sandbox, patch: Patch) -> Report:
    """Runs the command once for each input. What it should write never enters the sandbox."""
    passed: dict[str, bool] = {}
    texts: dict[str, str] = {}
    timed_out = False
    deadline = time.monotonic() + task.tests.timeout_s
    for place, (given, wanted) in enumerate(task.tests.cases, 1):
        left = deadline - time.monotonic()
        if left <= 0:
            timed_out = True
            break
        done = await box.exec(
            list(task.tests.command), stdin=given, timeout_s=left, max_output_bytes=STDIO_BYTES
        )
        timed_out = timed_out or done.timed_out
        same = same_words(done.stdout, wanted) and not done.timed_out and not done.truncated
        passed[f"case {place}"] = same and done.exit_code == 0
        if not passed[f"case {place}"]:
            texts[f"case {place}"] = f"exit code {done.exit_code}; wrote {done.stdout[:300]!r}"
    return Report(passed, texts, timed_out=timed_out)


async def judge_with_lines(task: Task, box: Sandbox, patch: Patch) -> Report:
    """Runs the command, which proves each line by a word that it alone was given.

    The command must read that word before it starts the solution, and not hand it on. A solution that can
    look into the command's process could learn it: use "python" or "stdio" where they fit.
    """
    for path, text in task.tests.files.items():
        await box.write(path, text)
    word = secrets.token_hex(16)
    done = await box.exec(
        list(task.tests.command),
        stdin=word + "\n",
        timeout_s=task.tests.timeout_s,
        max_output_bytes=OUTPUT_BYTES,
    )
    passed: dict[str, bool] = {}
    for line in done.stdout.splitlines():
        match line.strip().split(" ", 2):
            case [said, ("PASS" | "FAIL") as outcome, name] if secrets.compare_digest(
                said.encode(), word.encode()
            ):
                passed[name] = outcome == "PASS" and passed.get(name, True)
    return Report(passed, log=done.stdout + done.stderr, timed_out=done.timed_out)


JUDGES: dict[str, Judge] = {
    "pytest": judge_with_pytest,
    "python": judge_with_python,
    "stdio": judge_with_cases,
    "lines": judge_with_lines,
}


async def run_inside(box: Sandbox, program: str, job: dict[str, Any], timeout_s: float) -> ExecResult:
    """Run one of `inside/` with its job. Its source comes by standard input: no file of it can be changed.

    The one place where a judge's Python starts.
    """
    text = source(program)
    start = f"import sys;exec(compile(sys.stdin.buffer.read({len(text.encode())}),'<pytest judge>','exec'))"
    return await box.python(
        start,
        stdin=text + json.dumps(job),
        timeout_s=timeout_s,
        max_output_bytes=OUTPUT_BYTES,
    )


def source(program: str) -> str:
    return (resources.files("lathe.tasks") / "inside" / program).read_text("utf-8")


def same_words(one: str, other: str) -> bool:
    """Equal but for white space at the ends of lines and of the whole."""
    lines = [[line.rstrip() for line in text.strip().splitlines()] for text in (one, other)]
    return lines[0] == lines[1]
