"""A maker's run over its candidates: parallel, each written down as it is done, resumed where it stopped."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

from lathe.errors import SandboxError
from lathe.synth.book import Book, Drop, Finished, Made
from lathe.synth.gates import Means, gates_of
from lathe.synth.where import Query
from lathe.types import Task


class HasId(Protocol):
    """A candidate: its id is the same whenever the same corpus is read."""

    @property
    def id(self) -> str: ...


C = TypeVar("C", bound=HasId)


@dataclass
class Summary:
    """What a making came to so far. `num_before` of the candidates were finished by an earlier process."""

    total: int
    num_before: int = 0
    num_candidates: int = 0
    num_fruitful: int = 0
    num_tasks: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    means: Means = field(default_factory=Means)
    num_now: int = 0
    started: float = field(default_factory=time.monotonic)

    def add(self, done: Finished) -> None:
        self.num_candidates += 1
        self.num_fruitful += done.kept > 0
        self.num_tasks += done.kept
        self.reasons.update(
            f"{each.kind}: {each.reason}" if each.kind else each.reason for each in done.drops
        )

    @property
    def tasks_per_minute(self) -> float:
        """Of this process."""
        return 60.0 * self.num_now / max(time.monotonic() - self.started, 1e-9)


async def make_all(
    candidates: Iterable[C],
    make: Callable[[C], Awaitable[Made]],
    book: Book,
    *,
    concurrency: int = 2,
    where: Query | None = None,
    on_done: Callable[[Summary], None] = lambda summary: None,
) -> Summary:
    """Make the tasks of every candidate that the book has not finished, and write each down at once.

    A machine that fails leaves its candidate unfinished, so that the next run takes it again: three in a row
    are raised. Any other exception is a bug and flies. Tasks that `where` refuses are drops.
    """
    todo = list(candidates)
    summary = Summary(len(todo))
    known = {each.id for each in todo}
    for done in book.finished.values():
        if done.candidate in known:
            summary.add(done)
    summary.num_before = summary.num_candidates
    for task in book.tasks():
        _count(summary, task)
    on_done(summary)
    waiting = iter([each for each in todo if each.id not in book.finished])
    num_faults = 0

    async def work() -> None:
        nonlocal num_faults
        for candidate in waiting:
            started = time.monotonic()
            try:
                made = await make(candidate)
            except SandboxError:
                num_faults += 1
                if num_faults >= 3:
                    raise
                continue
            num_faults = 0
            made = replace(_selected(made, where), seconds=time.monotonic() - started)
            book.add(made)
            summary.add(book.finished[made.candidate])
            summary.num_now += len(made.tasks)
            for task in made.tasks:
                _count(summary, task)
            on_done(summary)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(work())
    except BaseExceptionGroup as several:
        raise several.exceptions[0] from None
    return summary


def _count(summary: Summary, task: Task) -> None:
    summary.means.add(gates_of(task))
    summary.kinds[str(task.info.get("kind"))] += 1


def _selected(made: Made, where: Query | None) -> Made:
    if where is None:
        return made
    kept = tuple(task for task in made.tasks if where(task))
    refused = tuple(
        Drop("not asked for", task.id, str(task.info.get("kind"))) for task in made.tasks if task not in kept
    )
    return replace(made, tasks=kept, drops=made.drops + refused)
