"""What a reader of a model's text reports, and the writer that turns a call into such events."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from lathe.text.tool_arguments import Schema, json_string_body, json_text, may_become_null
from lathe.types import ToolCall


@dataclass(frozen=True)
class Content:
    """Text for the user."""

    text: str


@dataclass(frozen=True)
class Reasoning:
    """What a thinking model writes before its answer; no part of the content."""

    text: str


@dataclass(frozen=True)
class CallStarted:
    """A call begins. `index` counts the calls of one reply from 0; `id` is unique in the world."""

    index: int
    id: str
    name: str


@dataclass(frozen=True)
class ArgumentText:
    """The next piece of a call's arguments as JSON text. The pieces of one call join to one JSON object."""

    index: int
    text: str


@dataclass(frozen=True)
class CallFinished:
    """A call is complete, and may be run. A call that was cut never gets here."""

    index: int
    call: ToolCall


Event = Content | Reasoning | CallStarted | ArgumentText | CallFinished


def join_neighbours(events: Iterable[Event]) -> list[Event]:
    """The same events, with texts that follow one another in one."""
    joined: list[Event] = []
    for (kind, index), group in groupby(
        events, key=lambda event: (type(event), getattr(event, "index", None))
    ):
        if kind in (Content, Reasoning):
            joined.append(kind("".join(event.text for event in group)))  # type: ignore
        elif kind is ArgumentText:
            joined.append(ArgumentText(index, "".join(event.text for event in group)))  # type: ignore
        else:
            joined.extend(group)
    return joined


class CallWriter:
    """One call on its way out. The JSON text sent so far can be closed at every moment.

    A string leaves while it arrives; any other value when it is whole. The first of two parameters with
    one name counts: its text has left already, and JSON with a name twice reads differently everywhere.
    """

    def __init__(self, index: int, name: str, schema: Schema, emit: Callable[[Event], None]):
        self.index, self.name, self.schema, self.emit = index, name, schema, emit
        self.id = f"call_{uuid.uuid4().hex[:24]}"
        self.arguments: dict[str, Any] = {}
        self._key: str | None = None
        self._pieces: list[str] = []
        self._string_open = False
        self._open = False  # is a parameter's text still coming?
        emit(CallStarted(index, self.id, name))

    def begin(self, key: str) -> None:
        """The text of parameter `key` follows."""
        self._key = None if key in self.arguments else key
        self._pieces.clear()
        self._open = True

    def text(self, piece: str) -> None:
        if self._key is None or not piece:
            return
        self._pieces.append(piece)
        schema = self.schema.property(self._key)
        if self._string_open:
            self._send(json_string_body(piece))
        elif schema.is_text and not (schema.nullable and may_become_null("".join(self._pieces))):
            self.begin_string(self._key, "".join(self._pieces))

    def end(self) -> None:
        """The parameter's text is whole."""
        self._open = False
        if self._key is None:
            return
        text = "".join(self._pieces)
        if self._string_open:
            self._send('"')
            self._string_open = False
            self.arguments[self._key] = text
        else:
            self.put(self._key, self.schema.property(self._key).read(text))
        self._key = None

    def begin_string(self, key: str, text: str = "") -> None:
        """Parameter `key` is a string for certain, and begins with `text`."""
        self.begin(key)
        if self._key is not None:
            self._pieces.append(text)
            self._send(f'{self._lead(key)}"{json_string_body(text)}')
            self._string_open = True

    def put(self, key: str, value: Any) -> None:
        """Parameter `key` in one piece."""
        if key not in self.arguments:
            self._send(self._lead(key) + json_text(value))
            self.arguments[key] = value

    @property
    def is_whole(self) -> bool:
        """Could this be all of a call that nobody closed? No value is open, and it says something, and all
        that the tool requires.
        """
        says_something = bool(self.arguments) or not self.schema.properties
        return not self._open and says_something and self.schema.required <= self.arguments.keys()

    def finish(self) -> None:
        self._send("}" if self.arguments else "{}")
        self.emit(CallFinished(self.index, ToolCall(self.name, self.arguments, self.id)))

    def cut(self) -> None:
        """Nothing more comes: closes the JSON text, finishes nothing."""
        string_end = '"' if self._string_open else ""
        self._send(string_end + "}" if self.arguments or self._string_open else "{}")

    def _lead(self, key: str) -> str:
        return ("{" if not self.arguments else ", ") + json_text(key) + ": "

    def _send(self, text: str) -> None:
        self.emit(ArgumentText(self.index, text))
