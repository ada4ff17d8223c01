"""What an attempt earns: its verdict, and parts that shape it. They are off until a recipe gives them weight.

Every part is a named function of a rollout, from -1 to 0, and is logged apart from the verdict.
"""

from __future__ import annotations

from dataclasses import dataclass

from lathe.agent.guard import has_leaked_call
from lathe.errors import UserError
from lathe.types import Message, Rollout

# How an attempt ends that was stopped before it was done.
CUT_OFF = ("length", "max_tokens", "max_turns", "max_time", "context")


@dataclass(frozen=True)
class RewardConfig:
    """The weights of the parts. 0.0 is off.

    `overlong` needs `max_tokens`, the longest attempt (sampled tokens); the penalty grows over the last
    `buffer_tokens` of them. Raises UserError.
    """

    overlong: float = 0.0
    unfinished: float = 0.0
    malformed: float = 0.0
    empty: float = 0.0
    max_tokens: int | None = None
    buffer_tokens: int = 0

    def __post_init__(self) -> None:
        for name in ("overlong", "unfinished", "malformed", "empty"):
            if not getattr(self, name) >= 0.0:
                raise UserError(f"reward.{name} is {getattr(self, name)}; a weight is at least 0.")
        if self.overlong and (self.max_tokens is None or not 0 <= self.buffer_tokens <= self.max_tokens):
            raise UserError(
                "reward.overlong needs reward.max_tokens, the longest attempt, and reward.buffer_tokens from "
                f"0 to it; they are {self.max_tokens} and {self.buffer_tokens}."
            )


def reward_parts(rollout: Rollout, config: RewardConfig) -> dict[str, float]:
    """What a valid attempt earns, part by part; `total` is their sum. Parts that are off are left out.

    A suspect attempt's verdict is at most 0 and parts only take, so it earns nothing. Raises ValueError for
    an attempt without a reward.
    """
    if rollout.verdict is None or rollout.verdict.reward is None:
        raise ValueError(f"the rollout {rollout.id} has no reward")
    parts = {"verdict": rollout.verdict.reward}
    if config.overlong and config.max_tokens is not None:
        parts["overlong"] = config.overlong * overlong(rollout, config.max_tokens, config.buffer_tokens)
    if config.unfinished:
        parts["unfinished"] = config.unfinished * unfinished(rollout)
    if config.malformed:
        parts["malformed"] = config.malformed * malformed(rollout)
    if config.empty:
        parts["empty"] = config.empty * empty(rollout)
    return {**parts, "total": sum(parts.values())}


def overlong(rollout: Rollout, max_tokens: int, buffer_tokens: int) -> float:
    """0 up to max_tokens - buffer_tokens sampled tokens, then falling to -1 at max_tokens (DAPO's soft
    punishment, arXiv 2503.14476, equation 13)."""
    over = num_sampled(rollout) - (max_tokens - buffer_tokens)
    if over <= 0:
        return 0.0
    return -1.0 if over >= buffer_tokens else -over / buffer_tokens


def unfinished(rollout: Rollout) -> float:
    """-1 for an attempt that a limit has ended: of tokens, turns, time or context."""
    return -1.0 if is_cut_off(rollout) else 0.0


def malformed(rollout: Rollout) -> float:
    """Minus the share of replies that hold the remains of a tool call, and none that can be read."""
    replies = sampled_replies(rollout)
    damaged = [each for each in replies if not each.tool_calls and has_leaked_call(each.content)]
    return -len(damaged) / len(replies) if damaged else 0.0


def empty(rollout: Rollout) -> float:
    """-1 for an attempt that changed no file; with one turn, an answer without code."""
    return -1.0 if rollout.info.get("patch") == {} else 0.0


def is_cut_off(rollout: Rollout) -> bool:
    return rollout.stop_reason in CUT_OFF


def num_sampled(rollout: Rollout) -> int:
    """The tokens that the model sampled, in all of the attempt's trajectories."""
    return sum(sum(trajectory.loss_mask) for trajectory in rollout.trajectories)


def sampled_replies(rollout: Rollout) -> list[Message]:
    """Every reply once: what a branch repeats of its parent was not sampled there."""
    replies: list[Message] = []
    for trajectory in rollout.trajectories:
        said = [message for message in trajectory.messages if message.role == "assistant"]
        replies += said[max(len(said) - len(trajectory.segments), 0) :]
    return replies
