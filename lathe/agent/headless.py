"""One turn without a person: the answer, or JSON, on stdout, and an exit code that says how it ended.

The JSON has the shape that scripts around coding agents already read: with "stream-json", a line when it
begins, one for each message of the agent (`assistant`) and each round of results (`user`), and a last one
(`result`); with "json", the last one alone.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, TextIO, get_args

from rich.console import Console

from lathe.agent.attempt import Attempt
from lathe.agent.coder import Coder
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
from lathe.agent.render import Spinner, call_line, clean, one_line, stopped_line, within
from lathe.errors import UserError
from lathe.types import Message, ToolCall

Output = Literal["text", "json", "stream-json"]
STDIN_WAIT_S = 3.0

EXIT_CODES: Mapping[StopReason, int] = {
    "done": 0,
    "max_turns": 53,
    "max_tokens": 54,
    "max_time": 55,
    "loop": 56,
    "model": 57,
    "sandbox": 58,
    "context": 59,
    "length": 60,
    "interrupted": 130,
}


def parse_output(text: str) -> Output:
    """Raises UserError."""
    for output in get_args(Output):
        if text == output:
            return output
    raise UserError(f"{text} is no output: choose one of {', '.join(get_args(Output))}.")


async def answer(coder: Coder, prompt: str, output: Output, out: TextIO, console: Console) -> int:
    """Let the agent work on one turn. `out` gets the answer or the JSON and nothing else, `console` (stderr)
    what it does. Returns the exit code. SIGINT and SIGTERM end it, with the session kept."""
    writer = JsonWriter(coder, output, out)
    watcher = Watcher(console, str(coder.workplace.config.folder))
    coder.on_event = writer.hear if output != "text" else watcher.hear
    writer.begin()
    interrupt = asyncio.Event()
    spinning = asyncio.ensure_future(watcher.spinner.spin())
    with _interrupted_by(interrupt, (signal.SIGINT, signal.SIGTERM)):
        attempt = await coder.say(prompt, interrupt)
    spinning.cancel()
    reason = attempt.stop_reason or "interrupted"
    if output == "text":
        if words := coder.answer_of(attempt):
            out.write(words.encode("utf-8", "replace").decode().rstrip("\n") + "\n")
            out.flush()
    else:
        writer.end(attempt)
    if reason != "done":
        console.print(stopped_line(reason, attempt.detail), style="yellow", markup=False, soft_wrap=True)
    if coder.refused:
        console.print(refusals(coder.refused), style="yellow", markup=False, soft_wrap=True)
    return EXIT_CODES[reason]


def refusals(calls: list[ToolCall]) -> str:
    """What was not done, and how it may be."""
    names = ", ".join(dict.fromkeys(one_line(call.name, 40) for call in calls))
    number = "1 call was" if len(calls) == 1 else f"{len(calls)} calls were"
    return (
        f"{number} refused ({names}): nobody is here to allow them. --mode auto-edit lets files be changed, "
        "--mode yolo also lets commands run."
    )


class Watcher:
    """Each call and its end as a line on stderr; in a terminal, also that something goes on."""

    def __init__(self, console: Console, folder: str):
        self.console, self.folder = console, folder
        self.spinner = Spinner(console)

    def hear(self, event: Event) -> None:
        self.spinner.hide()
        match event:
            case TurnStarted():
                self.spinner.say("thinking")
            case ToolStarted(call):
                self.console.print(call_line(call, self.folder), soft_wrap=True, highlight=False)
                self.spinner.say(f"running {clean(call.name)}")
            case ToolEnded(_, result, duration_s, is_error, denied):
                last = one_line(within(result.content.rstrip().rsplit("\n", 1)[-1], self.folder), 160)
                self._note(f"{'✗' if is_error or denied else '✓'} {duration_s:.1f} s  {last}")
            case Nudged(_, text):
                self._note(f"(told it: {clean(text)})")
            case Compacted(_, _, before, after):
                self._note(f"(summed up: {before:,} tokens became {after:,})")
            case Ended():
                self.spinner.rest()

    def _note(self, text: str) -> None:
        self.console.print(f"  {text}", style="dim", markup=False, soft_wrap=True, highlight=False)


class JsonWriter:
    """Writes a run as lines of JSON ("stream-json"), or its end alone ("json")."""

    def __init__(self, coder: Coder, output: Output, out: TextIO):
        self.coder, self.output, self.out = coder, output, out

    def begin(self) -> None:
        if self.output == "stream-json":
            self._write(
                type="system",
                subtype="init",
                cwd=str(self.coder.workplace.config.folder),
                model=self.coder.session.model,
                mode=self.coder.approvals.mode,
                tools=[tool.name for tool in self.coder.tools],
            )

    def hear(self, event: Event) -> None:
        if self.output != "stream-json":
            return
        match event:
            case TurnEnded(_, completion):
                self._write(
                    type="assistant",
                    message={
                        "role": "assistant",
                        "content": blocks(completion.message),
                        "stop_reason": completion.finish_reason,
                        "usage": {
                            "input_tokens": completion.num_prompt_tokens,
                            "output_tokens": completion.num_reply_tokens,
                            "cached_tokens": completion.num_cached_tokens,
                        },
                    },
                )
            case ToolEnded(call, result, duration_s, is_error, denied, diff):
                block = {"type": "tool_result", "tool_use_id": call.id, "content": result.content}
                more: dict[str, Any] = {"duration_ms": round(1000 * duration_s)}
                more |= {"denied": True} if denied else {}
                more |= {"diff": diff} if diff else {}
                content = [{**block, "is_error": is_error}]
                self._write(type="user", message={"role": "user", "content": content}, **more)
            case Nudged(why, text):
                content = [{"type": "text", "text": text}]
                self._write(type="user", message={"role": "user", "content": content}, nudged=why)
            case Compacted(_, _, before, after):
                self._write(type="system", subtype="compact", tokens_before=before, tokens_after=after)

    def end(self, attempt: Attempt) -> None:
        reason = attempt.stop_reason or "interrupted"
        counts = attempt.counts
        self._write(
            type="result",
            subtype="success" if reason == "done" else f"error_{reason}",
            is_error=reason != "done",
            result=self.coder.answer_of(attempt),
            stop_reason=reason,
            detail=attempt.detail,
            exit_code=EXIT_CODES[reason],
            num_turns=counts.num_turns,
            num_calls=counts.num_calls,
            duration_ms=round(1000 * counts.duration_s),
            usage={
                "input_tokens": counts.num_prompt_tokens,
                "cached_tokens": counts.num_cached_tokens,
                "output_tokens": counts.num_reply_tokens,
            },
            permission_denials=[
                {"tool_name": call.name, "tool_use_id": call.id, "tool_input": call.arguments}
                for call in self.coder.refused
            ],
        )

    def _write(self, **fields: Any) -> None:
        fields["session_id"] = self.coder.session.id
        is_utf8 = (self.out.encoding or "utf-8").lower().replace("-", "") == "utf8"
        line = json.dumps(fields, ensure_ascii=not is_utf8, default=str, separators=(",", ":"))
        # A lone surrogate is no UTF-8; \ud800 is JSON's own escape for it.
        self.out.write(line.encode("utf-8", "backslashreplace").decode() + "\n")
        self.out.flush()


def blocks(message: Message) -> list[dict[str, Any]]:
    """A message's parts, as scripts know them."""
    parts: list[dict[str, Any]] = []
    if message.reasoning:
        parts.append({"type": "thinking", "thinking": message.reasoning})
    if message.content:
        parts.append({"type": "text", "text": message.content})
    parts += [
        {"type": "tool_use", "id": call.id, "name": call.name, "input": call.arguments}
        for call in message.tool_calls
    ]
    return parts


@contextmanager
def _interrupted_by(interrupt: asyncio.Event, signals: tuple[signal.Signals, ...]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    for each in signals:
        loop.add_signal_handler(each, interrupt.set)
    try:
        yield
    finally:
        for each in signals:
            loop.remove_signal_handler(each)


def read_prompt(words: str | None, stdin: TextIO) -> str:
    """The turn: what was said on the command line, and what is piped in behind it. Raises UserError for
    neither. A pipe into which nobody writes is left alone after a while."""
    said = "" if words in (None, "-") else str(words)
    piped = stdin.read() if not stdin.isatty() and (not said or _has_text(stdin)) else ""
    parts = [part for part in (said, piped) if part.strip()]
    if not parts:
        raise UserError('Say what to do: lathe code -p "find the bug and mend it".')
    return "\n\n".join(parts)


def _has_text(stdin: TextIO) -> bool:
    try:
        handle = stdin.fileno()
        mode = os.fstat(handle).st_mode
    except (OSError, ValueError):
        return False
    if stat.S_ISREG(mode):
        return True
    return stat.S_ISFIFO(mode) and bool(select.select([handle], [], [], STDIN_WAIT_S)[0])
