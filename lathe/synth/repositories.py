"""Tasks from a repository whose tests pass: a fault is put in, some tests fail, all others pass.

check out -> measure the suite -> think of faults -> sieve them by the tests that reach them -> for one that
breaks something: the whole suite, an issue, what the agent must not see, the gates -> a task.
SWE-smith (arXiv 2504.21798) makes tasks so; FAIL_TO_PASS and PASS_TO_PASS are SWE-bench's (arXiv 2310.06770).
Everything of the repository runs in sandboxes only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lathe.sandbox.pool import Pool
from lathe.synth.book import Book, Drop, Made
from lathe.synth.gates import first_failure, with_gates
from lathe.synth.making import Summary, make_all
from lathe.synth.repository import issue as issues
from lathe.synth.repository.bugs import Bug, slips_and_bodies
from lathe.synth.repository.checkout import WORKDIR, Repository
from lathe.synth.repository.gating import measure_gates
from lathe.synth.repository.hiding import seen_by_agent, twin_of
from lathe.synth.repository.history import undone_commits
from lathe.synth.repository.rewrite import Unwritten, rewritten, unwritten
from lathe.synth.repository.sieve import Sieve
from lathe.synth.repository.suite import LIMITS, Suite, path_of, suite_task
from lathe.synth.repository.workshop import RepositoryConfig, Workshop, open_workshop
from lathe.synth.where import Query
from lathe.tasks.patch import Change, Patch, to_diff
from lathe.tasks.verify import judge, judge_with_pytest
from lathe.types import HiddenTests, Model, Task

Candidate = Bug | Unwritten


async def make_tasks(
    repository: Repository,
    book: Book,
    pool: Pool,
    config: RepositoryConfig,
    model: Model | None = None,
    *,
    concurrency: int = 2,
    where: Query | None = None,
    on_done: Callable[[Summary], None] = lambda summary: None,
) -> Summary:
    """Write the tasks of a repository into a book. What the book has finished is not made again.

    Raises UserError when no test of the repository can be relied upon, SandboxError when the machine fails.
    """
    kept_in = book.path.with_name(book.path.name + ".suite")
    shop = await open_workshop(repository, pool, config, model, kept_in=kept_in)
    found = candidates(shop)
    waiting = [each for each in found if isinstance(each, Bug) and each.id not in book.finished]
    sieve = Sieve(shop, waiting)
    return await make_all(
        found,
        lambda candidate: make(shop, sieve, candidate),
        book,
        concurrency=concurrency,
        where=where,
        on_done=on_done,
    )


def candidates(shop: Workshop) -> list[Candidate]:
    """The faults to try, the same in the same order whenever they are asked for. The rarer kinds come first:
    commits, then what a model is to write."""
    repository, suite, config = shop.repository, shop.suite, shop.config
    found: list[Candidate] = []
    if "commit" in config.kinds:
        found += undone_commits(repository)
    if "rewrite" in config.kinds and shop.model is not None:
        found += unwritten(repository, suite, config.seed)
    found += [
        bug
        for bug in slips_and_bodies(repository, suite, config.seed, per_function=config.per_function)
        if bug.kind in config.kinds
    ]
    return found[: config.num_candidates]


async def make(shop: Workshop, sieve: Sieve, candidate: Candidate) -> Made:
    """The task of a candidate, or why there is none. Raises SandboxError when the machine fails."""
    if isinstance(candidate, Bug):
        bug, kind = candidate, candidate.kind
    else:
        assert shop.model is not None
        found = await rewritten(shop.repository, candidate, shop.model, shop.config.sampling)
        if found is None:
            return Made(candidate.id, drops=(Drop("the model wrote nothing else", kind="rewrite"),))
        bug, kind = found, "rewrite"
    task, reason, detail = await task_of(shop, sieve, bug)
    if task is None or reason:
        return Made(candidate.id, drops=(Drop(reason, detail, kind),))
    return Made(candidate.id, (task,))


async def task_of(shop: Workshop, sieve: Sieve, bug: Bug) -> tuple[Task | None, str, str]:
    """A task with its gates, or None with a reason and its detail."""
    repository = shop.repository
    for place in bug.places:
        if copy := shop.copies.of(repository, place):
            return None, "another copy of the code is on this machine", copy
    if twin := twin_of(repository, bug):
        return None, "the same code stands elsewhere in it", twin
    trial = await sieve.trial(bug)
    if trial.timed_out:
        return None, "its tests do not end", ""
    if trial.broken:
        return None, "its tests can't be collected", ""
    if not trial.failed:
        return None, "no test fails", f"{trial.num_passed} reach it"
    failing, passing = await failing_and_passing(shop, bug)
    if not failing:
        return None, "no test fails in a fresh sandbox", ""
    share = len(failing) / (len(failing) + len(passing))
    if not passing or share > shop.config.max_failing:
        return None, "too many tests fail", f"{len(failing)} of {len(failing) + len(passing)}"
    example = await issues.find_example(repository, shop.suite, bug, failing, shop.pool)
    text, leak = await issue_of(shop, bug, failing, example)
    task = laid_out(shop, bug, failing, passing, text)
    gates, earning = await measure_gates(shop, bug, task, failing, example)
    gates = replace(gates, leak=leak, num_failing=len(failing), num_passing=len(passing))
    if failure := first_failure(gates, shop.config.thresholds):
        return None, failure, "; ".join(earning) or f"{gates}"
    task = replace(task, info={**task.info, "has_example": example is not None})
    return with_gates(task, gates), "", ""


async def failing_and_passing(shop: Workshop, bug: Bug) -> tuple[list[str], list[str]]:
    """The whole suite, judged with the fault in place: the stable tests that fail, and those that decide
    beside them: all in files whose tests reach a broken module."""
    suite = shop.suite
    task = suite_task(shop.repository, suite.paths, limit_of(suite))
    report, _ = await judge(replace(task, files=bug.files), Patch(), shop.pool, judge_with_pytest)
    failing = [test for test in suite.stable if not report.passed.get(test)]
    near = {path_of(test) for test in failing} | files_near(suite, bug)
    return failing, [test for test in suite.stable if report.passed.get(test) and path_of(test) in near]


def files_near(suite: Suite, bug: Bug) -> set[str]:
    """The test files in which some test reaches a module that is broken."""
    modules = {path for path, _ in bug.places}
    return {path_of(test) for (path, _), tests in suite.reaching.items() if path in modules for test in tests}


def limit_of(suite: Suite) -> float:
    """What a judge gets for the suite: it may run on a machine that is ten times as busy."""
    return max(60.0, 10 * suite.duration_s)


async def issue_of(
    shop: Workshop, bug: Bug, failing: Sequence[str], example: issues.Example | None
) -> tuple[str, float]:
    """What the agent is told, and how much of the answer that tells. A model's words are taken where they
    tell no more than they may."""
    text = issues.describe(example, shop.suite, failing)
    leak = issues.leak(shop.repository, bug, text)
    if shop.model is not None:
        said = await issues.written_by(shop.model, shop.repository, text, shop.config.sampling) or ""
        told = issues.leak(shop.repository, bug, said)
        if said and told <= max(leak, shop.config.thresholds.max_leak):
            return said, told
    return text, leak


def laid_out(shop: Workshop, bug: Bug, failing: Sequence[str], passing: Sequence[str], issue: str) -> Task:
    """The task: what the agent sees, and what judges it."""
    repository, config = shop.repository, shop.config
    hidden = sorted({path_of(test) for test in (*failing, *passing)})
    files: Mapping[str, str] = bug.files if config.shows_failing else seen_by_agent(repository, bug, failing)
    if config.inline:
        files = {**repository.texts, **files}
    tests = HiddenTests(
        repository.arguments,
        "pytest",
        {path: repository.texts[path] for path in hidden},
        must_pass=(*shop.suite.shortened(failing), *shop.suite.shortened(passing)),
        timeout_s=limit_of(shop.suite),
    )
    fix = Patch({path: Change(repository.texts[path].encode()) for path in bug.files})
    info: dict[str, Any] = {
        "kind": bug.kind,
        "repository": repository.name,
        "commit": repository.commit,
        "digest": repository.digest,
        "bug": bug.note,
        "places": [f"{path}::{name}" for path, name in bug.places],
        "fail_to_pass": shop.suite.shortened(failing),
        "fix": to_diff(fix, {path: text.encode() for path, text in bug.files.items()}),
        "suite": {
            "num_runs": shop.suite.num_runs,
            "flake": shop.suite.flake,
            "num_flaky": shop.suite.num_flaky,
        },
    }
    return Task(
        f"{repository.name}-{bug.id}",
        issues.PROMPT.format(name=repository.name, workdir=WORKDIR, issue=issue),
        tests,
        files,
        image=None if config.inline else repository.image,
        workdir=WORKDIR,
        limits=LIMITS,
        language="python",
        source=f"{repository.origin}@{repository.commit}" if repository.commit else repository.origin,
        licence=repository.licence,
        info=info,
    )
