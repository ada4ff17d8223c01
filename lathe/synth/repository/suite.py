"""A repository's tests: which can be relied upon, what each reaches, and what a fault makes of them."""

from __future__ import annotations

import ast
import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from importlib import resources
from typing import Any

from lathe.errors import InfrastructureError, SandboxError, UserError
from lathe.sandbox.pool import Pool
from lathe.synth.repository.checkout import WORKDIR, Repository
from lathe.tasks.patch import Patch
from lathe.tasks.place import open_place
from lathe.tasks.reports import Report, names_of_tests
from lathe.tasks.verify import judge, judge_with_pytest
from lathe.types import HiddenTests, Limits, Task

OUT = "/tmp/lathe-out.json"
MAX_OUT = 256 << 20
LEAST_S = 2.0
LIMITS = Limits(disk_bytes=512 << 20)


@dataclass(frozen=True)
class Call:
    """A call that a test made: an expression that makes it again, None where its arguments are not plain."""

    module: str
    function: str
    expression: str | None
    direct: bool


@dataclass(frozen=True)
class Suite:
    """What was seen of a suite in several runs, each in a sandbox of its own.

    `seen` are all tests of the files in `paths`. `stable` ones passed in all runs, and failed when they had
    to (`tasks/controls.py`): they alone decide. `num_flaky` passed only sometimes, `num_failing` never,
    `num_unsuited` pass whatever they ask. `reach` has for each test the functions that it enters, as numbers
    in `functions` (path and qualified name), `at_import` those that importing alone enters, `calls` what the
    test asked, `seconds` how long it took.
    """

    paths: tuple[str, ...]
    seen: tuple[str, ...]
    stable: tuple[str, ...]
    num_runs: int
    num_flaky: int
    num_failing: int
    num_unsuited: int
    duration_s: float
    functions: tuple[tuple[str, str], ...] = ()
    reach: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    at_import: tuple[int, ...] = ()
    calls: Mapping[str, tuple[Call, ...]] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def flake(self) -> float:
        """The share of tests that passed in some run, but not in all."""
        return self.num_flaky / max(len(self.seen) - self.num_failing, 1)

    @cached_property
    def reaching(self) -> Mapping[tuple[str, str], Sequence[str]]:
        """For each function the stable tests that enter it: all of them where importing does."""
        found: dict[tuple[str, str], Sequence[str]] = defaultdict(list)
        for test in self.stable:
            for number in self.reach.get(test, ()):
                found[self.functions[number]].append(test)  # type: ignore[attr-defined]
        for number in self.at_import:
            found[self.functions[number]] = self.stable
        return dict(found)

    def shortened(self, tests: Sequence[str]) -> tuple[str, ...]:
        """Tests by name, one name for all parameters of a test where all of them are among them."""
        wanted = set(tests)
        of_function = defaultdict(list)
        for test in self.seen:
            of_function[test.split("[")[0]].append(test)
        whole = {name for name, own in of_function.items() if wanted.issuperset(own)}
        return tuple(dict.fromkeys(name if (name := test.split("[")[0]) in whole else test for test in tests))


def path_of(test: str) -> str:
    """The file of a test."""
    return test.split("::")[0]


def suite_task(repository: Repository, paths: Iterable[str], timeout_s: float) -> Task:
    """All tests of these files as a task, for the judge."""
    tests = {path: repository.texts[path] for path in paths}
    hidden = HiddenTests(repository.arguments, "pytest", tests, timeout_s=timeout_s)
    return Task("suite", "", hidden, image=repository.image, workdir=WORKDIR, limits=LIMITS)


async def measure(
    repository: Repository, pool: Pool, *, num_runs: int = 5, timeout_s: float = 600.0
) -> Suite:
    """Run the suite as it is, `num_runs` times, and once spoiled, with the judge that tasks are judged by.

    Raises UserError, with what pytest said, when not one test can be relied upon.
    """
    paths = await files_the_judge_trusts(repository, pool, timeout_s)
    task = suite_task(repository, paths, timeout_s)
    reports, durations = [], []
    for _ in range(num_runs):
        started = time.monotonic()
        reports.append((await judge(task, Patch(), pool, judge_with_pytest))[0])
        durations.append(time.monotonic() - started)
        if reports[-1].timed_out:
            raise UserError(
                f"{repository.origin}: its tests did not end in {timeout_s:.0f} s. Allow more "
                "(--suite-time), or take slow tests out of the folder."
            )
    spoiled = (await judge(task, Patch(), pool, partial(judge_with_pytest, spoiled=True)))[0]
    passes = Counter(name for report in reports for name, ok in report.passed.items() if ok)
    seen = {name for report in reports for name in report.passed}
    always = [name for name in reports[0].passed if passes[name] == num_runs]
    own = {name for path in paths for name in names_of_tests(path, repository.texts[path])}
    stable = tuple(
        name for name in always if spoiled.passed.get(name) is False or name.split("[")[0] not in own
    )
    if not stable:
        raise UserError(
            f"{repository.origin}: none of its tests passes in a sandbox, which has this machine's Python "
            f"and its packages, and no network. pytest said:\n{complaint(reports[0])}"
        )
    suite = Suite(
        tuple(paths),
        tuple(sorted(seen)),
        stable,
        num_runs,
        num_flaky=sum(0 < passes[name] < num_runs for name in seen),
        num_failing=sum(passes[name] == 0 for name in seen),
        num_unsuited=len(always) - len(stable),
        duration_s=round(min(durations), 3),
    )
    return await traced(repository, suite, paths, pool, timeout_s)


async def files_the_judge_trusts(repository: Repository, pool: Pool, timeout_s: float) -> list[str]:
    """The test files whose tests upset the judge in no way: one that replaces parts of pytest, say, can't be
    told from an attempt that cheats."""
    paths = [path for path in repository.tests if is_python(repository.texts[path])]
    report = await judged(repository, paths, pool, timeout_s)
    if report.passed and not report.suspects:
        return paths
    kept = []
    for path in paths:
        report = await judged(repository, [path], pool, timeout_s)
        if not report.suspects and any(report.passed.values()):
            kept.append(path)
    if not kept:
        raise UserError(
            f"{repository.origin}: none of its test files can be used. pytest said:\n{complaint(report)}"
        )
    return kept


async def judged(repository: Repository, paths: Sequence[str], pool: Pool, timeout_s: float) -> Report:
    return (await judge(suite_task(repository, paths, timeout_s), Patch(), pool, judge_with_pytest))[0]


def is_python(text: str) -> bool:
    try:
        ast.parse(text)
    except (SyntaxError, ValueError):
        return False
    return True


def complaint(report: Report) -> str:
    said = "\n".join(list(report.texts.values())[:3]) or report.log or "nothing"
    return said.strip()[-1500:]


async def traced(
    repository: Repository, suite: Suite, paths: Sequence[str], pool: Pool, timeout_s: float
) -> Suite:
    """The suite with what its tests reach, and what they call."""
    job = {"arguments": repository.arguments, "sources": repository.sources, "paths": paths}
    found = json.loads(await run_program(repository, pool, "trace_suite.py", job, timeout_s=4 * timeout_s))
    functions, number_of = [], {}
    by_path = {path: repository.functions(path) for path in repository.sources}
    for number, (path, line) in enumerate(found["functions"]):
        for each in by_path.get(path, ()):
            if each.first <= line <= each.end:
                key = (path, each.name)
                if key not in functions:
                    functions.append(key)
                number_of[number] = functions.index(key)
                break
    reach = {
        test: tuple(sorted({number_of[each] for each in numbers if each in number_of}))
        for test, numbers in found["reach"].items()
    }
    calls = {test: tuple(Call(**each) for each in made) for test, made in found["calls"].items() if made}
    at_import = tuple(sorted({number_of[each] for each in found["imported"] if each in number_of}))
    return replace(
        suite,
        functions=tuple(functions),
        reach=reach,
        at_import=at_import,
        calls=calls,
        seconds=found["seconds"],
    )


@dataclass(frozen=True)
class Trial:
    """What became of the tests that reach a fault. `broken`: they could not even be collected."""

    failed: tuple[str, ...] = ()
    num_passed: int = 0
    timed_out: bool = False
    broken: bool = False


async def try_faults(
    repository: Repository,
    suite: Suite,
    faults: Mapping[str, tuple[Mapping[str, str], Sequence[str]]],
    pool: Pool,
) -> dict[str, Trial]:
    """Lay each fault's files into one sandbox, and run its tests: a sieve, far cheaper than a judge.

    `faults` has for each name files and tests. Each may take some seconds of processor time, and ten times
    what its tests took before. What the sandbox can't tell is a trial that is broken.
    """
    mutants = []
    for name, (files, tests) in faults.items():
        limit_s = LEAST_S + 10 * sum(suite.seconds.get(test, 0.0) for test in tests)
        mutants.append({"id": name, "files": dict(files), "tests": list(tests), "limit_s": limit_s})
    job = {"arguments": repository.arguments, "mutants": mutants}
    limit = 60.0 + 10 * sum(each["limit_s"] for each in mutants)  # type: ignore[misc]
    told = (await run_program(repository, pool, "try_mutants.py", job, timeout_s=limit)).splitlines()
    found = {line["id"]: line for line in map(json.loads, told)}
    return {
        name: Trial(tuple(line["failed"]), line["num_passed"], line["timed_out"], line["broken"])
        if (line := found.get(name))
        else Trial(broken=True)
        for name in faults
    }


async def run_program(
    repository: Repository,
    pool: Pool,
    program: str,
    job: Mapping[str, Any],
    *,
    files: Mapping[str, str] | None = None,
    timeout_s: float = 120.0,
) -> bytes:
    """Run one of `synth/inside` in a new sandbox with the repository and `files` over it: what it wrote.

    Raises InfrastructureError where it wrote nothing: it was ended, or it could not start.
    """
    text = (resources.files("lathe.synth") / "inside" / program).read_text("utf-8")
    task = Task(
        "", "", HiddenTests(), dict(files or {}), image=repository.image, workdir=WORKDIR, limits=LIMITS
    )
    box = await open_place(task, pool)
    try:
        start = f"import sys;exec(compile(sys.stdin.buffer.read({len(text.encode())}),'<{program}>','exec'))"
        asked = {"folder": box.workdir, "out": OUT, **job}
        done = await box.python(start, stdin=text + json.dumps(asked), timeout_s=timeout_s)
        try:
            return await box.read(OUT, max_bytes=MAX_OUT)
        except FileNotFoundError:
            raise InfrastructureError(
                f"{program} ended with {done.exit_code} and wrote nothing: {done.stderr.strip()[-1500:]}"
            ) from None
    finally:
        with suppress(SandboxError):
            await box.close()
