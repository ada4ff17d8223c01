"""Many attempts at once, each finished one written at once, so that a killed run goes on where it was."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lathe.errors import UserError
from lathe.rollout.attempt import RolloutConfig, name_of, rollout
from lathe.rollout.harness import ForeignAgent, harness_rollout
from lathe.rollout.kept import Keeping
from lathe.rollout.passes import Score
from lathe.rollout.relay import App
from lathe.rollout.results import Results
from lathe.sandbox.pool import Pool
from lathe.types import Model, Rollout, Task

# Sandboxes that all begin in the same moment wait for the same spawner, and time out together.
STARTS_PER_S = 50.0

AttemptOne = Callable[[Task, int], Awaitable[Rollout]]


@dataclass(frozen=True)
class Job:
    """The `number`-th attempt at a task, from 1."""

    task: Task
    number: int


@dataclass(frozen=True)
class Plan:
    """What is to be attempted, and how. `freeze_share`: see `kept.Keeping`. `retry_invalid` makes anew what
    an earlier run could not judge."""

    tasks: Sequence[Task]
    config: RolloutConfig = field(default_factory=RolloutConfig)
    num_attempts: int = 1
    concurrency: int = 8
    freeze_share: float = 0.1
    retry_invalid: bool = False

    def jobs(self) -> Iterator[Job]:
        """Every task once, then every task again: what is known early is known of all tasks."""
        for number in range(1, self.num_attempts + 1):
            for task in self.tasks:
                yield Job(task, number)


@dataclass(frozen=True)
class Foreign:
    """An agent that is not Lathe's, and a server of the model that records into `records`."""

    agent: ForeignAgent
    app: App
    records: Path


def scored(results: Results, tasks: Sequence[Task], model: str | None) -> Score:
    """What the finished attempts came to. Raises UserError where they are another run's."""
    score, known = Score(), {task.id for task in tasks}
    for each in results.read():
        assert each.task is not None and each.verdict is not None
        if each.task not in known:
            raise UserError(
                f"{results.path} has attempts at {each.task!r}, which is none of these tasks. "
                "Choose another --out."
            )
        if each.model != model:
            raise UserError(
                f"{results.path} has attempts by {each.model}, not {model}. Choose another --out."
            )
        score.add(each.task, each.verdict)
    return score


async def attempt_all(
    jobs: Iterable[Job],
    attempt: AttemptOne,
    *,
    concurrency: int,
    on_done: Callable[[Job, Rollout], None],
) -> None:
    """Run the jobs, `concurrency` at a time, and hand over each rollout as it is done. An exception, which
    only a bug raises, cancels the others and flies; so does being cancelled."""
    waiting = iter(jobs)

    async def work(place: int) -> None:
        await asyncio.sleep(place / STARTS_PER_S)
        for job in waiting:
            done = await attempt(job.task, job.number)
            on_done(job, replace(done, info={"attempt": job.number, **done.info}))

    try:
        async with asyncio.TaskGroup() as group:
            for place in range(concurrency):
                group.create_task(work(place))
    except BaseExceptionGroup as several:
        raise several.exceptions[0] from None


async def attempt_tasks(
    plan: Plan,
    model: Model,
    pool: Pool,
    results: Results,
    *,
    foreign: Foreign | None = None,
    on_done: Callable[[Rollout], None] = lambda rollout: None,
    on_event: Callable[[Any], None] | None = None,
) -> None:
    """Make every attempt of the plan that `results` doesn't have yet, and add it there.

    Attempts of Lathe's own agent go on where a killed process left them. Those of a foreign agent, and of one
    turn, begin anew.
    """

    def keeping(task: str, number: int) -> Keeping:
        return Keeping(results.state_path(task, number), pool.images, freeze_share=plan.freeze_share)

    async def attempt(task: Task, number: int) -> Rollout:
        if foreign is not None:
            name = str(name_of(model))
            return await harness_rollout(task, foreign.agent, foreign.app, foreign.records, pool, model=name)
        config = seeded(plan.config, number)
        kept = keeping(task.id, number) if config.tools else None
        return await rollout(task, model, pool, config, on_event=on_event, keeping=kept)

    def finish(job: Job, done: Rollout) -> None:
        results.append(done, job.number)
        keeping(job.task.id, job.number).discard()
        on_done(done)

    todo = []
    for job in plan.jobs():
        if (job.task.id, job.number) not in results.finished:
            todo.append(job)
        elif results.state_path(job.task.id, job.number).exists():  # killed between the line and this
            keeping(job.task.id, job.number).discard()
    await attempt_all(todo, attempt, concurrency=plan.concurrency, on_done=finish)


def seeded(config: RolloutConfig, number: int) -> RolloutConfig:
    """With a seed of its own for each attempt: the same one would give the same attempt."""
    sampling = config.agent.sampling
    if sampling is None or sampling.seed is None:
        return config
    sampling = replace(sampling, seed=sampling.seed + number - 1)
    return replace(config, agent=replace(config.agent, sampling=sampling))
