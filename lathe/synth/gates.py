"""What was measured of a task's tests, and what is asked of them. They stand in the task's `info.gates`."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace

from lathe.jsonl import from_json, to_json
from lathe.types import Task


@dataclass(frozen=True)
class Gates:
    """Each gate's number; None where it was not measured.

    `num_tests` decide. `flake` is the share of `num_gold` verdicts on the reference that were not 1.0.
    `noop`, `stub` and `cheats` are the best rewards of doing nothing, of a body that computes nothing, and of
    `num_cheats` attacks.
    `mutation` is the share of `num_mutants` of the reference that the tests reject. Some mutants do what the
    reference does, which nobody can decide in general; they count as survivors, so that the score is a lower
    bound.
    `tpr` is the share of `num_right` right-but-different solutions that are accepted, `tnr` that of
    `num_wrong` wrong-but-plausible ones that are rejected: those were kept from whoever chose the tests, and
    were seen to differ from the reference on other inputs.
    Of tests of a repository, `num_failing` fail with the fault, and `num_passing` pass with it and without.
    `leak` is how much of a line of the answer the prompt tells.
    `difficulty` is the share of a model's `num_attempts` valid attempts that were solved: low is hard.
    """

    num_tests: int = 0
    num_gold: int = 0
    flake: float | None = None
    noop: float | None = None
    stub: float | None = None
    cheats: float | None = None
    num_cheats: int = 0
    mutation: float | None = None
    num_mutants: int = 0
    tpr: float | None = None
    num_right: int = 0
    tnr: float | None = None
    num_wrong: int = 0
    num_failing: int = 0
    num_passing: int = 0
    leak: float | None = None
    difficulty: float | None = None
    num_attempts: int = 0


@dataclass(frozen=True)
class Thresholds:
    """What a task must reach to be kept. A number that was not measured fails no threshold."""

    min_tests: int = 5
    max_flake: float = 0.0
    min_mutation: float = 0.6
    min_tpr: float = 1.0
    min_tnr: float = 0.8
    max_leak: float = 0.8


def first_failure(gates: Gates, asked: Thresholds) -> str | None:
    """Why a task is dropped: the first gate that it doesn't pass. None: it passes them all."""
    checks = (
        ("too few tests", gates.num_tests < asked.min_tests),
        ("flaky", above(gates.flake, asked.max_flake)),
        ("doing nothing earns a reward", above(gates.noop, 0.0)),
        ("a stub earns a reward", above(gates.stub, 0.0)),
        ("a cheat earns a reward", above(gates.cheats, 0.0)),
        ("mutation score too low", below(gates.mutation, asked.min_mutation)),
        ("right solutions rejected", below(gates.tpr, asked.min_tpr)),
        ("wrong solutions accepted", below(gates.tnr, asked.min_tnr)),
        ("the prompt tells the answer", above(gates.leak, asked.max_leak)),
    )
    return next((reason for reason, failed in checks if failed), None)


def above(number: float | None, limit: float) -> bool:
    return number is not None and number > limit


def below(number: float | None, limit: float) -> bool:
    return number is not None and number < limit


def with_gates(task: Task, gates: Gates) -> Task:
    """The task, its gates' numbers written down."""
    return replace(task, info={**task.info, "gates": to_json(gates)})


def gates_of(task: Task) -> Gates:
    """The numbers that a maker wrote down; all unmeasured for other tasks. Raises ValueError for damage."""
    return from_json(Gates, task.info.get("gates", {}), "info.gates")


@dataclass
class Means:
    """Mean numbers over many tasks, each over those where it was measured."""

    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, gates: Gates) -> None:
        for each in fields(gates):
            value = getattr(gates, each.name)
            if value is not None:
                self.sums[each.name] = self.sums.get(each.name, 0.0) + value
                self.counts[each.name] = self.counts.get(each.name, 0) + 1

    def get(self, name: str) -> float | None:
        count = self.counts.get(name, 0)
        return self.sums[name] / count if count else None
