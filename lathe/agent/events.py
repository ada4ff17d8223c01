"""What an agent's loop reports while it works. Terminals draw these; headless runs write them as JSON.

The words of a reply come as the events of `text.tool_calls` (Content, Reasoning, CallStarted, ArgumentText,
CallFinished); what the loop does around them as the events here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lathe.text.tool_calls import Event as ReplyEvent
from lathe.types import Completion, Message, ToolCall, Trajectory

StopReason = Literal[
    "done",  # a reply without calls: the agent has said what it had to say
    "max_turns",
    "max_tokens",
    "max_time",
    "context",  # the window is full and could not be compacted
    "loop",  # the same call with the same result, again and again
    "length",  # replies were cut by their limit, and asking to go on did not help
    "interrupted",
    "sandbox",  # the sandbox died: no fault of the agent's
    "model",  # the model could not be reached, or failed
]


@dataclass(frozen=True)
class TurnStarted:
    """A request goes to the model. `turn` counts from 1."""

    turn: int


@dataclass(frozen=True)
class TurnEnded:
    """The reply is complete. `first_token_s` and `duration_s` are measured from the request."""

    turn: int
    completion: Completion
    first_token_s: float
    duration_s: float


@dataclass(frozen=True)
class ToolStarted:
    call: ToolCall


@dataclass(frozen=True)
class ToolEnded:
    """A call has its result: what the model will read. `diff` is a unified diff of the files that it changed,
    as far as the tool knows (write and edit do). `denied`: whoever approves calls said no."""

    call: ToolCall
    result: Message
    duration_s: float
    is_error: bool = False
    denied: bool = False
    diff: str = ""


@dataclass(frozen=True)
class Nudged:
    """The loop spoke to the model in the user's place. `why` is for people, `text` what was said."""

    why: Literal["announced", "repeats", "length", "empty", "damaged_call"]
    text: str


@dataclass(frozen=True)
class Compacted:
    """The conversation goes on in a new trajectory, which names the old one as its parent."""

    before: Trajectory
    after: Trajectory
    num_tokens_before: int
    num_tokens_after: int


@dataclass(frozen=True)
class Ended:
    """The loop has ended; `detail` explains what the reason does not."""

    stop_reason: StopReason
    detail: str = ""


Event = ReplyEvent | TurnStarted | TurnEnded | ToolStarted | ToolEnded | Nudged | Compacted | Ended
