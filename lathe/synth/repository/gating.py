"""The gates of a repository's task: each is a number, and most are verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lathe.errors import InfrastructureError
from lathe.rollout.attempt import rollout
from lathe.sandbox.pool import Pool
from lathe.synth.gates import Gates, first_failure
from lathe.synth.repository.attacks import attacks_on, stub_of
from lathe.synth.repository.bugs import Bug
from lathe.synth.repository.issue import Example
from lathe.synth.repository.sieve import mutation_score
from lathe.synth.repository.suite import path_of
from lathe.synth.repository.workshop import Workshop
from lathe.tasks.patch import Patch
from lathe.tasks.verify import verify
from lathe.types import Task


async def measure_gates(
    shop: Workshop, bug: Bug, task: Task, failing: Sequence[str], example: Example | None
) -> tuple[Gates, list[str]]:
    """Verdicts on doing nothing, a stub, attacks and the repair; what other slips the tests notice; attempts.

    What must earn nothing is judged by the failing tests alone: who doesn't pass these does not pass all.
    Also says which attacks earned something.
    """
    wanted = shop.suite.shortened(failing)
    files = {path: task.tests.files[path] for path in sorted({path_of(test) for test in failing})}
    short = replace(task, tests=replace(task.tests, files=files, must_pass=wanted))
    noop = await reward(short, Patch(), shop.pool)
    stub = stub_of(bug)
    stub_reward = None if stub is None else await reward(short, stub, shop.pool)
    attacks = attacks_on(shop.repository, short, bug, example)
    cheats = {what: await reward(short, patch, shop.pool) for what, patch in attacks.items()}
    fix = Patch.of({path: shop.repository.texts[path] for path in bug.files})
    gold = [await reward(task, fix, shop.pool) for _ in range(shop.config.num_gold)]
    noticed = await mutation_score(shop, bug)
    gates = Gates(
        num_tests=len(task.tests.must_pass),
        num_gold=len(gold),
        flake=gold.count(0.0) / len(gold) if gold else None,
        noop=noop,
        stub=stub_reward,
        cheats=max(cheats.values()),
        num_cheats=len(cheats),
        mutation=sum(noticed) / len(noticed) if noticed else None,
        num_mutants=len(noticed),
    )
    earning = [what for what, earned in cheats.items() if earned]
    if shop.model is None or not shop.config.num_attempts or first_failure(gates, shop.config.thresholds):
        return gates, earning
    verdicts = [(await rollout(task, shop.model, shop.pool)).verdict for _ in range(shop.config.num_attempts)]
    rewards = [each.reward for each in verdicts if each is not None and each.reward is not None]
    rate = sum(rewards) / len(rewards) if rewards else None
    return replace(gates, difficulty=rate, num_attempts=len(rewards)), earning


async def reward(task: Task, patch: Patch, pool: Pool) -> float:
    """Raises InfrastructureError where the machine failed: that says nothing of the patch."""
    verdict = await verify(task, patch, pool)
    if verdict.reward is None:
        raise InfrastructureError(f"{task.id} could not be judged: {verdict.reason}")
    return verdict.reward
