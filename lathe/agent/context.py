"""When the window fills: old results are dropped, or the model sums up, and a new trajectory goes on.

A compacted trajectory begins with the system prompt and the task, and ends with the last turns, whole: a call
never stands without its result. It names its parent. Nothing in it is masked as sampled: what it repeats
belongs to its parent, where it was sampled.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lathe.errors import LatheError, PromptTooLong, UpstreamError
from lathe.types import Completion, Message, Model, SamplingParams, TokensDoNotExtend, Tool, Trajectory

# Where nothing is known of a conversation. Code has a little more than three characters a token.
TOKENS_PER_CHAR = 1 / 3
# Dropping old results is enough where it gets down to this part of the window.
DROPPED_TO = 0.5
KEPT_PART = 0.2
ASKED_PART = 0.6
SHORT_RESULT_CHARS = 400
MAX_SUMMARY_TOKENS = 4096

SUMMARIZE = """\
The context is nearly full. Call no tool now. Write a summary from which you can go on without having seen \
this conversation: what the user asked for (in their words), what you found out (files, names, line numbers, \
commands, results), what you changed and where, what is left to do, and what must not be forgotten."""
SUMMED_UP = "The conversation before this was too long to keep. This is your summary of it:\n\n"
DROPPED = "[this result of {} characters was dropped to save space; make the call again if you need it]"


class ContextFull(LatheError):
    """The window is full, and what must be kept does not fit."""


@dataclass(frozen=True)
class Compaction:
    """`ended` are the trajectories up to the new one, its parent last: the old one, perhaps with the summary
    as its last turn. `completion` is the summary's, None when dropping old results was enough."""

    ended: tuple[Trajectory, ...]
    after: Trajectory
    num_tokens_after: int
    completion: Completion | None = None


def num_tokens(trajectory: Trajectory, known: int | None = None) -> int:
    """About how long the conversation's prompt is. Exact up to its last reply, by its ids, or by what the
    model's server counted (`known`); what came after is judged by the rest."""
    last = last_spoken(trajectory.messages)
    known = len(trajectory.token_ids) if known is None else known
    if last is None or not known:
        return round(num_chars(trajectory.messages, trajectory.tools) * TOKENS_PER_CHAR)
    return known + round(num_chars(trajectory.messages[last + 1 :]) * tokens_per_char(trajectory, known))


def tokens_per_char(trajectory: Trajectory, known: int) -> float:
    last = last_spoken(trajectory.messages)
    if last is None or not known:
        return TOKENS_PER_CHAR
    return known / max(num_chars(trajectory.messages[: last + 1], trajectory.tools), 1)


async def compact(
    model: Model,
    trajectory: Trajectory,
    max_context: int,
    *,
    known: int | None = None,
    sampling: SamplingParams | None = None,
    on_event: Callable[[Any], None] | None = None,
) -> Compaction:
    """A shorter conversation that can go on. Raises ContextFull when there is none."""
    rate = tokens_per_char(trajectory, len(trajectory.token_ids) if known is None else known)
    room = round(max_context * KEPT_PART / rate)  # in characters
    kept = last_turns(trajectory.messages, room)
    thin = branched(trajectory, drop_results(trajectory.messages, kept))
    size = round(num_chars(thin.messages, thin.tools) * rate)
    if size <= DROPPED_TO * max_context and thin.messages != trajectory.messages:
        return Compaction((trajectory,), thin, size)
    # What is too long as it stands may fit without its old results, or without its old turns.
    head = thin.messages[: num_head(thin.messages)]
    recent = thin.messages[
        last_turns(thin.messages, round(max_context * ASKED_PART / rate) - num_chars(head)) :
    ]
    readings = (trajectory, thin, branched(trajectory, (*head, *recent)))
    ended, completion = await summarize(model, readings, max_context, sampling, on_event)
    summary = completion.message.content.strip()
    if not summary:
        raise ContextFull("The context is full, and the model gave no summary of it.")
    messages = summed_up(trajectory.messages, summary, kept)
    after = branched(ended[-1], messages)
    size = round(num_chars(after.messages, after.tools) * rate)
    return Compaction(ended, after, size, completion)


async def summarize(
    model: Model,
    readings: Sequence[Trajectory],
    max_context: int,
    sampling: SamplingParams | None,
    on_event: Callable[[Any], None] | None,
) -> tuple[tuple[Trajectory, ...], Completion]:
    """The summary, asked for behind the first reading of the conversation that fits; and the trajectories
    that have ended with it. The first reading is the conversation itself, which the model's cache holds."""
    if sampling is not None:
        limit = min(MAX_SUMMARY_TOKENS, max_context // 8)
        sampling = replace(sampling, max_tokens=min(sampling.max_tokens or limit, limit))
    for reading in readings:
        asked = reading.add(Message("user", SUMMARIZE))
        try:
            completion = await model.complete(asked, sampling, on_event=on_event)
        except PromptTooLong:
            continue
        if completion.finish_reason == "abort":
            raise UpstreamError("the model's engine stopped in the middle of a summary")
        before = () if reading is readings[0] else readings[:1]
        return (*before, *extended(asked, completion, sampling)), completion
    raise ContextFull("The context is full: not even the request for a summary fits any more.")


def extended(
    trajectory: Trajectory, completion: Completion, sampling: SamplingParams | None
) -> tuple[Trajectory, ...]:
    """The conversation with the answer. Where the template has rewritten the past (some drop old thoughts
    when the user speaks), the old one, and a new one that its answer extends."""
    try:
        return (trajectory.extend(completion, sampling),)
    except TokensDoNotExtend:
        return trajectory, branched(trajectory, trajectory.messages).extend(completion, sampling)


def branched(trajectory: Trajectory, messages: tuple[Message, ...]) -> Trajectory:
    """A new trajectory of these messages, whose parent is the other."""
    return Trajectory(
        messages, trajectory.tools, parent=trajectory.id, template_kwargs=trajectory.template_kwargs
    )


# Which messages stay


def summed_up(messages: Sequence[Message], summary: str, kept: int) -> tuple[Message, ...]:
    """The beginning, the summary, what the user asked last, and the messages from `kept` on."""
    head = num_head(messages)
    asked = [place for place, message in enumerate(messages) if is_asked(message)]
    last = asked[-1] if asked else head
    again = (messages[last],) if head <= last < kept else ()
    return (*messages[:head], Message("user", SUMMED_UP + summary), *again, *messages[kept:])


def is_asked(message: Message) -> bool:
    """Did the user say this? An earlier summary stands in the user's place, too."""
    return message.role == "user" and not message.content.startswith(SUMMED_UP)


def num_head(messages: Sequence[Message]) -> int:
    """How many messages are the system's and the task, which every compaction keeps."""
    first = next((place for place, message in enumerate(messages) if message.role == "user"), -1)
    return first + 1


def last_turns(messages: Sequence[Message], room: int) -> int:
    """Where the last turns begin that have at most `room` characters together: one turn at least, and a
    turn is a reply with all of its results."""
    head = num_head(messages)
    starts = [place for place in range(head, len(messages)) if messages[place].role != "tool"]
    kept = len(messages)
    for start in reversed(starts):
        if kept < len(messages) and num_chars(messages[start:]) > room:
            break
        kept = start
    return kept


def drop_results(messages: Sequence[Message], kept: int) -> tuple[Message, ...]:
    """The messages, with long results before `kept` replaced by a line that says so."""
    return tuple(
        replace(message, content=DROPPED.format(len(message.content)))
        if place < kept and message.role == "tool" and len(message.content) > SHORT_RESULT_CHARS
        else message
        for place, message in enumerate(messages)
    )


def last_spoken(messages: Sequence[Message]) -> int | None:
    spoken = [place for place, message in enumerate(messages) if message.role == "assistant"]
    return spoken[-1] if spoken else None


def num_chars(messages: Sequence[Message], tools: Sequence[Tool] = ()) -> int:
    """About how long the text is that a template makes of them."""
    count = 0
    for message in messages:
        calls = [len(call.name) + len(json.dumps(call.arguments, default=str)) for call in message.tool_calls]
        count += 20 + len(message.content) + len(message.reasoning or "") + sum(calls)
    for tool in tools:
        count += len(tool.name) + len(tool.description) + len(json.dumps(tool.parameters, default=str))
    return count
