"""A reinforcement run from its recipe: the parts, put together, and taken apart again."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import torch

from lathe.engine.engine import Engine, EngineConfig
from lathe.engine.llm import LLM
from lathe.errors import UserError
from lathe.log import RunLog
from lathe.sandbox.pool import Pool, open_pool
from lathe.tasks.known import KnownVerdicts, Verify
from lathe.tasks.patch import Patch
from lathe.tasks.store import read_tasks
from lathe.tasks.verify import verify
from lathe.testing import FaultyPool
from lathe.train.checkpoint import load_state, save_state, saved_steps
from lathe.train.collect import Collector
from lathe.train.families.micro_python import MicroPython
from lathe.train.parts import Parts, export, load_parts
from lathe.train.rl import Run
from lathe.train.rl_recipe import ExperimentConfig, RLRecipe, TasksConfig
from lathe.train.start import make_start
from lathe.train.sync import copy_of
from lathe.train.trainer import Trainer
from lathe.types import Task, Verdict


def reinforce(recipe: RLRecipe, *, resume: bool = False, say: Callable[[str], None] | None = None) -> Path:
    """A whole run. Its folder; `export` in it has the model. `say` hears a line a step, by default the
    console.

    Raises UserError for a recipe that can't be, and a folder that is taken.
    """
    torch.set_num_threads(recipe.num_threads or len(os.sched_getaffinity(0)))
    with RunLog(recipe.run, recipe, resume=resume, say=say) as log:
        asyncio.run(_reinforce(recipe, log, log.say))
    return recipe.run


async def _reinforce(recipe: RLRecipe, log: RunLog, say: Callable[[str], None]) -> None:
    async with open_run(recipe, log, say) as run:
        saved = [step for step in saved_steps(log.checkpoints_folder) if step <= log.last_step]
        last = max(saved, default=None)  # the newest step with both its state and its line
        log.truncate_after(-1 if last is None else last)
        if last is not None:
            state, _ = load_state(log.checkpoint(last))
            await run.in_thread(run.trainer.load_state_dict, state)
            await run.in_thread(run.sync, last)
            say(f"goes on after step {last}")
        await run.loop(last)
        await run.in_thread(export, run.parts, log.folder / "export")


@asynccontextmanager
async def open_run(recipe: RLRecipe, log: RunLog, say: Callable[[str], None]) -> AsyncIterator[Run]:
    """The run before its first step. All of PyTorch's work here is done on one thread: see `LLM`."""
    tasks, eval_tasks = tasks_of(recipe.tasks, recipe.seed)
    with ThreadPoolExecutor(1, "lathe-trainer") as work:
        loop = asyncio.get_running_loop()
        parts, trainer, llm = await loop.run_in_executor(work, open_model, recipe, log, say)
        try:
            async with open_pool() as pool:
                collector = Collector(
                    llm,
                    pool,
                    judge_of(recipe),
                    recipe.sample,
                    recipe.loop,
                    recipe.credit.like(recipe.loss.algorithm),
                    recipe.reward,
                    recipe.seed,
                    asyncio.Semaphore(recipe.sample.concurrency),
                    say,
                )

                def save(step: int) -> None:
                    save_state(log.checkpoints_folder, step, trainer.state_dict(), {})

                yield Run(recipe, parts, trainer, collector, tasks, eval_tasks, log, save, work)
        finally:
            llm.close()


def tasks_of(config: TasksConfig, seed: int) -> tuple[list[Task], list[Task]]:
    """What is reinforced, and what is evaluated. Raises UserError where they share a task."""
    if config.family is not None:
        family = family_of(config, seed)
        assert config.num_train is not None and config.num_eval is not None, "a family's recipe has both"
        make = family.task if config.family == "micro_python" else family.bug
        train, held = (
            [make(problem, f"{part}-{n}") for n, problem in enumerate(family.problems(part, count))]
            for part, count in (("rl", config.num_train), ("eval", config.num_eval))
        )
        return train, held
    assert config.train is not None, "a recipe has a family or a file"
    train = list(read_tasks(config.train))[: config.num_train]
    held = list(read_tasks(config.eval))[: config.num_eval] if config.eval is not None else []
    shared = {task.prompt for task in train} & {task.prompt for task in held}
    if shared:
        raise UserError(
            f"{len(shared)} tasks to evaluate on are also trained on: {min(shared)[:80]!r} is one."
        )
    return train, held


def family_of(config: TasksConfig, seed: int) -> MicroPython:
    return MicroPython(seed, config.max_steps, config.misled)


# The model, on the trainer's side and on the engine's


def parts_of(recipe: RLRecipe, log: RunLog, say: Callable[[str], None]) -> Parts:
    """The policy to begin with. Where the recipe names none, it is made in the run's folder, once."""
    if recipe.start.model is not None:
        return load_parts(recipe.start.model)
    if recipe.tasks.family is None:
        raise UserError("start.model is missing: a policy can be made here for a family only.")
    folder = log.folder / "start"
    make_start(family_of(recipe.tasks, recipe.seed), recipe.start, recipe.seed, folder, say)
    return load_parts(str(folder))


def open_model(recipe: RLRecipe, log: RunLog, say: Callable[[str], None]) -> tuple[Parts, Trainer, LLM]:
    parts = parts_of(recipe, log, say)
    trainer = Trainer(parts.model, recipe.train)
    engine = Engine(
        copy_of(parts.model) if recipe.loop.ahead else parts.model,
        eos_token_ids=parts.eos_token_ids,
        config=EngineConfig(
            max_num_seqs=recipe.sample.max_num_seqs,
            max_context=recipe.sample.max_context,
            kv_memory_bytes=recipe.sample.kv_memory_bytes,
            max_drafts=0,  # with many replies at once there is no room to guess
            deterministic=recipe.train.deterministic,
        ),
    )
    name = recipe.start.model or str(log.folder / "start")
    llm = LLM.from_parts(engine=engine, tokenizer=parts.tokenizer, template=parts.template, model_id=name)
    return parts, trainer, llm


# Verdicts


def judge_of(recipe: RLRecipe) -> Verify:
    loop = recipe.loop
    if loop.share_verdicts:
        judge = KnownVerdicts(loop.verdicts).verify
    else:
        turns = asyncio.Semaphore(loop.verdicts)

        async def judge(task: Task, patch: Patch, pool: Pool) -> Verdict:
            async with turns:
                return await verify(task, patch, pool)

    return with_faults(judge, recipe.experiment, recipe.seed) if recipe.experiment.fault_rate else judge


def with_faults(judge: Verify, config: ExperimentConfig, seed: int) -> Verify:
    """The same, but now and then the machine fails at it."""
    rng = random.Random(f"{seed} faults")

    async def verify_or_fail(task: Task, patch: Patch, pool: Pool) -> Verdict:
        if rng.random() < config.fault_rate:
            broken: Any = FaultyPool(pool, lambda call: True)
            return await verify(task, patch, broken)
        return await judge(task, patch, pool)

    return verify_or_fail
