"""A whole run of attempts: its file, its pool, what was finished before, and what is left to do."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lathe.agent.attempt import AgentConfig
from lathe.jsonl import to_json
from lathe.rollout.attempt import name_of
from lathe.rollout.harness import ForeignAgent
from lathe.rollout.many import Foreign, Plan, attempt_tasks, scored
from lathe.rollout.passes import Score
from lathe.rollout.relay import App
from lathe.rollout.results import open_results
from lathe.sandbox.fleet.fleet import open_fleet
from lathe.sandbox.images import ImageStore, default_root
from lathe.sandbox.namespace.layers import delete
from lathe.sandbox.pool import BackendName, open_pool
from lathe.tasks.store import task_digest
from lathe.types import Model, Rollout, Task


@dataclass(frozen=True)
class ForeignSetup:
    """An agent that is not Lathe's, and how to make a server of the model that records into a folder."""

    agent: ForeignAgent
    serve: Callable[[Path], App]


async def run_plan(
    plan: Plan,
    model: Model,
    out: Path,
    *,
    backend: BackendName = "auto",
    state: Path | None = None,
    fleet: str | None = None,
    foreign: ForeignSetup | None = None,
    on_begin: Callable[[Score], None] = lambda score: None,
    on_done: Callable[[Rollout, Score], None] = lambda rollout, score: None,
    on_event: Callable[[Any], None] | None = None,
) -> Score:
    """Make the attempts of a plan that the file `out` doesn't have yet, and say what all of them came to.

    Killed at any moment, it goes on there when it is called again. `state` is the folder of a pool that holds
    the tasks' images; None: one beside `out`, and the images of this machine's user. `fleet` is the address
    of a Ray cluster, on whose machines the sandboxes are then. `on_begin` is told what was finished before.
    """
    out = whole(out)
    with open_results(out, settings_of(plan, model, foreign)) as results:
        if plan.retry_invalid:
            await asyncio.to_thread(results.forget_invalid)
        score = await asyncio.to_thread(scored, results, plan.tasks, name_of(model))
        on_begin(score)

        def note(done: Rollout) -> None:
            assert done.task is not None and done.verdict is not None
            score.add(done.task, done.verdict)
            on_done(done, score)

        folder = results.folder / "pool" if state is None else whole(state)
        if state is None:  # ours alone: what a killed process left there is nobody's
            await asyncio.to_thread(delete, str(folder / "boxes"))
        has_images = any(task.image is not None for task in plan.tasks)
        images = default_root() if state is None and has_images else folder / "images"
        context: Any = open_pool(backend, state=folder, images=ImageStore(images))
        if fleet is not None:
            context = open_fleet(fleet, backend=backend, images=images)
        async with context as pool:
            made = None
            if foreign is not None:
                records = results.folder / "records"
                await asyncio.to_thread(delete, str(records))
                made = Foreign(foreign.agent, foreign.serve(records), records)
            await attempt_tasks(plan, model, pool, results, foreign=made, on_done=note, on_event=on_event)
        results.is_complete = True
    return score


def whole(path: Path) -> Path:
    """The path from the root: spawners work in another folder. A link stays one."""
    return Path(os.path.abspath(path))  # noqa: PTH100


def settings_of(plan: Plan, model: Model, foreign: ForeignSetup | None) -> dict[str, Any]:
    """What must be the same when a run goes on. How many at a time, and how often, may change."""
    settings = to_json(plan.config.agent)
    if plan.config.agent.sampling is not None:
        settings["sampling"] = to_json(plan.config.agent.sampling)
    return {
        "tasks": digest(plan.tasks),
        "model": name_of(model),
        "tools": [tool.name for tool in plan.config.tools],
        "agent": None if foreign is None else list(foreign.agent.command),
        **{name: settings.get(name) for name in AgentConfig.__dataclass_fields__},
    }


def digest(tasks: Sequence[Task]) -> str:
    """What a set of tasks is."""
    names = sorted(f"{task.id} {task_digest(task)}" for task in tasks)
    return hashlib.sha256("\n".join(names).encode("utf-8", "surrogatepass")).hexdigest()[:16]
