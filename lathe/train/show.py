"""`lathe show RUN`: a run's curves in the terminal, in braille, and its last steps as a table."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean

from rich.columns import Columns
from rich.console import Console, ConsoleRenderable, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lathe.errors import UserError
from lathe.train.curves import value_range
from lathe.train.runs import Line, Metric, Run, duration, metric_of, read_run, scale_label, sections, written

HEIGHT = 5  # of a chart, in lines of text
MAX_WIDTH = 64
LABEL = 8  # columns beside a chart, for its scale
LAST_STEPS = 8
# The dots of a braille character, by their place in it: two columns of four (Unicode's own numbering).
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
IN_TABLE = ("reward", "pass_rate", "solved", "eval_pass_rate", "loss", "eval_loss", "entropy", "reply_tokens",
            "mismatch", "invalid_share", "tokens_per_s", "seconds")  # fmt: skip


def show_run(folder: Path, out: Console) -> None:
    """Draw it once, as it stands."""
    out.print(view(read_run(folder), out.width))


def follow_run(folder: Path, out: Console, wait: Callable[[], None] = lambda: time.sleep(1.0)) -> None:
    """Draw it anew whenever it has changed, until the user interrupts. `wait` passes the time between looks.

    Raises UserError where the console is no terminal.
    """
    if not out.is_terminal:
        raise UserError("--follow needs a terminal; without it the run is shown once, as it stands.")
    size, metrics = -1, folder / "metrics.jsonl"
    with Live(console=out, auto_refresh=False, vertical_overflow="crop", screen=True) as live:
        try:
            while True:
                now = metrics.stat().st_size if metrics.exists() else 0
                if now != size:
                    size = now
                    live.update(view(read_run(folder), out.width, out.height), refresh=True)
                wait()
        except KeyboardInterrupt:
            pass
    show_run(folder, out)


def view(run: Run, width: int, height: int | None = None) -> ConsoleRenderable:
    """What is shown of a run, `width` columns wide: all, or the charts that `height` lines have room for."""
    head = Text.assemble((run.name, "bold"), f"  {len(run.steps):,} steps")
    if run.seconds:
        head.append(f"  {duration(run.seconds)}")
    if not run.steps:
        return Group(head, Text("No step is done yet.", "dim"))
    num_columns = max(1, min(3, width // 40))
    chart_width = max(min(width // num_columns - 3, MAX_WIDTH), LABEL + 8)
    metrics = [metric for found in sections([run]).values() for metric in found]
    metrics = [metric for metric in metrics if not metric.name.startswith("seconds_")]  # the time's parts
    zero = [metric for metric in metrics if not any(run.line(metric.name).values)]
    drawn = [metric for metric in metrics if metric not in zero]
    if height is not None:
        drawn = drawn[: max((height - LAST_STEPS - 4) // (HEIGHT + 2), 1) * num_columns]
    steps = int(run.steps[0]["step"]), int(run.steps[-1]["step"])
    charts = [chart(run.line(metric.name), metric, steps, chart_width) for metric in drawn]
    parts: list[ConsoleRenderable] = [head, Text(), Columns(charts, padding=(0, 3, 0, 0))]
    if zero:
        parts += [
            Text(f"0 at every step: {', '.join(metric.title.lower() for metric in zero)}", "dim"),
            Text(),
        ]
    return Group(*parts, last_steps(run, width))


def chart(line: Line, metric: Metric, steps: tuple[int, int], width: int) -> Text:
    """A metric's curve with its name, its last value and its scale: HEIGHT + 1 lines, and an empty one."""
    text = Text(no_wrap=True)
    name, last = metric.title, written(line.values[-1], metric.unit)
    text.append(name[: width - len(last) - 1], "bold")
    text.append(" " * max(width - len(name) - len(last), 1))
    text.append(last, "cyan")
    low, high = value_range([line], metric)
    labels = {0: high, HEIGHT - 1: low}
    for number, row in enumerate(braille(line, steps, (low, high), width - LABEL, HEIGHT)):
        label = scale_label(labels[number], metric.unit) if number in labels else ""
        text.append(f"\n{label[: LABEL - 1]:>{LABEL - 1}} ", "dim")
        text.append(row, "cyan")
    return text.append("\n")


def braille(
    line: Line, steps: tuple[int, int], scale: tuple[float, float], width: int, height: int
) -> list[str]:
    """The line in a grid of `width` by `height` characters, each of 2 by 4 dots; `steps` and `scale` are the
    grid's edges. What falls into one column of dots is averaged; what isn't finite is left out."""
    values: dict[int, list[float]] = {}
    first, last = steps[0], max(steps[1], steps[0] + 1)
    low, high = scale
    for step, value in zip(line.steps, line.values, strict=True):
        if math.isfinite(value):
            column = round((step - first) / (last - first) * (width * 2 - 1))
            values.setdefault(column, []).append(value)
    top = height * 4 - 1

    def row_of(value: float) -> int:
        return round(top - min(max((value - low) / (high - low), 0.0), 1.0) * top)

    cells = [[0] * width for _ in range(height)]
    before: tuple[int, int] | None = None
    for column, found in sorted(values.items()):
        row = row_of(fmean(found))
        for x, y in _between(before, (column, row)):
            cells[y // 4][x // 2] |= DOTS[y % 4][x % 2]
        before = column, row
    return ["".join(chr(0x2800 + cell) for cell in cells_of_row) for cells_of_row in cells]


def _between(start: tuple[int, int] | None, stop: tuple[int, int]) -> list[tuple[int, int]]:
    """The dots of a straight line, its end included."""
    if start is None:
        return [stop]
    num = max(abs(stop[0] - start[0]), abs(stop[1] - start[1]), 1)
    return [
        (round(start[0] + (stop[0] - start[0]) * n / num), round(start[1] + (stop[1] - start[1]) * n / num))
        for n in range(num + 1)
    ]


def last_steps(run: Run, width: int) -> Table:
    """The last steps with as many of their main metrics as the width has room for."""
    measured = {name for step in run.steps for name in step}
    names = [name for name in IN_TABLE if name in measured]
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("step", justify="right")
    room = width - 8
    shown: list[str] = []
    for name in names:
        cells = [_cell(step, name) for step in run.steps[-LAST_STEPS:]]
        room -= max(map(len, [_heading(name), *cells])) + 2
        if room < 0:
            break
        shown.append(name)
        table.add_column(_heading(name), justify="right")
    for step in run.steps[-LAST_STEPS:]:
        table.add_row(f"{step['step']:,}", *(_cell(step, name) for name in shown))
    return table


def _heading(name: str) -> str:
    return name.replace("_", " ")


def _cell(step: Mapping[str, float], name: str) -> str:
    return written(step[name], metric_of(name).unit).removesuffix(" tokens") if name in step else ""
