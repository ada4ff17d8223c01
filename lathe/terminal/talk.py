"""A conversation in the terminal: turns are read, replies stream, and Ctrl-C stops a reply, not the chat."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from lathe.errors import PromptTooLong
from lathe.text.tool_calls import Content, Event, Reasoning
from lathe.types import Completion, Message, SamplingParams

if TYPE_CHECKING:
    from rich.console import Console

    from lathe.engine.llm import LLM, Chunk

HELP = """/clear  forget the conversation so far
/exit   leave (so does Ctrl-D)
Ctrl-C  stop the reply; the conversation goes on
A line that ends with a backslash goes on in the next one."""

# A reply is a stranger's text: without these it can't move the cursor, retitle the window or ring the bell.
CONTROLS = dict.fromkeys([*range(9), *range(11, 32), *range(127, 160)])

DIM, BRIGHT = "\x1b[2m", "\x1b[22m"


def converse(
    llm: LLM, turns: Iterable[str], sampling: SamplingParams, console: Console, *, system: str | None = None
) -> None:
    """Answer each turn on stdout; `console` (stderr) shows the speed. Slash commands are obeyed."""
    opening = [Message("system", system)] if system else []
    messages = list(opening)
    for turn in turns:
        match turn.strip():
            case "":
                continue
            case "/exit" | "/quit":
                return
            case "/clear":
                messages = list(opening)
                console.print("[dim]The conversation is forgotten.[/dim]")
                continue
            case "/help":
                console.print(HELP, markup=False)
                continue
        messages.append(Message("user", turn))
        try:
            reply = show(llm.stream_chat(messages, sampling=sampling), sys.stdout, console)
        except PromptTooLong as error:
            messages.pop()
            console.print(f"[red]{error}[/red] /clear forgets the conversation.", soft_wrap=True)
            continue
        messages.append(reply)


def show(chunks: Iterator[Chunk], out: TextIO, console: Console) -> Message:
    """Print a reply as it streams, then its speed. Returns it, also when Ctrl-C cut it short.

    A thought is shown dimmed on a terminal, and not at all elsewhere: a script wants the answer.
    """
    started = time.monotonic()
    first: float | None = None
    num_tokens = 0
    events: list[Event] = []
    completion: Completion | None = None
    try:
        for chunk in chunks:
            first = first or time.monotonic()
            num_tokens += len(chunk.logprobs)
            completion = chunk.completion
            out.write(shown(chunk.events, events, out.isatty()))
            out.flush()
            events += chunk.events
    except KeyboardInterrupt:
        chunks.close()  # type: ignore[attr-defined]  # a generator; closing it frees the reply's pages
    out.write("\n")
    out.flush()
    if console.is_terminal and first is not None:
        reason = completion.finish_reason if completion else "stopped"
        console.print(
            f"[dim]{speed(num_tokens, started, first, time.monotonic())}  {reason}[/dim]\n", highlight=False
        )
    thought = "".join(event.text for event in events if isinstance(event, Reasoning))
    content = "".join(event.text for event in events if isinstance(event, Content))
    return Message("assistant", content, reasoning=thought or None)


def shown(events: Sequence[Event], before: Sequence[Event], is_terminal: bool) -> str:
    """What these events add to what was printed before them."""
    text = ""
    last = before[-1] if before else None
    for event in events:
        if isinstance(event, Reasoning) and is_terminal:
            text += DIM + event.text.translate(CONTROLS) + BRIGHT
        elif isinstance(event, Content):
            text += "\n\n" if isinstance(last, Reasoning) and is_terminal else ""
            text += event.text.translate(CONTROLS) if is_terminal else event.text
        last = event
    return text


def speed(num_tokens: int, started: float, first: float, ended: float) -> str:
    """Decoding alone counts as speed: the first token's time is the prompt's."""
    rate = f"{(num_tokens - 1) / (ended - first):.1f}" if num_tokens > 1 and ended > first else "-"
    return f"{num_tokens} tokens  {rate} tok/s  first after {first - started:.2f} s"


def typed_turns(history: Path) -> Iterator[str]:
    """Turns from a person, with the history of earlier chats behind the arrow keys. Ends with Ctrl-D."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import FileHistory

    history.parent.mkdir(parents=True, exist_ok=True)
    history.touch(mode=0o600)
    session: PromptSession[str] = PromptSession(history=FileHistory(str(history)))
    while True:
        try:
            yield _joined(session.prompt, "> ")
        except KeyboardInterrupt:
            continue
        except EOFError:
            return


def _joined(ask: Callable[[str], str], mark: str) -> str:
    lines = [ask(mark)]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        lines.append(ask(". "))
    return "\n".join(lines)


def piped_turns(lines: TextIO) -> Iterator[str]:
    """One turn a line, for a script of turns."""
    for line in lines:
        yield line.rstrip("\n")
