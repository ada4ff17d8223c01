"""Qwen3's calls: <tool_call>{"name": ..., "arguments": {...}}</tool_call>."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from lathe.text.tool_arguments import UNREADABLE, Schema, read_structure, read_value
from lathe.text.tool_call_events import CallWriter, Event
from lathe.text.tool_call_text import MAX_SPACE, PLAIN, SPACE, TAG_START, Prose, Wait, Window

# What an object must begin with to be taken for a call. Anything else goes on as text at once.
KEYS = tuple(
    quote + key + quote for key in ("name", "arguments", "parameters", "id", "type") for quote in "\"'"
)
NAMED = re.compile(r'\{\s*"name"\s*:\s*"([^"\\]{1,128})"')
NOT_NAMED_YET = re.compile(r'(?:\{\s*(?:"(?:n(?:a(?:me?)?)?)?|"name"\s*(?::\s*(?:"[^"\\]{0,128})?)?)?)?')
HEADER = re.compile(NAMED.pattern + r'\s*,\s*"(?:arguments|parameters)"\s*:\s*\{')
MAX_HEADER = 512  # characters

OUTSIDE = re.compile(r"""[^"'{}\[\],<]++""")
INSIDE = {'"': re.compile(r'[^"\\]++'), "'": re.compile(r"[^'\\]++")}
ESCAPE = re.compile(r'\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})')
HIGH_SURROGATE = re.compile(r"\\u[dD][89abAB][0-9a-fA-F]{2}")
PAIR = re.compile(r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}")


class JsonReader:
    """Reads a whole reply. `schemas` maps the names of the tools on offer to their parameters' schemas."""

    def __init__(
        self, window: Window, prose: Prose, schemas: Mapping[str, Schema], emit: Callable[[Event], None]
    ):
        self.window, self.prose, self.schemas, self.emit = window, prose, schemas, emit
        self._num_calls = 0

    def read(self) -> Wait[None]:
        yield from self._read_leaked()
        while (yield from self.window.more()):
            if length := self.window.match_length(PLAIN):
                self.prose.write(self.window.take(length))
            elif length := (yield from self._opening()):
                self.window.remember()
                yield from self._read_block(self.window.take(length))
                self.window.recall()
            else:
                self.prose.write(self.window.take(1))
        self.prose.finish()

    def _read_leaked(self) -> Wait[None]:
        """Reads a reply that is nothing but calls without <tool_call>, each with the name of a tool on offer.

        Nobody knows before the end whether that is all: until then such a call is held back.
        """
        if not (yield from self._leak_begins()):
            return
        calls: list[tuple[str, dict[str, Any]]] = []
        self.window.remember()
        while (yield from self._next_mark()) == "{":
            pieces: list[str] = []
            yield from self._scan(pieces)
            call = _decode_call("".join(pieces))
            if call is None or call[0] not in self.schemas:
                break
            calls.append(call)
            tag = yield from self.window.next_tag(0)
            if tag.kind == "/tool_call":
                self.window.take(tag.end)
            if (yield from self.window.turn_ends()):
                for name, arguments in calls:
                    self._write_call(name, arguments)
                return
        self.prose.write(self.window.recall())

    def _leak_begins(self) -> Wait[bool]:
        """Does the text begin with the header of a call, after white space?"""
        start = yield from self._after_space(0)
        while True:
            text = self.window.slice(start, start + MAX_HEADER)
            named = NAMED.match(text)
            begins = named[1] in self.schemas if named else NOT_NAMED_YET.fullmatch(text)
            if begins and HEADER.match(text):
                return True
            if not begins or self.window.ended or len(text) == MAX_HEADER:
                return False
            yield

    def _opening(self) -> Wait[int]:
        """The length of <tool_call> and the space behind it where a call begins; else 0."""
        tag = yield from self.window.tag_at(0)
        if tag.kind != "tool_call":
            return 0
        if self.prose.in_code:
            self.prose.tag_in_code()
            return 0
        return (yield from self._object_at(tag.end))

    def _object_at(self, at: int) -> Wait[int]:
        """Where after `at` and white space an object begins that may be a call; else 0."""
        start = yield from self._after_space(at)
        if self.window.slice(start, start + 1) != "{":
            return 0
        key_at = yield from self._after_space(start + 1)
        while True:
            text = self.window.slice(key_at, key_at + max(map(len, KEYS)))
            if text.startswith(KEYS):
                return start
            if self.window.ended or not any(key.startswith(text) for key in KEYS):
                return 0
            yield

    def _after_space(self, at: int) -> Wait[int]:
        while True:
            space = self.window.match_length(SPACE, at)
            if at + space < len(self.window) or space == MAX_SPACE or self.window.ended:
                return at + space
            yield

    def _read_block(self, opening: str) -> Wait[None]:
        """What stands between <tool_call> and </tool_call>: one object or more."""
        while True:
            if not (yield from self._read_object(opening)):
                return
            tag = yield from self.window.next_tag(0)
            if tag.kind == "/tool_call":
                self.window.take(tag.end)
                return
            start = yield from self._object_at(0)
            if not start:
                return
            self.window.remember()
            opening = self.window.take(start)

    def _read_object(self, opening: str) -> Wait[bool]:
        """One call. What turns out to be none goes on as text; what a limit cuts off is dropped."""
        pieces: list[str] = []
        scanned = yield from self._scan(pieces, stop_at_header=True)
        text = "".join(pieces)
        if header := HEADER.fullmatch(text):
            yield from self._stream_arguments(self._start(header[1]))
        elif scanned and (call := _decode_call(text)):
            self._write_call(*call)
        elif self.window.ended and not self.window and not self.window.end_of_turn:
            self.prose.call_begins()
        else:
            self.prose.write(opening + text)
            return False
        self.prose.call_ended()
        return True

    def _write_call(self, name: str, arguments: dict[str, Any]) -> None:
        call = self._start(name)
        for key, value in call.schema.fit(arguments).items():
            call.put(key, value)
        call.finish()

    def _start(self, name: str) -> CallWriter:
        self.prose.call_begins()
        call = CallWriter(self._num_calls, name, self.schemas.get(name, Schema({})), self.emit)
        self._num_calls += 1
        return call

    def _stream_arguments(self, call: CallWriter) -> Wait[None]:
        """Sends on the members of the arguments' object, from behind its "{"."""
        while (mark := (yield from self._next_mark())) not in ("", "}"):
            if mark == ",":
                self.window.take(1)
            elif mark != '"' or not (yield from self._stream_member(call)):
                break
        if mark != "}":
            call.cut()
            yield from self._drop_rest()
            yield from self._give_back()
            return
        self.window.take(1)
        yield from self._next_mark()
        rest: list[str] = []
        whole = yield from self._scan(rest, depth=1)
        # also when the last "}" is missing, before </tool_call> or where the model ended its turn
        if whole or not self.window.ended or (self.window.end_of_turn and call.name in self.schemas):
            call.finish()
        else:
            call.cut()
            yield from self._give_back()

    def _give_back(self) -> Wait[None]:
        """A call that the model left unfinished when it ended its turn is text."""
        if (yield from self.window.turn_ends()):
            self.prose.call_was_text(self.window.recall())

    def _stream_member(self, call: CallWriter) -> Wait[bool]:
        """One "key": value. False if there is none, or the text ends in it."""
        pieces: list[str] = []
        yield from self._scan_string(pieces)
        key = read_value("".join(pieces))
        if not isinstance(key, str) or (yield from self._next_mark()) != ":":
            return False
        self.window.take(1)
        schema = call.schema.property(key)
        if (yield from self._next_mark()) == '"' and (not schema.types or "string" in schema.types):
            call.begin_string(key)
            return (yield from self._stream_string(call))
        pieces.clear()
        if not (yield from self._scan(pieces)):
            return False
        text = "".join(pieces)
        value = read_value(text)
        call.put(key, schema.read(text.strip()) if value is UNREADABLE else schema.fit(value))
        return True

    def _stream_string(self, call: CallWriter) -> Wait[bool]:
        self.window.take(1)
        while (yield from self.window.more()):
            if length := self.window.match_length(INSIDE['"']):
                call.text(self.window.take(length))
            elif self.window.slice(0, 1) == '"':
                self.window.take(1)
                call.end()
                return True
            else:
                escape = self.window.take((yield from self._escape_length()))
                call.text(json.loads(f'"{escape}"') if len(escape) > 1 else escape)
        return False

    def _escape_length(self) -> Wait[int]:
        """Of the escape that begins here, with its second half if it is half a character. 1 if it is none."""
        yield from self.window.more(1)
        if self.window.slice(1, 2) == "u":
            yield from self.window.more(5)
        if self.window.match_length(HIGH_SURROGATE):
            yield from self.window.more(6)
            if self.window.slice(6, 7) == "\\":
                yield from self.window.more(11)
            if pair := self.window.match_length(PAIR):
                return pair
        return self.window.match_length(ESCAPE) or 1

    def _scan(self, pieces: list[str], depth: int = 0, stop_at_header: bool = False) -> Wait[bool]:
        """Moves a value to `pieces`, up to the end of its brackets, or before the "," or bracket that ends a
        number or a word. False when the text or the block ends before that.
        """
        while (yield from self.window.more()):
            mark = self.window.slice(0, 1)
            if mark in "\"'":
                yield from self._scan_string(pieces)
                continue
            if depth == 0 and mark in ",}]":
                return True
            if mark == "<" and (yield from self.window.tag_at(0)).kind == "/tool_call":
                return False
            pieces.append(self.window.take(self.window.match_length(OUTSIDE) or 1))
            depth += (mark in "{[") - (mark in "}]")
            if depth == 0 and mark in "}]":
                return True
            if stop_at_header and mark == "{" and depth == 2:
                stop_at_header = False
                if sum(map(len, pieces)) <= MAX_HEADER and HEADER.fullmatch("".join(pieces)):
                    return False
        return False

    def _scan_string(self, pieces: list[str]) -> Wait[None]:
        pieces.append(quote := self.window.take(1))
        while (yield from self.window.more()):
            if length := self.window.match_length(INSIDE[quote]):
                pieces.append(self.window.take(length))
                continue
            if self.window.slice(0, 1) == quote:
                pieces.append(self.window.take(1))
                return
            yield from self.window.more(1)
            pieces.append(self.window.take(2))

    def _next_mark(self) -> Wait[str]:
        """The next character that is no white space; "" at the end."""
        while (yield from self.window.more()):
            if not (length := self.window.match_length(SPACE)):
                break
            self.window.take(length)
        return self.window.slice(0, 1)

    def _drop_rest(self) -> Wait[None]:
        """Passes over what is left of a call that is no JSON, up to its </tool_call>."""
        while (yield from self.window.more()):
            if (yield from self.window.tag_at(0)).kind in ("/tool_call", "tool_call"):
                return
            self.window.take(max(1, self.window.find(TAG_START, 1)))


def _decode_call(text: str) -> tuple[str, dict[str, Any]] | None:
    """The name and the arguments of a whole object, in JSON or as a Python literal; None if it is no call."""
    value = read_value(text)
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", value.get("parameters")) or {}
    if isinstance(arguments, str):
        arguments = read_structure(arguments)
    return (value["name"], arguments) if isinstance(arguments, dict) else None
