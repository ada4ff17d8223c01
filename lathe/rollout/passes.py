"""What many attempts at many tasks come to: pass@k, with invalid attempts apart."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import prod

from lathe.types import Verdict


def pass_at_k(num_valid: int, num_solved: int, k: int) -> float:
    """The chance that one of `k` attempts solves a task of whose `num_valid` attempts `num_solved` did: the
    unbiased estimator of Chen et al. 2021 (arXiv 2107.03374). Raises ValueError for k > num_valid."""
    if not 1 <= k <= num_valid or not 0 <= num_solved <= num_valid:
        raise ValueError(f"no pass@{k} from {num_solved} of {num_valid} attempts")
    if num_valid - num_solved < k:
        return 1.0
    return 1.0 - prod(1.0 - k / n for n in range(num_valid - num_solved + 1, num_valid + 1))


@dataclass
class TaskScore:
    """How often one task was attempted, and solved: a reward of 1 or more."""

    num_valid: int = 0
    num_solved: int = 0
    num_invalid: int = 0


@dataclass
class Score:
    """The verdicts so far, task by task. `reasons` are those of invalid ones, with how often."""

    tasks: dict[str, TaskScore] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)
    num_suspect: int = 0

    def add(self, task: str, verdict: Verdict) -> None:
        score = self.tasks.setdefault(task, TaskScore())
        if verdict.reward is None:
            score.num_invalid += 1
            reason = str(verdict.reason)[:200]
            self.reasons[reason] = self.reasons.get(reason, 0) + 1
        else:
            score.num_valid += 1
            score.num_solved += verdict.reward >= 1.0
            self.num_suspect += verdict.suspect is not None

    @property
    def num_solved(self) -> int:
        return sum(each.num_solved for each in self.tasks.values())

    @property
    def num_failed(self) -> int:
        return sum(each.num_valid - each.num_solved for each in self.tasks.values())

    @property
    def num_invalid(self) -> int:
        return sum(each.num_invalid for each in self.tasks.values())

    def pass_at(self, k: int) -> tuple[float | None, int]:
        """The mean of pass@k over the tasks with at least `k` valid attempts (None: there are none), and how
        many tasks those are."""
        values = [pass_at_k(each.num_valid, each.num_solved, k) for each in self._with(k)]
        return (sum(values) / len(values) if values else None), len(values)

    def _with(self, k: int) -> Iterable[TaskScore]:
        return (each for each in self.tasks.values() if each.num_valid >= k)
