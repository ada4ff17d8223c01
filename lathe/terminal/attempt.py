"""How far `lathe attempt` is, and what it came to."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

PLAIN_EVERY_S = 30.0  # a line where there is no terminal to draw a bar in


@dataclass
class Tally:
    """What has happened so far; `num_before` of the attempts were finished by an earlier process."""

    total: int
    num_before: int = 0
    num_solved: int = 0
    num_failed: int = 0
    num_invalid: int = 0
    num_tokens: int = 0
    started: float = field(default_factory=time.monotonic)

    @property
    def num_done(self) -> int:
        return self.num_solved + self.num_failed + self.num_invalid

    def __str__(self) -> str:
        rate = self.num_tokens / max(time.monotonic() - self.started, 1e-9)
        return (
            f"{self.num_solved} solved, {self.num_failed} failed, {self.num_invalid} invalid, "
            f"{rate:.0f} tokens/s"
        )


@contextmanager
def watch(tally: Tally, console: Console) -> Iterator[Callable[[], None]]:
    """A function to call when the tally has changed."""
    if not console.is_terminal:
        last = time.monotonic()

        def note() -> None:
            nonlocal last
            if time.monotonic() - last >= PLAIN_EVERY_S:
                last = time.monotonic()
                console.print(f"{tally.num_done} of {tally.total}: {tally}", highlight=False, soft_wrap=True)

        yield note
        return
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        bar = bars.add_task(str(tally), total=tally.total, completed=tally.num_done)
        yield lambda: bars.update(bar, completed=tally.num_done, description=str(tally))


def show_summary(
    tally: Tally,
    passes: Mapping[int, tuple[float | None, int]],
    reasons: Mapping[str, int],
    num_suspect: int,
    console: Console,
) -> None:
    """`passes` has for each k the mean of pass@k and how many tasks it is of, `reasons` how often each reason
    made an attempt invalid."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_row(
        "attempts", str(tally.num_done), f"{tally.num_before} of them before" if tally.num_before else ""
    )
    table.add_row("solved", str(tally.num_solved), "")
    suspect = f"{num_suspect} of them suspect" if num_suspect else ""
    table.add_row("failed", str(tally.num_failed), suspect)
    table.add_row("invalid", str(tally.num_invalid), "counted in no pass@k" if tally.num_invalid else "")
    for k, (value, num_tasks) in passes.items():
        table.add_row(f"pass@{k}", "–" if value is None else f"{value:.1%}", f"of {num_tasks} tasks")
    took = time.monotonic() - tally.started
    table.add_row("tokens", f"{tally.num_tokens:,}", f"sampled in {took:.1f} s")
    console.print(table)
    for reason, count in sorted(reasons.items(), key=lambda pair: -pair[1])[:5]:
        console.print(f"invalid, {count} times: {escape(reason)}", highlight=False, soft_wrap=True)
