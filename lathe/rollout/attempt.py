"""One attempt at one task, from a fresh sandbox to a verdict. Evals, RL and makers of tasks all call this."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from lathe.agent.attempt import AgentConfig, Attempt
from lathe.agent.calls import answer_calls
from lathe.agent.loop import run
from lathe.agent.tools import NATIVE_TOOLS
from lathe.agent.tools.tool import AgentTool, Workspace
from lathe.errors import LatheError, SandboxError
from lathe.rollout.code_block import answer_file, patch_of_answer
from lathe.rollout.course import Course
from lathe.rollout.kept import Keeping, Kept
from lathe.rollout.resumed import listing_of_resumed
from lathe.sandbox.pool import Pool
from lathe.tasks.known import Verify
from lathe.tasks.patch import Listing, patch_from_json, take_listing, take_patch
from lathe.tasks.place import open_place, place_spec
from lathe.tasks.verify import verify
from lathe.types import Model, Rollout, Sandbox, Task, Verdict

FAULTS = ("sandbox", "model", "interrupted")


@dataclass(frozen=True)
class RolloutConfig:
    """How a task is attempted. Without `tools` it is one question, and the answer's code is the patch."""

    agent: AgentConfig = field(default_factory=AgentConfig)
    tools: tuple[AgentTool, ...] = NATIVE_TOOLS


async def rollout(
    task: Task,
    model: Model,
    pool: Pool,
    config: RolloutConfig | None = None,
    *,
    on_event: Callable[[Any], None] | None = None,
    keeping: Keeping | None = None,
    verify: Verify = verify,
) -> Rollout:
    """Let a model attempt a task, and judge what it did in a second, clean sandbox.

    The verdict is invalid, with its reason, when the machine failed at any moment or the model could not be
    reached; neither raises. Only a bug does, a task that could never be attempted (TaskError), and being
    cancelled; no sandbox is left behind. `on_event` hears what `agent.loop.run` reports. `keeping` keeps the
    state after each turn, and goes on from what it has. `verify` judges (see `tasks/known.py` for one that
    remembers).
    """
    config = config or RolloutConfig()
    emit = on_event or (lambda event: None)
    if not config.tools:
        answer_file(task)
    course = Course(task, name_of(model), verify=verify)
    try:
        if config.tools:
            attempt = await _work(course, model, pool, config, emit, keeping)
        else:
            attempt = await _answer(course, model, config, emit)
        if attempt.stop_reason in FAULTS:
            verdict = Verdict(reason=f"{attempt.stop_reason}: {attempt.detail}")
        else:
            verdict = await course.judge(pool)
    except (LatheError, OSError) as error:
        verdict = course.fault(error)
    return course.rollout(verdict)


def name_of(model: Model) -> str | None:
    """The name that a model was loaded or is served by."""
    return getattr(model, "model_id", None) or getattr(model, "model", None)


def note(course: Course, attempt: Attempt) -> None:
    """What the attempt is by now."""
    course.trajectories, course.stop_reason = attempt.trajectories, attempt.stop_reason
    course.counts = attempt.counts
    if attempt.detail:
        course.info["detail"] = attempt.detail


# One question


async def _answer(
    course: Course, model: Model, config: RolloutConfig, emit: Callable[[Any], None]
) -> Attempt:
    with course.during("agent"):
        once = replace(config.agent, max_turns=1)
        attempt = await run(model, None, course.task.prompt, once, tools=(), on_event=emit)
    note(course, attempt)
    if attempt.stop_reason not in FAULTS:
        course.patch = patch_of_answer(course.task, attempt.answer)
    return attempt


# With tools


async def _work(
    course: Course,
    model: Model,
    pool: Pool,
    config: RolloutConfig,
    emit: Callable[[Any], None],
    keeping: Keeping | None,
) -> Attempt:
    """The agent's run, and its patch."""
    task = course.task
    kept = None if keeping is None else keeping.load()
    if kept is not None:
        note(course, kept.attempt)
        course.seconds.update(kept.seconds)
        if kept.patch is not None:
            course.patch = patch_from_json(kept.patch)
            return kept.attempt
    with course.during("open"):
        box = await _open(task, pool, kept)
    try:
        with course.during("open"):
            workspace = Workspace(box, max_output_chars=config.agent.max_output_chars)
            if kept is None:
                before = await take_listing(box)
            else:
                workspace.cwd, workspace.todos = kept.cwd or task.workdir, list(kept.todos)
                before = await _caught_up(course, pool, workspace, config, kept)
        attempt = await _run(course, model, workspace, config, emit, keeping, kept)
        if attempt.stop_reason not in FAULTS:
            with course.during("patch"):
                course.patch = await take_patch(box, before)
            if course.patch.left_out:
                course.info["left_out"] = dict(course.patch.left_out)
            if keeping is not None:
                keeping.finish(attempt, course.patch, course.seconds)
        return attempt
    finally:
        with suppress(SandboxError):
            await box.close()


async def _open(task: Task, pool: Pool, kept: Kept | None) -> Sandbox:
    """A fresh place; or what was frozen of one."""
    if kept is None or kept.image is None:
        return await open_place(task, pool)
    return await pool.create(replace(place_spec(task), image=kept.image))


async def _caught_up(
    course: Course, pool: Pool, workspace: Workspace, config: RolloutConfig, kept: Kept
) -> Listing:
    """Does again what was done since the sandbox was frozen. What lay there before the agent came."""
    box = workspace.sandbox
    if kept.image is None:
        before = await take_listing(box)
    else:
        clean = await open_place(course.task, pool)
        try:
            before = await listing_of_resumed(box, clean)
        finally:
            with suppress(SandboxError):
                await clean.close()
    if kept.calls:
        workspace.cwd = kept.frozen_cwd or course.task.workdir
        await answer_calls(kept.calls, config.tools, workspace, {}, approve=None, on_event=lambda event: None)
        workspace.cwd, workspace.todos = kept.cwd or course.task.workdir, list(kept.todos)
    return before


async def _run(
    course: Course,
    model: Model,
    workspace: Workspace,
    config: RolloutConfig,
    emit: Callable[[Any], None],
    keeping: Keeping | None,
    kept: Kept | None,
) -> Attempt:
    if kept is not None and kept.attempt.stop_reason is not None:
        return kept.attempt
    hear, save, asked = emit, None, model
    if keeping is not None:
        keeping.begin(workspace, config.tools, kept)

        def hear(event: Any) -> None:
            keeping.hear(event)
            emit(event)

        def save(attempt: Attempt) -> None:
            keeping.save(attempt, course.seconds)

        asked = keeping.freezing(model)
    with course.during("agent"):
        attempt = await run(
            asked,
            workspace.sandbox,
            course.task.prompt if kept is None else kept.attempt,
            config.agent,
            tools=config.tools,
            workspace=workspace,
            on_event=hear,
            save=save,
        )
    note(course, attempt)
    return attempt
