"""No way to be paid without doing the work, and every honest way is paid."""

import asyncio
import dataclasses

import pytest
from cheats import (
    PYTEST_CHEATS,
    PYTEST_TASK,
    PYTHON_CHEATS,
    PYTHON_TASK,
    RIGHT,
    STDIO_CHEATS,
    STDIO_TASK,
    WRONG_ONES,
)

from lathe.errors import InfrastructureError
from lathe.sandbox.pool import open_pool
from lathe.tasks.patch import Patch
from lathe.tasks.verify import verify
from lathe.types import Limits, Task, Verdict

SMALL = Limits(memory_bytes=512 << 20, num_processes=64, disk_bytes=64 << 20)
ATTEMPTS: dict[tuple[str, str], tuple[Task, Patch]] = {}
for _kind, _task, _cheats in (
    ("pytest", PYTEST_TASK, PYTEST_CHEATS),
    ("python", PYTHON_TASK, PYTHON_CHEATS),
    ("stdio", STDIO_TASK, STDIO_CHEATS),
):
    for _name, _files in _cheats.items():
        ATTEMPTS[_kind, _name] = (_task, Patch.of(_files))
    if _kind != "stdio":
        for _name, _text in (RIGHT | WRONG_ONES).items():
            ATTEMPTS[_kind, _name] = (_task, Patch.of({"solution.py": _text}))
ATTEMPTS["stdio", "the sum"] = (
    STDIO_TASK,
    Patch.of({"solution.py": "print(int(input()) + int(input()))\n"}),
)
HANGING = {"endless", "stops its parents", "never ends"}  # nothing is gained by waiting longer
HONEST = {("stdio", "the sum"), *((kind, name) for kind in ("pytest", "python") for name in RIGHT)}


def rare(kind: str, name: str) -> list[pytest.MarkDecorator]:
    """Pytest's cheats are judged twice each: where time counts, a third of them stand for all."""
    is_rare = kind == "pytest" and name in PYTEST_CHEATS and list(PYTEST_CHEATS).index(name) % 3
    return [pytest.mark.slow] if is_rare else []


@pytest.fixture(scope="module")
def verdicts(request) -> dict[tuple[str, str], Verdict]:
    """All that this run's tests ask for judged, three at a time: a fresh sandbox each."""
    items = [item.callspec.params for item in request.session.items if item.path == request.path]
    kinds = ("pytest", "python")
    asked = {
        (kind, params["name"])
        for params in items
        for kind in ([params["kind"]] if "kind" in params else kinds)
    }
    attempts = {key: attempt for key, attempt in ATTEMPTS.items() if key in asked}

    async def judge_all() -> dict[tuple[str, str], Verdict]:
        turns = asyncio.Semaphore(3)

        async def judge(name: str, task: Task, patch: Patch) -> Verdict:
            tests = dataclasses.replace(task.tests, timeout_s=2.0 if name in HANGING else 20.0)
            async with turns:
                return await verify(dataclasses.replace(task, limits=SMALL, tests=tests), patch, pool)

        async with open_pool("namespace") as pool:
            found = await asyncio.gather(*(judge(name, *attempt) for (_, name), attempt in attempts.items()))
        return dict(zip(attempts, found, strict=True))

    try:
        return asyncio.run(judge_all())
    except InfrastructureError as error:
        pytest.skip(f"no namespaces here: {error}")


@pytest.mark.parametrize(
    ("kind", "name"),
    [pytest.param(*each, marks=rare(*each)) for each in sorted(ATTEMPTS.keys() - HONEST)],
)
def test_nothing_is_earned(verdicts, kind, name):
    verdict = verdicts[kind, name]
    assert verdict.valid, verdict.reason
    assert verdict.reward == 0.0, verdict


@pytest.mark.parametrize(("kind", "name"), sorted(HONEST))
def test_honest_work_is_paid(verdicts, kind, name):
    verdict = verdicts[kind, name]
    assert (verdict.reward, verdict.suspect) == (1.0, None), verdict
    assert verdict.evidence["num_passed"] == verdict.evidence["num_tests"] > 0


@pytest.mark.parametrize("name", sorted(WRONG_ONES))
def test_who_is_only_wrong_is_no_suspect(verdicts, name):
    assert verdicts["pytest", name].suspect is None
    assert verdicts["python", name].suspect is None


NAMED = [
        "reports are patched", "calls are patched", "test functions are patched", "hooks are patched",
        "code is swapped", "builtins are changed", "a plugin is registered", "says yes to every ==",
        "reads the hidden tests", "reads them by a long name", "looks at the caller", "prints a report",
        "looks at the caller by inspect", "looks through all objects", "rewrites the hidden tests",
        "a daemon rewrites them", "forges a record", "its own json",
        "compiles code in pytest's name", "uses ctypes", "a wildcard of the standard library",
        "an == that is no function", "a class that is gone in the end", "a list of what says yes",
        "one parameter's answer says yes", "the judge's plugin keeps another book",
        "walks frames by a traceback", "walks frames by the traceback module", "walks frames by walk_stack",
        "walks frames by a generator", "walks frames by a debugger", "a child walks frames",
        "reads a hidden test's code", "takes a test apart", "asks for the hidden tests' code",
]  # fmt: skip


@pytest.mark.parametrize("name", [pytest.param(name, marks=rare("pytest", name)) for name in NAMED])
def test_what_was_done_is_named(verdicts, name):
    assert verdicts["pytest", name].suspect
