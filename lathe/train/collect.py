"""Attempts for a step: groups of rollouts at tasks, until enough of them teach something."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from lathe.agent.attempt import AgentConfig
from lathe.agent.tools import NATIVE_TOOLS
from lathe.agent.tools.tool import AgentTool
from lathe.engine.llm import LLM
from lathe.errors import UserError
from lathe.rollout.attempt import RolloutConfig, rollout
from lathe.sandbox.pool import Pool
from lathe.tasks.known import Verify
from lathe.train.advantage import CreditConfig, judge_group, refill
from lathe.train.reward import RewardConfig
from lathe.train.rl_recipe import LoopConfig, SampleConfig
from lathe.types import Rollout, SamplingParams, Task

Group = list[Rollout]


@dataclass(frozen=True)
class Collector:
    """Who attempts tasks, where, and how. What is drawn depends on the seed, step, task and attempt alone."""

    llm: LLM
    pool: Pool
    verify: Verify
    sample: SampleConfig
    loop: LoopConfig
    credit: CreditConfig
    reward: RewardConfig
    seed: int
    turns: asyncio.Semaphore
    say: Callable[[str], None]

    async def groups(self, tasks: Sequence[Task], step: int) -> list[Group]:
        """A step's groups: `loop.groups` that teach something, and those that were tried besides. Ends
        whatever becomes of the attempts; where so many are not found, says so."""
        order = iter(random.Random(f"{self.seed} {step}").sample(tasks, len(tasks)))
        most = min(self.loop.most_groups, len(tasks))
        tried: list[Group] = []
        while True:
            num_useful = sum(self._teaches(group) for group in tried)
            wanted = refill(num_useful, len(tried), wanted=self.loop.groups, max_tried=most)
            if not wanted.num_more:
                if wanted.shortfall is not None:
                    self.say(f"step {step}: {wanted.shortfall}")
                return tried
            tried += await self._all(islice(order, wanted.num_more), str(step), self.loop.group_size)

    async def evaluation(self, tasks: Sequence[Task], num: int, temperature: float = 1.0) -> list[Group]:
        """So many attempts at each task, drawn with the same random numbers each time."""
        return await self._all(iter(tasks), "eval", num, temperature)

    async def _all(
        self, tasks: Iterator[Task], step: str, num: int, temperature: float | None = None
    ) -> list[Group]:
        async with asyncio.TaskGroup() as running:
            made = [
                [running.create_task(self._attempt(task, step, n, temperature)) for n in range(num)]
                for task in tasks
            ]
        return [[each.result() for each in group] for group in made]

    async def _attempt(self, task: Task, step: str, number: int, temperature: float | None) -> Rollout:
        sampling = SamplingParams(
            temperature=self.sample.temperature if temperature is None else temperature,
            seed=seed_of(self.seed, step, task.id, number),
            max_tokens=self.sample.max_tokens,
            deterministic=True,
        )
        agent = AgentConfig(
            system=self.sample.system if self.sample.tools else "",
            sampling=sampling,
            max_turns=self.sample.max_turns,
            max_tokens=self.sample.max_tokens,
            max_time_s=self.sample.max_time_s,
        )
        config = RolloutConfig(agent, tools_named(self.sample.tools))
        async with self.turns:
            done = await rollout(task, self.llm, self.pool, config, verify=self.verify)
        return replace(done, info={"attempt": number, **done.info})

    def _teaches(self, group: Group) -> bool:
        return any(judge_group(group, replace(self.credit, stale="keep"), self.reward).advantages)


def tools_named(names: Sequence[str]) -> tuple[AgentTool, ...]:
    """The agent's tools of these names. Raises UserError for another name."""
    known = {tool.spec.name: tool for tool in NATIVE_TOOLS}
    for name in names:
        if name not in known:
            raise UserError(f"sample.tools: {name!r} is no tool; there are {', '.join(known)}.")
    return tuple(known[name] for name in names)


def seed_of(*parts: object) -> int:
    """A seed that depends on all of these, in this order."""
    text = " ".join(map(repr, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")


def pass_rate(groups: Sequence[Group]) -> float | None:
    """The share of valid attempts that solved their task; None where no attempt was valid."""
    rewards = [each.verdict.reward for group in groups for each in group if each.verdict is not None]
    valid = [reward for reward in rewards if reward is not None]
    return sum(reward >= 1.0 for reward in valid) / len(valid) if valid else None
