"""Which conversation a request goes on with: each sends all of it anew, in JSON that may have changed.

`Sessions` remembers what was served: the messages, and the exact ids that the model read and sampled. `match`
finds the conversation that a request's messages go on with, so that its prompt can be made of those ids.
`place` says which trajectory an answered prompt belongs to. The rules, in words, are in docs/records.md.
"""

from __future__ import annotations

import json
import re
import time
import uuid
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from itertools import groupby, takewhile
from typing import Any

from fastapi import Request

from lathe.types import Message, Trajectory

# In the order in which they are believed. None of them names a person, as OpenAI's `user` does.
SESSION_HEADERS = ("x-session-id", "x-claude-code-session-id", "session-id", "session_id")
SESSION_FIELDS = ("session_id", "sessionId")


async def session_of(request: Request) -> str | None:
    """The client's own name for the session that a request belongs to."""
    return session_hint(request.headers, await request.json())


def session_hint(headers: Mapping[str, str], body: Any) -> str | None:
    """A header's, else `metadata.session_id`, Claude Code's within `metadata.user_id`, `prompt_cache_key`."""
    body = body if isinstance(body, dict) else {}
    given = body.get("metadata")
    metadata = given if isinstance(given, dict) else {}
    hints = [
        *(headers.get(name) for name in SESSION_HEADERS),
        *(metadata.get(name) for name in SESSION_FIELDS),
        _session_of_user(metadata.get("user_id")),
        body.get("prompt_cache_key"),
    ]
    return next((hint for hint in hints if isinstance(hint, str) and hint), None)


def _session_of_user(user_id: Any) -> str | None:
    """Claude Code writes user_…_account_…_session_ID, or JSON with a session_id."""
    found = re.search(r'(?:_session_|"session_id":\s*")([0-9a-f-]{36})', str(user_id))
    return found.group(1) if found else None


@dataclass(frozen=True)
class ReplyEnd:
    """Where a reply of a conversation ends. `key` names all that was said up to there (see `reply_keys`)."""

    num_messages: int
    num_tokens: int
    key: bytes | None


@dataclass(eq=False)
class Record:
    """A rollout that is being written. `agent` is how its first conversation with tools begins (its system
    messages, its tools), `latest` the last conversation that begins so."""

    session: str | None
    id: str = field(default_factory=lambda: f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:12]}")
    num_parts: int = 0
    conversations: set[str] = field(default_factory=set)
    agent: tuple[Any, ...] | None = None
    latest: str | None = None


@dataclass(eq=False)
class Conversation:
    """As much of a trajectory as its next turn needs: its ids at four bytes each, nothing else by token."""

    record: Record
    trajectory: Trajectory  # without its tokens
    token_ids: array[int] = field(default_factory=lambda: array("i"))
    ends: list[ReplyEnd] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)  # the ids of those that its replies made

    @property
    def id(self) -> str:
        return self.trajectory.id

    def num_shared(self, prompt: array[int]) -> int:
        """How many of its tokens a prompt begins with, counted in whole replies."""
        shared = 0
        for end in self.ends:
            # Most that differ, differ in this one token. Looking at it first saves the copies.
            last = end.num_tokens - 1
            if last >= len(prompt) or prompt[last] != self.token_ids[last]:
                break
            if prompt[shared : end.num_tokens] != self.token_ids[shared : end.num_tokens]:
                break
            shared = end.num_tokens
        return shared


@dataclass(frozen=True)
class Match:
    """A request's first `num_messages` are those of `conversation` up to `end`."""

    conversation: Conversation
    end: ReplyEnd
    num_messages: int


class Sessions:
    """The conversations that were served lately. Beyond `max_tokens`, the least recently used are forgotten:
    one that comes back begins a new trajectory. Not thread-safe.
    """

    def __init__(self, max_tokens: int = 16_000_000):
        self.max_tokens = max_tokens
        self.num_tokens = 0
        self._known: OrderedDict[str, Conversation] = OrderedDict()
        self._by_key: dict[bytes, list[tuple[Conversation, ReplyEnd]]] = {}
        self._by_call: dict[str, Conversation] = {}  # who made the call of that id
        self._by_session: dict[str, Record] = {}

    def __len__(self) -> int:
        return len(self._known)

    # Before the reply

    def match(self, asked: Trajectory, session: str | None) -> Match | None:
        """What a request repeats the most of, at least one served reply. None when it repeats none."""
        for num_messages, key in reversed(list(reply_keys(asked.messages, session))):
            if found := self._by_key.get(key):
                # Of several that say the same, one with the same tools, and one that has not gone on since.
                conversation, end = max(
                    found,
                    key=lambda each: (is_alike(each[0].trajectory, asked), each[0].ends[-1] is each[1]),
                )
                self._known.move_to_end(conversation.id)
                return Match(conversation, end, num_messages)
        return None

    def continued(self, match: Match, asked: Trajectory) -> Trajectory | None:
        """The request, over the exact ids of what it goes on with. None where another prompt was asked for:
        other tools, or replies that were never served behind the last one that was."""
        known, end = match.conversation, match.end
        new = asked.messages[match.num_messages :]
        if not is_alike(known.trajectory, asked) or any(message.role == "assistant" for message in new):
            return None
        return replace(
            known.trajectory,
            messages=known.trajectory.messages[: end.num_messages] + new,
            token_ids=tuple(known.token_ids[: end.num_tokens]),
        )

    def quoted(self, asked: Trajectory, session: str | None) -> Conversation | None:
        """The conversation that made the latest call in a request, by its id. None when none of them did."""
        for message in reversed(asked.messages):
            for call in message.tool_calls:
                known = self._by_call.get(call.id)
                if known is not None and known.record.session == session:
                    return known
        return None

    # After the reply

    def place(self, asked: Trajectory, prompt: array[int], session: str | None) -> Conversation:
        """The conversation that an answered prompt extends, else a new one, which `remember` takes in."""
        shared, closest = 0, None
        own = self._known.get(asked.id)
        for known in (*([own] if own else []), *self._known.values()):
            is_raw = not known.trajectory.messages
            if known.record.session != session or is_raw == bool(asked.messages):
                continue
            num_shared = known.num_shared(prompt)
            if num_shared == len(known.token_ids) and is_alike(known.trajectory, asked):
                return known
            if num_shared > shared:
                shared, closest = num_shared, known.id
        parent = asked.id if asked.token_ids else asked.parent or closest
        record = self._record_of(parent, session)
        if session is not None:
            parent = parent or record.latest
        trajectory = replace(asked, id=uuid.uuid4().hex, parent=parent, messages=(), token_ids=())
        return Conversation(record, trajectory)

    def _record_of(self, parent: str | None, session: str | None) -> Record:
        if session is not None and session in self._by_session:
            return self._by_session[session]
        if parent is not None and parent in self._known:
            return self._known[parent].record
        return Record(session)

    def remember(
        self, conversation: Conversation, messages: tuple[Message, ...], token_ids: array[int]
    ) -> None:
        """What a conversation is after a reply."""
        before = conversation.trajectory.messages
        if num_equal(before, messages) < len(before):
            self._unlist(conversation)  # the client tells its past in other words from now on
            conversation.ends = [replace(end, key=None) for end in conversation.ends]
        self.num_tokens += len(token_ids) - len(conversation.token_ids)
        conversation.token_ids = token_ids
        conversation.trajectory = replace(conversation.trajectory, messages=messages)
        record = conversation.record
        key = next((key for _, key in reversed(list(reply_keys(messages, record.session)))), None)
        end = ReplyEnd(len(messages), len(token_ids), key)
        conversation.ends.append(end)
        if key is not None:
            self._by_key.setdefault(key, []).append((conversation, end))
            calls = [call.id for call in messages[-1].tool_calls]
            conversation.calls += calls
            self._by_call |= dict.fromkeys(calls, conversation)
        self._known[conversation.id] = conversation
        self._known.move_to_end(conversation.id)
        self._note(record, conversation)
        while self.num_tokens > self.max_tokens and len(self._known) > 1:
            self._forget(next(iter(self._known.values())))

    def _note(self, record: Record, conversation: Conversation) -> None:
        record.conversations.add(conversation.id)
        if record.session is not None:
            self._by_session[record.session] = record
        told = conversation.trajectory
        begins = (
            *takewhile(lambda message: message.role in ("system", "developer"), told.messages),
            told.tools,
        )
        if record.agent is None and told.tools:
            record.agent = begins
        if record.agent == begins:
            record.latest = conversation.id

    def forget_record(self, record: Record) -> None:
        """What comes next of its conversations begins another record."""
        for id in tuple(record.conversations):
            self._forget(self._known[id])

    def _forget(self, conversation: Conversation) -> None:
        del self._known[conversation.id]
        self.num_tokens -= len(conversation.token_ids)
        self._unlist(conversation)
        for call_id in conversation.calls:
            self._by_call.pop(call_id, None)
        record = conversation.record
        record.conversations.discard(conversation.id)
        if record.session is not None and not record.conversations:
            del self._by_session[record.session]

    def _unlist(self, conversation: Conversation) -> None:
        for key in {end.key for end in conversation.ends if end.key is not None}:
            left = [each for each in self._by_key.pop(key) if each[0] is not conversation]
            if left:
                self._by_key[key] = left


# When two turns are the same


def is_alike(one: Trajectory, other: Trajectory) -> bool:
    """Whether both are rendered alike: tools and template arguments are part of the prompt."""
    return one.tools == other.tools and one.template_kwargs == other.template_kwargs


def num_equal(before: Sequence[Message], after: Sequence[Message]) -> int:
    """How many messages both begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(before, after, strict=False)))


def reply_keys(messages: Sequence[Message], session: str | None) -> Iterator[tuple[int, bytes]]:
    """For each reply of a conversation: the number of messages up to its end, and a name for all they say.

    Clients send our replies back in their own way. So a reply counts by its words (white space aside) and its
    calls' names and arguments; not by the ids of calls, its reasoning, or how many messages it is cut into.
    """
    key = json.dumps(session).encode()
    num_messages = 0
    for is_reply, group in groupby(messages, lambda message: message.role == "assistant"):
        turns = list(group)
        num_messages += len(turns)
        said = _said(turns) if is_reply else [_heard(turn) for turn in turns]
        key = blake2b(key + json.dumps(said, sort_keys=True).encode(), digest_size=16).digest()
        if is_reply:
            yield num_messages, key


def _heard(turn: Message) -> list[Any]:
    # The call says which tool a result is from; only some clients say it again.
    return [turn.role, turn.content, None if turn.role == "tool" else turn.name]


def _said(turns: Sequence[Message]) -> list[Any]:
    words = "".join("".join(turn.content.split()) for turn in turns)
    return [words, [[call.name, _plain(call.arguments)] for turn in turns for call in turn.tool_calls]]


def _plain(value: Any) -> Any:
    """JSON as it is after a journey through JavaScript, where 1.0 is 1 and long integers are rounded."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value) if abs(value) < 1e300 else str(value)
    return value + 0.0 if isinstance(value, float) else value  # -0.0 comes back as 0
