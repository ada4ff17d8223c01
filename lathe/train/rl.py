"""Reinforcement by execution: attempt tasks, judge the attempts in sandboxes, credit, update, sync, log.

`Run.loop` is the story. With `loop.ahead` = 0 sampling and updates take turns on one copy of the weights, and
in deterministic mode a run that was killed goes on to the same weights, bit for bit. With more, the next
steps' attempts are made while this one's update runs, and go on with the new weights in the middle of a
reply.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from torch import Tensor

from lathe.log import RunLog
from lathe.train.advantage import Credit, assign_credit, minibatches, weigh
from lathe.train.batch import Batch, Sample
from lathe.train.collect import Collector, Group, pass_rate
from lathe.train.loss import LossConfig, policy_loss
from lathe.train.parts import Parts
from lathe.train.replay import with_old_policy
from lathe.train.rl_recipe import RLRecipe
from lathe.train.sync import sync
from lathe.train.trainer import Trainer
from lathe.types import Rollout, Task, Verdict

Metrics = dict[str, float | None]


@dataclass
class Run:
    """A reinforcement on its way. The weights after step n are version n. `parts` is the model with its
    words, `work` the one thread on which the trainer computes; `save` keeps the state after a step."""

    recipe: RLRecipe
    parts: Parts
    trainer: Trainer
    collector: Collector
    tasks: Sequence[Task]
    eval_tasks: Sequence[Task]
    log: RunLog
    save: Callable[[int], None]
    work: ThreadPoolExecutor
    seconds: dict[str, float] = field(default_factory=dict)

    async def loop(self, last_step: int | None = None) -> None:
        """The steps after `last_step` to the recipe's last; None begins before all, with an evaluation."""
        if last_step is None:
            self.finish(0, await self.evaluate(0))
        async with aclosing(self.collected((last_step or 0) + 1)) as steps:
            async for step, groups in steps:
                credit = self.credit(groups, step)
                updated = await self.in_thread(self.update, credit, groups, step)
                await self.in_thread(self.sync, step)
                evaluated = await self.evaluate(step)
                self.finish(step, {**measured(groups, credit), **updated, **evaluated}, groups)

    async def collected(self, first: int) -> AsyncGenerator[tuple[int, list[Group]], None]:
        """Each step's groups, while those of the next `ahead` steps are made: so no token is sampled by
        weights that are more than `ahead` versions older than those it is trained on."""
        last, ahead = self.recipe.loop.steps, self.recipe.loop.ahead
        pending: deque[asyncio.Task[list[Group]]] = deque()
        try:
            for step in range(first, last + 1):
                for coming in range(step + len(pending), min(step + ahead, last) + 1):
                    pending.append(asyncio.create_task(self.collector.groups(self.tasks, coming)))
                with self.timed("seconds_sample"):
                    groups = await pending.popleft()
                yield step, groups
        finally:
            for each in pending:
                each.cancel()
            await asyncio.gather(*pending, return_exceptions=True)

    def credit(self, groups: Sequence[Group], step: int) -> Credit:
        recipe = self.recipe
        if recipe.experiment.faults == "as_zero":
            groups = [[faults_as_zero(each) for each in group] for group in groups]
        config = recipe.credit.like(recipe.loss.algorithm)
        return assign_credit(groups, config, recipe.reward, version=step - 1)

    def update(self, credit: Credit, groups: Sequence[Group], step: int) -> Metrics:
        """As many updates as there are minibatches, all against the policy of before the first."""
        recipe, trainer = self.recipe, self.trainer
        config = recipe.credit.like(recipe.loss.algorithm)
        with self.timed("seconds_train"):
            parts = [
                with_old_policy(weigh(part, config), trainer.model, trainer.mode, recipe.train.max_tokens)
                for part in minibatches(credit.attempts, recipe.loop.minibatches)
            ]
            loss = partial(loss_of, config=recipe.loss)
            updates = [trainer.step(part, loss) for part in parts]
        fresh = {
            trajectory.id
            for group in groups
            for rollout in group
            for trajectory in rollout.trajectories
            if trajectory.weights_versions == (step - 1,)
        }
        num = sum(each["num_trained"] for each in updates) or 1.0

        def mean(name: str) -> float | None:
            return sum(each[name] * each["num_trained"] for each in updates) / num if updates else None

        return {
            "loss": sum(each["loss"] for each in updates) / len(updates) if updates else None,
            "entropy": mean("entropy"),
            "clip_share": mean("clipped"),
            "kl_old": mean("kl_old"),
            "mismatch": largest_mismatch([sample for part in parts for sample in part], fresh),
            "grad_norm": mean("grad_norm"),
            "lr": updates[-1]["lr"] if updates else None,
        }

    def sync(self, step: int) -> None:
        engine: Any = self.collector.llm.engine
        with self.timed("seconds_sync"):
            sync(self.trainer.model, engine, step, running="continue" if self.recipe.loop.ahead else "finish")

    async def evaluate(self, step: int) -> Metrics:
        """How often the held-out tasks are solved, at temperature 1. Greedily, too, at the beginning and the
        end, if the recipe asks for it."""
        loop = self.recipe.loop
        if step % loop.eval_every and step != loop.steps:
            return {}
        with self.timed("seconds_eval"):
            groups = await self.collector.evaluation(self.eval_tasks, loop.eval_attempts)
            found: Metrics = {"eval_pass_rate": pass_rate(groups)}
            if loop.eval_greedy and step in (0, loop.steps):
                greedy = await self.collector.evaluation(self.eval_tasks, 1, temperature=0.0)
                found["eval_greedy_pass_rate"] = pass_rate(greedy)
        return found

    def finish(self, step: int, metrics: Metrics, groups: Sequence[Group] = ()) -> None:
        """The step's state on disk, then its line: what has a line is never done again."""
        if step % self.recipe.loop.checkpoint_every == 0 or step == self.recipe.loop.steps:
            with self.timed("seconds_save"):
                self.save(step)
        if groups and self.recipe.loop.keep_rollouts:
            self.log.rollouts(step, [each for group in groups for each in group])
        now = time.monotonic()
        total = now - self.seconds.pop("started", now)
        num_tokens = sum(len(t.token_ids) for group in groups for each in group for t in each.trajectories)
        rate = num_tokens / total if num_tokens and total else None
        self.log.step(step, **metrics, **self.seconds, tokens_per_s=rate, seconds=total)
        self.seconds = {"started": now}

    async def in_thread(self, call: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self.work, call, *args)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        self.seconds.setdefault("started", started)
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started


def loss_of(logprobs_N: Tensor, batch: Batch, config: LossConfig) -> tuple[Tensor, dict[str, Tensor]]:
    return policy_loss(logprobs_N, batch.old_N, batch, config)


def measured(groups: Sequence[Group], credit: Credit) -> Metrics:
    """A step's attempts as numbers."""
    stats = credit.stats
    return {
        "reward": stats["reward"],
        "pass_rate": pass_rate(groups),
        "reply_tokens": stats["reply_tokens"],
        "truncated": stats["truncated"],
        "invalid_share": stats["invalid"],
        "suspect": stats["suspect"],
        "skipped_groups": credit.num_groups - credit.num_useful,
        "staleness": stats["largest_staleness"],
    }


def largest_mismatch(samples: Sequence[Sample], fresh: set[str]) -> float | None:
    """The largest difference between the engine's and the trainer's log-probability of a token, over the
    samples whose weights were the same on both sides; None where there is no such sample."""
    differences = [
        abs(old - engine)
        for sample in samples
        if sample.trajectory in fresh
        for old, engine, trained in zip(sample.old_logprobs, sample.logprobs, sample.loss_mask, strict=True)
        if trained
    ]
    return max(differences, default=None)


def faults_as_zero(rollout: Rollout) -> Rollout:
    """What no run should do, to see what it does: a machine's fault taken for a wrong answer."""
    if rollout.verdict is None or rollout.verdict.valid:
        return rollout
    return replace(rollout, verdict=Verdict(0.0, {"fault": rollout.verdict.reason}))
