"""OpenAI's response events: one reply's chunks become items of an output, and what happens to them.

A whole reply is the response that the last event carries, so that both kinds of reply say the same.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from lathe.engine.llm import Chunk
from lathe.server.logprobs import entries_json, spoken
from lathe.server.responses_items import seal
from lathe.server.service import Turn
from lathe.text.tokenizer import Tokenizer
from lathe.text.tool_call_events import ArgumentText, CallFinished, CallStarted, Content, Event, Reasoning
from lathe.types import Completion

Json = dict[str, Any]

PREFIXES = {"message": "msg", "reasoning": "rs", "function_call": "fc"}
DELTAS = {
    "message": "response.output_text",
    "reasoning": "response.reasoning_text",
    "function_call": "response.function_call_arguments",
}


@dataclass
class Item:
    """An item of the output while it is written. `index` is its place in the output."""

    kind: Literal["message", "reasoning", "function_call"]
    index: int
    id: str
    pieces: list[str] = field(default_factory=list)
    logprobs: list[Json] = field(default_factory=list)
    call: CallStarted | None = None

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def place(self) -> Json:
        """The fields by which an event names this item, or its only part."""
        place = {"item_id": self.id, "output_index": self.index}
        return place if self.kind == "function_call" else {**place, "content_index": 0}

    def part(self) -> Json:
        if self.kind == "reasoning":
            return {"type": "reasoning_text", "text": self.text}
        return {"type": "output_text", "text": self.text, "annotations": [], "logprobs": self.logprobs}

    def json(self, status: str) -> Json:
        """The item as it stands. While it is in progress its part is announced by an event of its own."""
        common = {"type": self.kind, "id": self.id, "status": status}
        if self.call is not None:
            call = {"call_id": self.call.id, "name": self.call.name, "arguments": self.text}
            return {**common, **call}
        content = [] if status == "in_progress" else [self.part()]
        if self.kind == "reasoning":
            return {**common, "summary": [], "content": content, "encrypted_content": None}
        return {**common, "role": "assistant", "content": content}


class ResponseWriter:
    """Writes one reply. `response` is the response as the last event told it.

    A call that is not complete becomes no item of the output, and its reply is never completed: clients run
    whatever call they are shown. White space between calls is no message either.
    """

    def __init__(self, response: Json, turn: Turn, tokenizer: Tokenizer, *, seal_reasoning: bool = False):
        self.response = response
        self._turn = turn
        self._tokenizer = tokenizer
        self._seal_reasoning = seal_reasoning
        self._num_events = 0
        self._num_items = 0
        self._output: list[Json] = []
        self._open: Item | None = None
        self._space = ""  # white space that begins a message if text follows
        self._logprobs: list[Json] = []  # of tokens whose text has not left yet
        self._answered = False
        self._cut_call: str | None = None

    def begin(self) -> Iterator[Json]:
        yield self._event("response.created", response=self.response)
        yield self._event("response.in_progress", response=self.response)

    def feed(self, chunk: Chunk) -> Iterator[Json]:
        sampling = self._turn.sampling
        if sampling.logprobs is not None:
            entries = spoken(chunk.logprobs, sampling, self._tokenizer, chunk.completion)
            self._logprobs += entries_json(entries, self._tokenizer)
        for event in chunk.events:
            yield from self._write(event)
        if chunk.completion is not None:
            yield from self._finish(chunk.completion)

    def fail(self, code: str, message: str) -> Json:
        """The last event of a reply that an error ended, with the items that were complete before."""
        return self._end("failed", error={"code": code, "message": message})

    def _write(self, event: Event) -> Iterator[Json]:
        match event:
            case Content(text):
                if self._open is None or self._open.kind != "message":
                    self._space += text
                    if not self._space.strip():
                        return
                    yield from self._begin_message()
                else:
                    yield from self._delta(text)
            case Reasoning(text):
                if self._open is None or self._open.kind != "reasoning":
                    yield from self._begin_item("reasoning")
                yield from self._delta(text)
            case CallStarted():
                self._space = ""
                yield from self._begin_item("function_call", event)
            case ArgumentText(_, text):
                yield from self._delta(text)
            case CallFinished():
                yield from self._close("completed", call_is_whole=True)

    def _begin_message(self) -> Iterator[Json]:
        text, self._space = self._space, ""
        yield from self._begin_item("message")
        self._logprobs = last_entries(self._logprobs, text)
        yield from self._delta(text)

    def _begin_item(
        self, kind: Literal["message", "reasoning", "function_call"], call: CallStarted | None = None
    ) -> Iterator[Json]:
        yield from self._close("completed")
        item = Item(kind, self._num_items, f"{PREFIXES[kind]}_{uuid.uuid4().hex}", call=call)
        self._open = item
        self._num_items += 1
        self._answered |= kind != "reasoning"
        yield self._event(
            "response.output_item.added", output_index=item.index, item=item.json("in_progress")
        )
        if kind != "function_call":
            yield self._event("response.content_part.added", **item.place, part=item.part())

    def _delta(self, text: str) -> Iterator[Json]:
        item = self._open
        if item is None or not text:
            return
        item.pieces.append(text)
        fields: Json = {**item.place, "delta": text}
        if item.kind == "message":
            fields["logprobs"], self._logprobs = self._logprobs, []
            item.logprobs += fields["logprobs"]
        yield self._event(f"{DELTAS[item.kind]}.delta", **fields)

    def _close(self, status: str, *, call_is_whole: bool = False) -> Iterator[Json]:
        """End the item that is being written, if there is one."""
        item, self._open = self._open, None
        if item is None:
            return
        if item.call is not None:
            if not call_is_whole:
                self._cut_call = item.call.name
                return
            done: Json = {"arguments": item.text}
        else:
            done = {"text": item.text}
            if item.kind == "message":
                done["logprobs"] = item.logprobs
        yield self._event(f"{DELTAS[item.kind]}.done", **item.place, **done)
        if item.call is None:
            yield self._event("response.content_part.done", **item.place, part=item.part())
        finished = item.json(status)
        if item.kind == "reasoning" and self._seal_reasoning:
            finished["encrypted_content"] = seal(item.text)
        self._output.append(finished)
        yield self._event("response.output_item.done", output_index=item.index, item=finished)

    def _finish(self, completion: Completion) -> Iterator[Json]:
        reason = completion.finish_reason
        if not self._answered and (reason != "length" or self._open is None):
            yield from self._begin_message()  # clients look for one, also in a reply without a word
        item = self._open
        if item is not None and item.kind == "message":
            item.logprobs += self._logprobs  # of a last half character
        yield from self._close("completed" if reason in ("stop", "tool_calls") else "incomplete")
        usage = self._usage(completion)
        if reason == "length":
            yield self._end("incomplete", usage, incomplete_details={"reason": "max_output_tokens"})
        elif reason == "abort":
            message = "The server stopped before the reply was complete. Send the request again."
            yield self._end("failed", usage, error={"code": "server_error", "message": message})
        elif self._cut_call is not None:
            message = f"The model's call of {self._cut_call} is not complete, and was left out."
            yield self._end("failed", usage, error={"code": "server_error", "message": message})
        else:
            yield self._end("completed", usage, completed_at=int(time.time()))

    def _usage(self, completion: Completion) -> Json:
        num_prompt, count = len(completion.prompt_token_ids), len(completion.token_ids)
        return {
            "input_tokens": num_prompt,
            # Writing to the cache is what OpenAI bills; nothing is billed here.
            "input_tokens_details": {"cached_tokens": completion.num_cached_tokens, "cache_write_tokens": 0},
            "output_tokens": count,
            "output_tokens_details": {"reasoning_tokens": completion.num_reasoning_tokens},
            "total_tokens": num_prompt + count,
        }

    def _end(self, status: str, usage: Json | None = None, **fields: Any) -> Json:
        self.response = {
            **self.response,
            "status": status,
            "output": self._output,
            "usage": usage,
            **fields,
        }
        return self._event(f"response.{status}", response=self.response)

    def _event(self, kind: str, **fields: Any) -> Json:
        event = {"type": kind, "sequence_number": self._num_events, **fields}
        self._num_events += 1
        return event


def last_entries(entries: list[Json], text: str) -> list[Json]:
    """The last entries that a message's first text takes: before them are tags, such as a thought's end."""
    num_missing, start = len(text.encode()), len(entries)
    while num_missing > 0 and start > 0:
        start -= 1
        num_missing -= len(entries[start]["bytes"])
    return entries[start:]
