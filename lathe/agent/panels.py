"""What slash commands show, as text."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.text import Text

from lathe.agent.commands import COMMANDS
from lathe.agent.render import clean, diff_text, one_line, rows_text
from lathe.agent.session import Point, SessionInfo
from lathe.agent.shadow import Rewind
from lathe.agent.stats import PARTS, Stats, Window, bar

COLOURS = {
    "system": "magenta",
    "tools": "blue",
    "files": "cyan",
    "messages": "green",
    "results": "yellow",
}
MAX_BAR = 60
MAX_LISTED = 20

KEYS = (
    ("@file", "show a file to the agent"),
    ("Alt-Enter", "a new line (so does a backslash before Enter)"),
    ("Ctrl-C", "end the agent's turn"),
)


def help_panel() -> Text:
    commands = [(f"/{each.name} {each.argument}".rstrip(), each.help) for each in COMMANDS]
    return rows_text([*commands, *KEYS])


def stats_panel(stats: Stats) -> Text:
    return rows_text(stats.rows())


def window_panel(window: Window, width: int) -> Text:
    """A bar, and the tokens of each part."""
    about = "" if window.is_exact else "about "
    if window.size is None:
        text = Text(f"{about}{window.num_tokens:,} tokens; the model doesn't say how many it can hold\n")
        size = max(window.num_tokens, 1)
    else:
        share = window.num_tokens / window.size
        text = Text(f"{about}{window.num_tokens:,} of {window.size:,} tokens, {share:.0%}\n")
        size = window.size
    cells = max(min(MAX_BAR, width - 2), 10)
    used = 0
    for name, count in bar([(name, window.parts[name]) for name in PARTS], size, cells):
        count = min(count, cells - used)
        text.append("█" * count, style=COLOURS[name])
        used += count
    text.append("░" * (cells - used) + "\n", style="dim")
    for name in PARTS:
        text.append("█ ", style=COLOURS[name])
        text.append(f"{name:9} {window.parts[name]:>8,}\n")
    text.append("The parts are judged by their characters.", style="dim")
    return text


def diff_panel(diff: str | None) -> Text:
    if diff is None:
        return Text("Nothing is known of the files: no turn was taken here yet, or they are not kept.", "dim")
    return diff_text(diff, max_lines=2000) if diff else Text("No file was changed.", "dim")


def sessions_panel(sessions: Sequence[SessionInfo], current: str) -> Text:
    if not sessions:
        return Text("There is no session yet.", "dim")
    rows = []
    for info in sessions[:MAX_LISTED]:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(info.changed_s))
        here = "  (this one)" if info.id == current else ""
        rows.append((info.id, f"{when}  {one_line(info.title, 60)}{here}"))
    text = rows_text(rows)
    if len(sessions) > MAX_LISTED:
        text.append(f"\nand {len(sessions) - MAX_LISTED} older ones", style="dim")
    return text


def points_panel(points: Sequence[Point]) -> Text:
    rows = [(f"{point.number:3}", one_line(point.prompt, 80)) for point in points[-MAX_LISTED:]]
    return rows_text(rows)


def rewind_panel(rewind: Rewind | None) -> Text:
    """What going back would do to the files."""
    if rewind is None:
        return Text("  The conversation goes back; files stay, because they were not kept.", "yellow")
    if rewind.is_nothing:
        return Text("  The conversation goes back; no file was changed since.", "dim")
    text = Text()
    for names, word, style in ((rewind.written, "restored", "green"), (rewind.deleted, "deleted", "red")):
        for name in names[:MAX_LISTED]:
            mine = "  (you changed it since)" if name in rewind.persons else ""
            text.append(f"  {word}  {clean(name)}", style=style)
            text.append(f"{mine}\n", style="yellow")
        if len(names) > MAX_LISTED:
            text.append(f"  and {len(names) - MAX_LISTED} more {word}\n", style=style)
    for name in rewind.target.uncovered[:MAX_LISTED]:
        text.append(f"  not kept, stays as it is: {clean(name)}\n", style="dim")
    text.rstrip()
    return text
