"""The agent's work as a terminal shows it: words and calls as they come, diffs in colour, results folded.

What a model, a command or a file says is a stranger's text: no control character of it reaches the terminal.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import time
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.text import Text

from lathe.agent.events import (
    Compacted,
    Ended,
    Event,
    Nudged,
    StopReason,
    ToolEnded,
    ToolStarted,
    TurnEnded,
    TurnStarted,
)
from lathe.text.tool_calls import ArgumentText, CallStarted, Content, Reasoning
from lathe.types import ToolCall

# A carriage return or an escape in a file's text could hide what a diff does.
CONTROLS = dict.fromkeys([*range(9), *range(11, 32), *range(127, 160)], "\N{REPLACEMENT CHARACTER}")
CONTROLS |= dict.fromkeys([13], "")
# Nor may they turn the reading direction around, so that code reads as what it is not (CVE-2021-42574).
CONTROLS |= dict.fromkeys(
    [*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F], "\N{REPLACEMENT CHARACTER}"
)

MAX_RESULT_LINES = 8
MAX_DIFF_LINES = 60
MAX_LINE_CHARS = 400
FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
FRAME_S = 0.1

MEANINGS: dict[StopReason, str] = {
    "done": "done",
    "max_turns": "the turns are used up",
    "max_tokens": "the tokens are used up",
    "max_time": "the time is up",
    "context": "the model's window is full",
    "loop": "it went in circles",
    "length": "its replies were cut again and again",
    "interrupted": "interrupted",
    "sandbox": "the sandbox failed",
    "model": "the model failed",
}


class Renderer:
    """Draws the events of runs on a console, as they come. Call `tick` from time to time for the spinner, or
    let its `spin` do it. Paths in `folder` are shown without it."""

    def __init__(self, console: Console, folder: str = ""):
        self.console, self.folder = console, folder
        self.spinner = Spinner(console)
        self.diffs_shown: set[str] = set()  # by the call's id: whoever was asked has seen them
        self._open = ""  # what kind of text the line is in the middle of
        self._num_pieces = 0
        self._turn_started = 0.0

    def hear(self, event: Event) -> None:
        self.spinner.hide()
        match event:
            case TurnStarted():
                self._num_pieces, self._turn_started = 0, time.monotonic()
                self.spinner.say("thinking")
            case Content(text):
                self._stream("content", text, "")
            case Reasoning(text):
                self._stream("reasoning", text, "dim")
            case CallStarted(_, _, name):
                self._break()
                self.spinner.say(f"calling {clean(name)}")
            case ArgumentText():
                self._num_pieces += 1
                self.spinner.rate = self._rate()
            case TurnEnded():
                self._break()
                self.spinner.rest()
            case ToolStarted(call):
                self._break()
                self.print(call_line(call, self.folder))
                self.spinner.say(f"running {clean(call.name)}")
            case ToolEnded():
                self.spinner.rest()
                self._show_result(event)
            case Nudged(_, text):
                self._break()
                self.print(Text(f"  (told it: {clean(text)})", style="dim"))
            case Compacted(_, _, before, after):
                self._break()
                self.print(Text(f"  (summed up: {before:,} tokens became {after:,})", style="dim"))
            case Ended(reason, detail):
                self._break()
                self.spinner.rest()
                if reason != "done":
                    self.print(Text(stopped_line(reason, detail), style="yellow"))

    def _stream(self, kind: str, text: str, style: str) -> None:
        if self._open != kind:
            self._break()
            text = text.lstrip("\n")
        if text:
            self.spinner.rest()  # it would be drawn over the words
            self._num_pieces += 1
            self._open = kind
            self.console.print(Text(clean(text), style=style), end="", soft_wrap=True)

    def _break(self) -> None:
        """Begin a new line, if one is open."""
        if self._open:
            self.console.print()
            self._open = ""

    def _rate(self) -> float | None:
        seconds = time.monotonic() - self._turn_started
        return self._num_pieces / seconds if seconds > 1 else None

    def _show_result(self, event: ToolEnded) -> None:
        if event.denied:
            self.print(Text(f"  ✗ {clean(event.result.content)}", style="yellow"))
        elif event.diff and not event.is_error and event.call.id not in self.diffs_shown:
            self.print(diff_text(diff_within(event.diff, self.folder)))
        else:
            style = "red" if event.is_error else "dim"
            for line in folded(event.result.content, MAX_RESULT_LINES):
                self.print(Text(f"  {line}", style=style))
        if event.duration_s >= 1:
            self.print(Text(f"  {event.duration_s:.1f} s", style="dim"))

    def print(self, text: Text | str) -> None:
        self.console.print(text, soft_wrap=True, highlight=False)


class Spinner:
    """One line that says what is going on, for how long and how quickly; gone when anything else is written.

    Not shown where there is no terminal.
    """

    def __init__(self, console: Console):
        self.console = console
        self.rate: float | None = None
        self._words: str | None = None
        self._since = 0.0
        self._is_shown = False
        self._frames = itertools.cycle(FRAMES)

    def say(self, words: str) -> None:
        self._words, self._since, self.rate = words, time.monotonic(), None

    def rest(self) -> None:
        self.hide()
        self._words = None

    def tick(self) -> None:
        if self._words is None or not self.console.is_terminal:
            return
        rate = "" if self.rate is None else f"  {self.rate:.0f} tok/s"
        line = f"{next(self._frames)} {self._words}  {time.monotonic() - self._since:.0f} s{rate}"
        self._write(f"\r\x1b[2K\x1b[2m{line[: max(self.console.width - 1, 1)]}\x1b[22m")
        self._is_shown = True

    def hide(self) -> None:
        if self._is_shown:
            self._write("\r\x1b[2K")
            self._is_shown = False

    async def spin(self) -> None:
        """Until it is cancelled. While words stream, they are movement enough."""
        while True:
            await asyncio.sleep(FRAME_S)
            self.tick()

    def _write(self, text: str) -> None:
        self.console.file.write(text)
        self.console.file.flush()


# Pieces


def clean(text: str) -> str:
    """The text without what could move the cursor, and without halves of surrogate pairs."""
    return text.translate(CONTROLS).encode("utf-8", "replace").decode()


def within(text: str, folder: str) -> str:
    """The text with the folder's paths as they are from there."""
    return text.replace(f"{folder}/", "") if len(folder) > 1 else text


def diff_within(diff: str, folder: str) -> str:
    """A diff whose headers name the folder's files as they are from there."""
    if len(folder) <= 1:
        return diff
    return re.sub(rf"^(---|\+\+\+) ([ab]){re.escape(folder)}/", r"\1 \2/", diff, flags=re.MULTILINE)


def call_line(call: ToolCall, folder: str = "") -> Text:
    """A call in one line: "● bash  pytest -q". Paths in `folder` are shown without it."""
    line = Text("● ", style="cyan")
    line.append(clean(call.name), style="bold")
    line.append(f"  {one_line(within(call_words(call), folder))}")
    return line


def call_words(call: ToolCall) -> str:
    """What matters most of a call's arguments."""
    arguments = call.arguments
    shown = [
        name for name in ("command", "file_path", "pattern", "path", "offset", "limit") if name in arguments
    ]
    if shown:
        return "  ".join(
            f"{name} {arguments[name]}" if name in ("offset", "limit") else str(arguments[name])
            for name in shown
        )
    return json.dumps(arguments, ensure_ascii=False, default=str) if arguments else ""


def hidden_words(call: ToolCall) -> str:
    """All of a call's arguments, where its line does not show them; else ""."""
    words = clean(call_words(call)).strip()
    shown = {"command", "file_path", "pattern", "path", "offset", "limit", "timeout_s"}
    if one_line(words) == words and shown.issuperset(call.arguments):
        return ""
    parts = []
    for name, value in call.arguments.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        parts.append(f"  {name}: " + "\n    ".join(clean(text).split("\n")))
    return "\n".join(parts)


def one_line(text: str, max_chars: int = MAX_LINE_CHARS) -> str:
    line = " ⏎ ".join(clean(text).strip().splitlines())
    return line if len(line) <= max_chars else line[: max_chars - 1] + "…"


def folded(text: str, max_lines: int) -> Iterable[str]:
    """The first and last lines of a text, with how many were left out between."""
    lines = clean(text).rstrip("\n").split("\n")
    lines = [line if len(line) <= MAX_LINE_CHARS else line[: MAX_LINE_CHARS - 1] + "…" for line in lines]
    if len(lines) <= max_lines:
        return lines
    head = max_lines - max_lines // 2
    tail = max_lines // 2
    return [*lines[:head], f"… {len(lines) - head - tail} lines …", *lines[-tail:]]


def diff_text(diff: str, max_lines: int = MAX_DIFF_LINES) -> Text:
    """A unified diff in colour. What is left out of a long one is said."""
    lines = clean(diff).rstrip("\n").split("\n")
    text = Text()
    for number, line in enumerate(lines[:max_lines]):
        text.append(("\n" if number else "") + "  " + line, style=diff_style(line))
    if len(lines) > max_lines:
        text.append(f"\n  … {len(lines) - max_lines} lines more", style="dim")
    return text


def diff_style(line: str) -> str:
    if line.startswith(("+++", "---", "diff ", "index ", "new file", "deleted file", "old mode", "new mode")):
        return "bold"
    if line.startswith("@@"):
        return "cyan"
    return {"+": "green", "-": "red"}.get(line[:1], "dim")


def stopped_line(reason: StopReason, detail: str) -> str:
    return f"Stopped: {MEANINGS[reason]}." + (f" {clean(detail)}" if detail else "")


def rows_text(rows: Iterable[tuple[str, Any]]) -> Text:
    """Names and values in two columns."""
    rows = list(rows)
    width = max((len(name) for name, _ in rows), default=0)
    text = Text()
    for number, (name, value) in enumerate(rows):
        text.append(("\n" if number else "") + f"{name:{width}}  ", style="dim")
        text.append(clean(str(value)))
    return text
