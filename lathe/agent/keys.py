"""How a turn is typed: completion, keys, and what was typed too early."""

from __future__ import annotations

import sys
import termios
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.key_binding import KeyBindings
from prompt_toolkit.key_binding.key_processor import KeyPressEvent

from lathe.agent.commands import completions


class TypedCompleter(Completer):
    """Slash commands, and files behind @."""

    def __init__(self, files: Callable[[], Sequence[str]], sessions: Callable[[], Sequence[str]]):
        self.files, self.sessions = files, sessions

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        before = document.text_before_cursor
        sessions = self.sessions() if before.startswith("/resume") else ()
        for text, length in completions(before, self.files(), sessions):
            yield Completion(text, start_position=-length)


def key_bindings() -> KeyBindings:
    """Enter sends; Alt-Enter, or a backslash before Enter, begins a new line."""
    bindings = KeyBindings()

    @bindings.add("enter")
    @bindings.add("c-j")  # an Enter that was typed ahead, while the terminal made newlines of them
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.text_before_cursor.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @bindings.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return bindings


def forget_typed_ahead() -> None:
    """What was typed before a question was asked is no answer to it."""
    with suppress(OSError, ValueError, termios.error):
        termios.tcflush(sys.stdin.fileno(), termios.TCIFLUSH)
