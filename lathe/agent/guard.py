"""Is the model done, or has it lost its way? The conversation alone tells: a resumed run sees the same."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal

from lathe.agent.events import StopReason
from lathe.types import Message, ToolCall

MAX_DAMAGED = 3  # replies in a row
MAX_CUT = 2
MAX_EMPTY = 1
TELL_AT = 3
STOP_AT = 5
# Longer circles than this are rare, and a long work may well pass through the same calls.
MAX_CIRCLE = 4

# "Now I will read the file." but not "Let me know if you need more."
ANNOUNCES = re.compile(
    r"(?:^|[.!?:;,]\s+|\b(?:now|next|first|then|so|ok|okay|and|but)[,]?\s+)"
    r"(?:let me|let's|let us|i'll|i will|i'm going to|i am going to|i need to|we'll|we need to)\s+"
    r"(?:now\s+|first\s+|also\s+|then\s+|start by\s+|begin by\s+|try to\s+|go ahead and\s+)*"
    r"(?!know\b|be\b|stop\b|wait\b|leave\b|not\b|have\b|assume\b|remember\b)\w+",
    re.IGNORECASE,
)
# How a call begins and ends that can't be read as one. Prose names these tags, too, but not line by line.
TAGS = re.compile(r"^\s*<(?:tool_call>|/tool_call>|/?function[=>]|/?parameter[=>])", re.MULTILINE)
CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`", re.DOTALL)


ANNOUNCED = "Go on: call the tool for what you just said. If the task is done, say so."
EMPTY = "Your reply was empty. Go on with the task, or say in a few words what you did."
CUT = (
    "Your reply was cut at its length limit. Go on in smaller steps: shorter thoughts, and large files in "
    "several calls."
)
REPEATS = (
    "You have made the same call with the same result {} times. Doing it again will change nothing: try "
    "something else, or say what is in the way."
)
LEAKED = (
    "Your reply holds a tool call that can't be read, so nothing was run. Make the call again, with all of "
    "its tags and parameters."
)
ONLY_DAMAGED = f"{MAX_DAMAGED} replies in a row had no call that could be run."

Stop = tuple[StopReason, str]


@dataclass(frozen=True)
class Nudge:
    """What the loop says to the model in the user's place (see `events.Nudged`)."""

    why: Literal["announced", "repeats", "length", "empty", "damaged_call"]
    text: str


def judge(
    messages: Sequence[Message], *, was_cut: bool, has_tools: bool, max_announced: int, num_damaged: int
) -> Stop | Nudge:
    """What a reply without calls, the last message, means: the end, or something to say to the model.

    `was_cut`: the reply was ended by its length limit. `num_damaged` replies in a row, this one among them,
    had calls that can't be run.
    """
    words = messages[-1].content
    if not has_tools:  # one question, one answer
        return ("length", "The reply was cut at its length limit.") if was_cut else ("done", "")
    if was_cut:
        if num_said(messages, CUT) >= MAX_CUT:
            return "length", "Replies were cut at their length limit, again and again."
        return Nudge("length", CUT)
    if not words.strip():
        if num_said(messages, EMPTY) >= MAX_EMPTY:
            return "done", "The last replies were empty."
        return Nudge("empty", EMPTY)
    if has_leaked_call(words):
        if num_damaged >= MAX_DAMAGED:
            return "loop", ONLY_DAMAGED
        return Nudge("damaged_call", LEAKED)
    num_announced = sum(message == Message("user", ANNOUNCED) for message in messages)
    if announces(words) and not num_said(messages, ANNOUNCED) and num_announced < max_announced:
        return Nudge("announced", ANNOUNCED)
    return "done", ""


def unanswered(messages: Sequence[Message]) -> tuple[ToolCall, ...]:
    """The calls of the last reply that have no result yet. Results stand in the calls' order."""
    num_results = 0
    for message in reversed(messages):
        if message.role == "tool":
            num_results += 1
        elif message.role == "assistant":
            return message.tool_calls[num_results:]
        else:
            return ()
    return ()


def num_said(messages: Sequence[Message], words: str) -> int:
    """How many of the latest replies, one after the other, were answered with these words."""
    count = 0
    for message in reversed(messages[:-1]):
        if message.role == "user" and message.content == words:
            count += 1
        elif message.role != "assistant" or message.tool_calls:
            break
    return count


def num_repeats(messages: Sequence[Message]) -> int:
    """How often the latest calls, with the same results, came one after the other: 1 is no repetition.

    Circles of up to four calls count, too. What the loop itself said in between does not break them.
    """
    results = [message.content for message in messages if message.role == "tool"]
    calls = [call for message in messages for call in message.tool_calls]
    latest = list(zip(calls, results, strict=False))[-MAX_CIRCLE * STOP_AT :]
    done = [
        (call.name, json.dumps(call.arguments, sort_keys=True, default=str), result)
        for call, result in latest
    ]
    return max((_num_rounds(done, size) for size in range(1, MAX_CIRCLE + 1)), default=1)


def _num_rounds(done: Sequence[object], size: int) -> int:
    last = done[-size:]
    starts = range(len(done) - size, -1, -size)
    return sum(1 for _ in takewhile(lambda start: done[start : start + size] == last, starts))


def announces(text: str) -> bool:
    """Does a reply without a call end by saying what its writer is about to do?"""
    lines = CODE.sub("`code`", text).strip().splitlines()
    if not lines:
        return False
    last = lines[-1].strip()
    if last.endswith("?"):
        return False
    return last.endswith(":") or ANNOUNCES.search(re.split(r"(?<=[.!?])\s+", last)[-1]) is not None


def has_leaked_call(text: str) -> bool:
    """Does a reply without a call hold the remains of one? Tags that it quotes as code don't count."""
    return TAGS.search(CODE.sub("", text)) is not None
