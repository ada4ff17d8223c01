"""What a session has cost and how quick it was, and what fills the model's window."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from lathe.agent.events import Compacted, Event, ToolEnded, TurnEnded
from lathe.types import Trajectory

Rows = list[tuple[str, str]]
PARTS = ("system", "tools", "files", "messages", "results")


@dataclass
class ToolTime:
    num_calls: int = 0
    num_errors: int = 0
    duration_s: float = 0.0


@dataclass
class Stats:
    """Sums over the replies and calls that it heard of."""

    num_turns: int = 0
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_reply_tokens: int = 0
    num_compactions: int = 0
    model_s: float = 0.0
    decoded: int = 0
    decode_s: float = 0.0
    first_token_s: list[float] = field(default_factory=list)
    tools: dict[str, ToolTime] = field(default_factory=dict)

    def hear(self, event: Event) -> None:
        match event:
            case TurnEnded(_, completion, first_token_s, duration_s):
                self.num_turns += 1
                self.num_prompt_tokens += completion.num_prompt_tokens
                self.num_cached_tokens += completion.num_cached_tokens
                self.num_reply_tokens += completion.num_reply_tokens
                self.model_s += duration_s
                self.first_token_s.append(first_token_s)
                # The first token's time is the prompt's.
                self.decoded += max(completion.num_reply_tokens - 1, 0)
                self.decode_s += max(duration_s - first_token_s, 0.0)
            case ToolEnded(call, _, duration_s, is_error):
                time = self.tools.setdefault(call.name, ToolTime())
                time.num_calls += 1
                time.num_errors += is_error
                time.duration_s += duration_s
            case Compacted():
                self.num_compactions += 1

    @property
    def tokens_per_s(self) -> float | None:
        return self.decoded / self.decode_s if self.decoded and self.decode_s > 0 else None

    @property
    def cached_share(self) -> float | None:
        return self.num_cached_tokens / self.num_prompt_tokens if self.num_prompt_tokens else None

    def rows(self) -> Rows:
        """For people."""
        rate, share = self.tokens_per_s, self.cached_share
        first = median(self.first_token_s) if self.first_token_s else None
        rows = [
            ("turns", f"{self.num_turns:,}"),
            (
                "tokens read",
                f"{self.num_prompt_tokens:,}" + ("" if share is None else f", {share:.0%} cached"),
            ),
            ("tokens said", f"{self.num_reply_tokens:,}"),
            ("first token", "-" if first is None else f"{first:.2f} s (median)"),
            ("speed", "-" if rate is None else f"{rate:.1f} tok/s"),
            ("model's time", f"{self.model_s:.1f} s"),
        ]
        rows += [("compacted", f"{self.num_compactions} times")] if self.num_compactions else []
        for name, time in sorted(self.tools.items()):
            failed = f", {time.num_errors} failed" if time.num_errors else ""
            calls = "1 call" if time.num_calls == 1 else f"{time.num_calls} calls"
            rows.append((name, f"{calls}{failed}, {time.duration_s:.1f} s"))
        return rows


@dataclass(frozen=True)
class Window:
    """What the model's window holds: tokens by part. `num_tokens` is exact where `is_exact`; how it is shared
    out among the parts is judged by characters. `size` None: nobody knows."""

    parts: dict[str, int]
    num_tokens: int
    size: int | None
    is_exact: bool


def window_of(trajectory: Trajectory | None, num_tokens: int, size: int | None, is_exact: bool) -> Window:
    """How `num_tokens` are shared out. Files are what the tool `read` gave, and what was mentioned."""
    chars = dict.fromkeys(PARTS, 0)
    if trajectory is not None:
        chars["tools"] = sum(
            len(json.dumps([tool.name, tool.description, tool.parameters], default=str))
            for tool in trajectory.tools
        )
        for message in trajectory.messages:
            arguments = [json.dumps(call.arguments, default=str) for call in message.tool_calls]
            size_of = len(message.content) + len(message.reasoning or "") + sum(map(len, arguments))
            if message.role in ("system", "developer"):
                part = "system"
            elif message.role == "tool":
                part = "files" if message.name == "read" else "results"
            else:
                part = "messages"
            chars[part] += size_of
    return Window(share_out(num_tokens, chars), num_tokens, size, is_exact)


def share_out(total: int, weights: dict[str, int]) -> dict[str, int]:
    """Whole numbers in proportion to the weights that sum to the total, by largest remainder."""
    together = sum(weights.values())
    if not together:
        return dict.fromkeys(weights, 0)
    exact = {name: total * weight / together for name, weight in weights.items()}
    shares = {name: int(value) for name, value in exact.items()}
    left = total - sum(shares.values())
    for name in sorted(exact, key=lambda name: shares[name] - exact[name])[:left]:
        shares[name] += 1
    return shares


def bar(parts: Sequence[tuple[str, int]], size: int, width: int) -> list[tuple[str, int]]:
    """How many cells of a bar each part gets. What is there is seen: one cell at least."""
    cells = [(name, max(round(count * width / size), 1) if count else 0) for name, count in parts]
    return [(name, min(count, width)) for name, count in cells]
