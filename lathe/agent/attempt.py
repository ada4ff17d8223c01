"""What one run of the agent may use, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from lathe.agent.events import StopReason
from lathe.types import Completion, SamplingParams, Trajectory


@dataclass(frozen=True)
class AgentConfig:
    """What a run may use, and how it works. None means: no limit, or the model's own.

    `system` is the system prompt, None for Lathe's own, "" for none. `max_turns` counts replies, `max_tokens`
    all tokens that are sampled; the last reply is cut there, unless only a server knows how it draws.
    `max_context` is the window, prompt and reply together; where it is None and the model doesn't say it,
    nothing is compacted before the model refuses. Compaction begins when the conversation fills `compact_at`
    of it. `max_output_chars` is the most that one result of a tool holds. `max_announced` is how often a turn
    that only announces an action is answered with "go on".
    """

    system: str | None = None
    sampling: SamplingParams | None = None
    max_turns: int | None = None
    max_tokens: int | None = None
    max_time_s: float | None = None
    max_context: int | None = None
    compact_at: float = 0.8
    max_output_chars: int = 10_000
    max_announced: int = 3


@dataclass(frozen=True)
class Counts:
    """What a run has used so far. Tokens of prompts are counted once a turn, cached ones among them."""

    num_turns: int = 0
    num_calls: int = 0
    num_failed_calls: int = 0
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_reply_tokens: int = 0
    num_compactions: int = 0
    duration_s: float = 0.0

    def plus(self, completion: Completion, *, num_turns: int = 0) -> Counts:
        """With one more reply."""
        return replace(
            self,
            num_turns=self.num_turns + num_turns,
            num_prompt_tokens=self.num_prompt_tokens + completion.num_prompt_tokens,
            num_cached_tokens=self.num_cached_tokens + completion.num_cached_tokens,
            num_reply_tokens=self.num_reply_tokens + completion.num_reply_tokens,
        )


@dataclass(frozen=True)
class Attempt:
    """A run, ended or on its way (`stop_reason` None). The last trajectory is the one that goes on.

    Given back to `run`, it goes on where it stopped; what it has used counts towards the budgets.
    """

    trajectories: tuple[Trajectory, ...]
    stop_reason: StopReason | None = None
    detail: str = ""
    counts: Counts = field(default_factory=Counts)

    @property
    def trajectory(self) -> Trajectory:
        """The conversation as it stands."""
        return self.trajectories[-1]

    @property
    def answer(self) -> str:
        """The last words of the agent to its user; "" when it has said none."""
        spoken = (
            message.content for message in reversed(self.trajectory.messages) if message.role == "assistant"
        )
        return next((words for words in spoken if words.strip()), "")
