"""What a reply's events are in Anthropic's dialect: content blocks, as a stream tells them or as a whole.

Both ways drop a text of nothing but white space, such as the newline between two calls: clients send blocks
back, and other servers of this dialect refuse blank ones. A call that was cut is no block of a whole reply,
and in a stream it never stops: agents run a call when its block stops, whatever the reply's stop_reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal

from lathe.text.tool_call_events import (
    ArgumentText,
    CallFinished,
    CallStarted,
    Content,
    Event,
    Reasoning,
    join_neighbours,
)

Payload = dict[str, Any]
Kind = Literal["text", "thinking", "tool_use"]


def whole_blocks(events: Iterable[Event]) -> list[Payload]:
    """The blocks that all of a reply's events make."""
    blocks: list[Payload] = []
    for event in join_neighbours(events):
        match event:
            case Content(text) if text.strip():
                blocks.append({"type": "text", "text": text})
            case Reasoning(text) if text.strip():
                blocks.append({"type": "thinking", "thinking": text, "signature": ""})
            case CallFinished(_, call):
                arguments = dict(call.arguments)
                blocks.append({"type": "tool_use", "id": call.id, "name": call.name, "input": arguments})
    return blocks


class BlockWriter:
    """Writes events as content_block_start, _delta and _stop. One block is open at a time, or none."""

    def __init__(self) -> None:
        self._index = -1
        self._kind: Kind | None = None
        self._is_open = False
        self._blank = ""  # white space that is text only if more than white space follows

    def write(self, event: Event) -> Iterator[Payload]:
        """The next event's payloads."""
        match event:
            case Content(text):
                yield from self._words("text", text)
            case Reasoning(text):
                yield from self._words("thinking", text)
            case CallStarted(_, id, name):
                yield from self.close()
                yield self._start("tool_use", {"id": id, "name": name, "input": {}})
            case ArgumentText(_, text):
                yield self._delta({"type": "input_json_delta", "partial_json": text})
            case CallFinished():
                yield from self._stop()

    def close(self) -> Iterator[Payload]:
        """The end of the open text, if there is one: nothing that is written later belongs to it."""
        if self._is_open and self._kind == "thinking":
            yield self._delta({"type": "signature_delta", "signature": ""})
        if self._is_open and self._kind != "tool_use":
            yield from self._stop()
        self._kind, self._is_open, self._blank = None, False, ""

    def _stop(self) -> Iterator[Payload]:
        yield {"type": "content_block_stop", "index": self._index}
        self._kind, self._is_open = None, False

    def _words(self, kind: Literal["text", "thinking"], text: str) -> Iterator[Payload]:
        if self._kind != kind:
            yield from self.close()
            self._kind = kind
        if not self._is_open:
            if not text.strip():
                self._blank += text
                return
            yield self._start(kind, {"text": ""} if kind == "text" else {"thinking": "", "signature": ""})
            text, self._blank = self._blank + text, ""
        if text:
            yield self._delta({"type": f"{kind}_delta", kind: text})

    def _start(self, kind: Kind, fields: Payload) -> Payload:
        self._index += 1
        self._kind, self._is_open = kind, True
        return {"type": "content_block_start", "index": self._index, "content_block": {"type": kind} | fields}

    def _delta(self, delta: Payload) -> Payload:
        return {"type": "content_block_delta", "index": self._index, "delta": delta}
