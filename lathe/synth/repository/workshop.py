"""What making tasks of one repository needs: its settings, what was measured of it, where code may run."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lathe.sandbox.pool import Pool
from lathe.synth.gates import Thresholds
from lathe.synth.repository.checkout import Repository
from lathe.synth.repository.hiding import Copies, find_copies
from lathe.synth.repository.suite import Call, Suite, measure
from lathe.types import Model, SamplingParams

THRESHOLDS = Thresholds(min_tests=2, min_mutation=0.5)


@dataclass(frozen=True)
class RepositoryConfig:
    """How tasks are made. `kinds` are those of `bugs.KINDS`; "rewrite" needs a model.

    The suite is run `num_runs` times first, in at most `suite_time_s` each time.
    `per_function` slips of each function are tried, `num_candidates` faults in all. `num_gold` verdicts on
    the repaired repository are asked for each task. A fault by which more than `max_failing` of the deciding
    tests fail is dropped. `num_mutants` further slips of the broken functions say how much its tests notice.
    `num_attempts` of the model at each task measure its difficulty. `shows_failing` leaves the failing tests
    where the agent sees them. `inline` puts the repository's texts into the task, which then needs no image.
    """

    kinds: tuple[str, ...] = ("slip", "slips", "body", "pair", "commit", "rewrite")
    seed: int = 0
    num_runs: int = 5
    suite_time_s: float = 600.0
    per_function: int = 3
    num_candidates: int | None = None
    num_gold: int = 2
    num_mutants: int = 6
    num_attempts: int = 0
    max_failing: float = 0.75
    thresholds: Thresholds = THRESHOLDS
    shows_failing: bool = False
    inline: bool = False
    sampling: SamplingParams | None = None


@dataclass(frozen=True)
class Workshop:
    """All that making a task needs: the repository with what was measured of it, and where code may run."""

    repository: Repository
    suite: Suite
    copies: Copies
    pool: Pool
    config: RepositoryConfig
    model: Model | None = None


async def open_workshop(
    repository: Repository,
    pool: Pool,
    config: RepositoryConfig,
    model: Model | None = None,
    *,
    kept_in: Path | None = None,
) -> Workshop:
    """Measure the repository's suite, and look for copies of it on the machine that its sandboxes see.

    What was measured is kept in the file `kept_in`, and taken from there for the same repository measured in
    the same way. Raises UserError when no test of it can be relied upon.
    """
    key = f"{repository.digest} {config.num_runs} runs"
    known = _read(kept_in, key)
    if known is None:
        suite = await measure(repository, pool, num_runs=config.num_runs, timeout_s=config.suite_time_s)
        known = suite, await find_copies(repository, pool)
        if kept_in is not None:
            fresh = kept_in.with_name(kept_in.name + ".new")
            fresh.write_text(json.dumps(_to_json(key, *known)), "utf-8")
            fresh.rename(kept_in)
    return Workshop(repository, *known, pool, config, model)


# The file beside the tasks, both directions


def _to_json(key: str, suite: Suite, copies: Copies) -> dict[str, Any]:
    found = {path: sorted(names) for path, names in copies.functions.items()}
    return {"key": key, "suite": asdict(suite), "copies": found}


def _read(path: Path | None, key: str) -> tuple[Suite, Copies] | None:
    """None where the file is not there, or is of another repository or another way to measure."""
    if path is None or not path.exists():
        return None
    try:
        data = json.loads(path.read_text("utf-8"))
    except ValueError:
        return None
    if data.get("key") != key:
        return None
    own = data["suite"]
    for name in ("paths", "seen", "stable", "at_import"):
        own[name] = tuple(own[name])
    own["functions"] = tuple((path, function) for path, function in own["functions"])
    own["reach"] = {test: tuple(numbers) for test, numbers in own["reach"].items()}
    own["calls"] = {test: tuple(Call(**each) for each in made) for test, made in own["calls"].items()}
    copies = {path: frozenset((file, name) for file, name in names) for path, names in data["copies"].items()}
    return Suite(**own), Copies(copies)
