"""The gates that the task's own judge measures: in clean sandboxes, as any attempt is judged."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from lathe.agent.attempt import AgentConfig
from lathe.errors import InfrastructureError
from lathe.rollout.attempt import RolloutConfig, rollout
from lathe.sandbox.pool import Pool
from lathe.synth.cheats import cheats_for, stubs_for
from lathe.synth.gates import Gates
from lathe.synth.kinds import ANSWER, FILE, Measured
from lathe.tasks.patch import Patch
from lathe.tasks.verify import verify
from lathe.types import Model, Task


@dataclass(frozen=True)
class Judged:
    """Raises InfrastructureError where a verdict is invalid: the machine failed, and nothing is known."""

    pool: Pool
    num_gold: int = 3

    async def reward(self, task: Task, files: Mapping[str, str | None]) -> float:
        verdict = await verify(task, Patch.of(files), self.pool)
        if verdict.reward is None:
            raise InfrastructureError(f"{task.id}: {verdict.reason}")
        return verdict.reward

    async def flake(self, task: Task) -> float:
        """The share of verdicts on the reference that are not 1.0."""
        reference = task.info["reference"]
        rewards = [await self.reward(task, reference) for _ in range(self.num_gold)]
        return sum(reward < 1.0 for reward in rewards) / len(rewards)

    async def best(self, task: Task, solutions: Mapping[str, str], file: str = FILE) -> float:
        return max([await self.reward(task, {file: text}) for text in solutions.values()], default=0.0)

    async def code(self, task: Task, gates: Gates, measured: Measured, rewrites: Mapping[str, str]) -> Gates:
        """For a task that asks for a function: the reference, stubs, attacks, and the most different rewrite.

        When the first verdict on the reference is not 1.0, nothing else is asked.
        """
        name = measured.name
        gates = replace(gates, num_gold=self.num_gold, flake=await self.flake(task))
        if gates.flake:
            return gates
        values = Counter(case.wanted.value for case in measured.cases if case.wanted.value is not None)
        attacks = cheats_for(name)
        different = rewrites.get("all of them")
        if different is not None and await self.reward(task, {FILE: different}) < 1.0:
            gates = replace(gates, tpr=min(gates.tpr or 0.0, 1 - 1 / max(gates.num_right, 1)))
        return replace(
            gates,
            stub=await self.best(task, stubs_for(name, values.most_common(1)[0][0] if values else None)),
            cheats=await self.best(task, attacks),
            num_cheats=len(attacks),
        )

    async def prediction(self, task: Task, gates: Gates) -> Gates:
        """For a task that asks for a value."""
        return replace(
            gates,
            num_gold=self.num_gold,
            flake=await self.flake(task),
            noop=await self.reward(task, {}),
            stub=await self.best(task, {"nothing": "None\n", "an empty list": "[]\n"}, ANSWER),
        )


async def difficulty_of(task: Task, gates: Gates, model: Model, pool: Pool, num_attempts: int) -> Gates:
    """The share of a model's attempts, of one turn each, that solve the task. Invalid ones don't count."""
    config = RolloutConfig(AgentConfig(), tools=())
    done = await asyncio.gather(*(rollout(task, model, pool, config) for _ in range(num_attempts)))
    rewards = [
        each.verdict.reward for each in done if each.verdict is not None and each.verdict.reward is not None
    ]
    if not rewards:
        return gates
    solved = sum(reward == 1.0 for reward in rewards)
    return replace(gates, difficulty=round(solved / len(rewards), 4), num_attempts=len(rewards))
