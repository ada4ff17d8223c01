"""How far `lathe make` is, and what it came to."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

PLAIN_EVERY_S = 30.0  # a line where there is no terminal to draw a bar in
PERCENT = ("flake", "noop", "stub", "cheats", "mutation", "tpr", "tnr", "difficulty")


class Numbers(Protocol):
    """Mean numbers of gates by name; None where none was measured."""

    def get(self, name: str) -> float | None: ...


class Progressing(Protocol):
    """What a making came to so far (`synth/making.py`)."""

    total: int
    num_before: int
    num_candidates: int
    num_fruitful: int
    num_tasks: int

    @property
    def reasons(self) -> Mapping[str, int]: ...

    @property
    def kinds(self) -> Mapping[str, int]: ...

    @property
    def means(self) -> Numbers: ...

    @property
    def tasks_per_minute(self) -> float: ...


@contextmanager
def watch(console: Console) -> Iterator[Callable[[Progressing], None]]:
    """A function to tell how far it is."""
    if not console.is_terminal:
        last = time.monotonic()

        def note(done: Progressing) -> None:
            nonlocal last
            if time.monotonic() - last >= PLAIN_EVERY_S:
                last = time.monotonic()
                console.print(
                    f"{done.num_candidates} of {done.total}: {line_of(done)}", highlight=False, soft_wrap=True
                )

        yield note
        return
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        bar = bars.add_task("")
        yield lambda done: bars.update(
            bar, total=done.total, completed=done.num_candidates, description=line_of(done)
        )


def line_of(done: Progressing) -> str:
    return f"{done.num_tasks} tasks, {done.tasks_per_minute:.0f} a minute"


def show_summary(done: Progressing, console: Console) -> None:
    """Candidates, tasks by kind, the kept tasks' mean numbers, and why the rest was dropped."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    before = f"{done.num_before} of them before" if done.num_before else ""
    table.add_row("candidates", str(done.num_candidates), before)
    if done.num_candidates < done.total:
        missing = done.total - done.num_candidates
        table.add_row("unfinished", str(missing), "the machine failed; the same command takes them again")
    table.add_row("kept", str(done.num_fruitful), "candidates with at least one task")
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(done.kinds.items()))
    table.add_row("tasks", str(done.num_tasks), kinds)
    table.add_row("tasks a minute", f"{done.tasks_per_minute:.1f}", "")
    for name in PERCENT:
        if (mean := done.means.get(name)) is not None:
            table.add_row(name, f"{mean:.1%}", "mean")
    if (mean := done.means.get("num_tests")) is not None:
        table.add_row("tests", f"{mean:.1f}", "mean")
    console.print(table)
    if done.reasons:
        console.print("\nDropped:")
        dropped = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
        for reason, count in sorted(done.reasons.items(), key=lambda pair: -pair[1]):
            dropped.add_row(str(count), escape(reason))
        console.print(dropped)
