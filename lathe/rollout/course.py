"""What is known of an attempt while it is on its way, and the rollout that it becomes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from lathe.agent.attempt import Counts
from lathe.sandbox.pool import Pool
from lathe.tasks.known import Verify
from lathe.tasks.patch import Patch, patch_to_json
from lathe.tasks.verify import verify
from lathe.types import Rollout, Task, Trajectory, Verdict


@dataclass(eq=False)
class Course:
    """One attempt at `task`. `phase` is what it does now: a fault is reported with it."""

    task: Task
    model: str | None
    verify: Verify = verify
    trajectories: tuple[Trajectory, ...] = ()
    stop_reason: str | None = None
    patch: Patch | None = None
    counts: Counts = field(default_factory=Counts)
    info: dict[str, Any] = field(default_factory=dict)
    phase: str = "open"
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Notes how long a part of the attempt takes."""
        self.phase = phase
        started = time.monotonic()
        try:
            yield
        finally:
            took = time.monotonic() - started
            self.seconds[phase] = round(self.seconds.get(phase, 0.0) + took, 3)

    def fault(self, error: Exception) -> Verdict:
        """The verdict on an attempt that the machine, or the model's, did not let come to its end."""
        return Verdict(reason=f"{self.phase}: {type(error).__name__}: {error}")

    async def judge(self, pool: Pool) -> Verdict:
        """What the patch earns, in a clean sandbox."""
        with self.during("verify"):
            verdict = await self.verify(self.task, self.patch or Patch(), pool)
        return verdict if verdict.reason is None else Verdict(reason=f"verify: {verdict.reason}")

    def rollout(self, verdict: Verdict) -> Rollout:
        """The attempt as it ended. `info` has the patch (see `tasks/patch.py`), the seconds of each phase,
        and what was used: cached tokens are counted among the prompts'."""
        counts = self.counts
        share = counts.num_cached_tokens / counts.num_prompt_tokens if counts.num_prompt_tokens else 0.0
        tokens = {
            "prompt": counts.num_prompt_tokens,
            "cached": counts.num_cached_tokens,
            "reply": counts.num_reply_tokens,
        }
        info: Mapping[str, Any] = {
            **self.info,
            "patch": None if self.patch is None else patch_to_json(self.patch),
            "seconds": dict(self.seconds),
            "turns": counts.num_turns,
            "tokens": tokens,
            "cached_share": round(share, 4),
        }
        return Rollout(
            self.trajectories,
            stop_reason=self.stop_reason,
            verdict=verdict,
            task=self.task.id,
            model=self.model,
            info=info,
        )
