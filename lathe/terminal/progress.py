"""How far a download, a load or a conversion is: a bar in a terminal, one plain line elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

Report = Callable[[int, int], None]


@contextmanager
def progress(title: str, console: Console) -> Iterator[Report]:
    """A function to call with the bytes done and the bytes in total."""
    started = time.monotonic()
    if not console.is_terminal:
        total = 0

        def note(_: int, total_bytes: int) -> None:
            nonlocal total
            total = max(total, total_bytes)

        yield note
        console.print(f"{title}: {gigabytes(total)} in {time.monotonic() - started:.1f} s", soft_wrap=True)
        return
    columns = (TextColumn(title), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        bar = bars.add_task(title, total=None)
        yield lambda done, total_bytes: bars.update(bar, completed=done, total=total_bytes)


def gigabytes(num_bytes: float) -> str:
    """Decimal units, as disks and GPUs are sold: 61.07 GB, 135.1 MB, 96.0 KB."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if num_bytes >= size:
            return f"{num_bytes / size:.{2 if size >= 1e9 else 1}f} {unit}"
    return f"{num_bytes:.0f} bytes"
