"""Other people's agents: a command line works in a task's sandbox, its conversation becomes a rollout."""

from __future__ import annotations

import asyncio
import re
import shlex
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lathe.agent.attempt import Counts
from lathe.errors import LatheError, SandboxError, UserError
from lathe.jsonl import part_from_line, read_rollouts
from lathe.rollout.course import Course
from lathe.rollout.relay import App, model_door, relayed
from lathe.sandbox.pool import Pool
from lathe.sandbox.spec import Bind
from lathe.tasks.patch import take_listing, take_patch
from lathe.tasks.place import open_place
from lathe.types import ExecResult, Rollout, Sandbox, Task, Trajectory, Verdict

MAX_LOG_CHARS = 4000
PLACEHOLDER = re.compile(r"\{(prompt|url|model)\}")


@dataclass(frozen=True)
class ForeignAgent:
    """A command with its arguments. In each, {prompt} stands for the task, {url} for the model's address
    (without /v1) and {model} for its name. `binds` are folders of this machine in which it is installed.

    The variables by which clients of OpenAI and Anthropic find their server are set; `env` adds to them, with
    the same placeholders.
    """

    command: tuple[str, ...]
    binds: tuple[Bind, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float = 1800.0

    @classmethod
    def parse(cls, line: str, binds: tuple[Bind, ...] = (), timeout_s: float = 1800.0) -> ForeignAgent:
        """From a line as a shell reads it, without running one. Raises UserError."""
        try:
            words = tuple(shlex.split(line))
        except ValueError as error:
            raise UserError(f"--agent is no command line ({error}): {line}") from error
        if not any("{prompt}" in word for word in words):
            raise UserError(f"--agent doesn't say where the task goes: put {{prompt}} into {line!r}.")
        return cls(words, binds, timeout_s=timeout_s)


async def harness_rollout(
    task: Task, agent: ForeignAgent, app: App, records: Path, pool: Pool, *, model: str
) -> Rollout:
    """Let a foreign agent attempt a task, and judge what it did in a second, clean sandbox.

    `app` is a server of the model `model` that records into `records`. The agent reaches it, and nothing
    else, by a port of its sandbox's own; its requests are recorded under a name that it can't choose. Its
    records are taken out of `records`. The verdict is invalid, with its reason, when the machine failed, the
    server's last answer was an error of its own, or the agent never spoke with the model or failed while it
    waited for a reply.
    """
    session = f"{task.id}-{uuid.uuid4().hex}"
    course = Course(task, model)
    answers: list[int] = []
    try:
        async with model_door(_noting(app, answers), session) as door:
            with course.during("open"):
                box = await open_place(task, pool, network="loopback", binds=(door, *agent.binds))
            try:
                ended = await _work(course, agent, box, model)
            finally:
                with suppress(SandboxError):
                    await box.close()
        await _take_record(course, records, session)
        verdict = _fault(course, ended, answers) or await course.judge(pool)
    except (LatheError, OSError) as error:
        await _take_record(course, records, session)
        verdict = course.fault(error)
    return course.rollout(verdict)


async def _work(course: Course, agent: ForeignAgent, box: Sandbox, model: str) -> ExecResult:
    with course.during("open"):
        before = await take_listing(box)
    with course.during("agent"):
        async with relayed(box) as url:
            values = {"prompt": course.task.prompt, "url": url, "model": model}
            command = [filled(word, values) for word in agent.command]
            own = {name: filled(value, values) for name, value in agent.env.items()}
            env = {**variables(url, model), **own}
            ended = await box.exec(command, env=env, timeout_s=agent.timeout_s)
    course.stop_reason = "max_time" if ended.timed_out else "failed" if ended.exit_code else "done"
    course.info["agent"] = {
        "command": list(agent.command),
        "exit_code": ended.exit_code,
        "output": (ended.stdout + ended.stderr)[-MAX_LOG_CHARS:],
    }
    with course.during("patch"):
        course.patch = await take_patch(box, before)
    if course.patch.left_out:
        course.info["left_out"] = dict(course.patch.left_out)
    return ended


def filled(text: str, values: Mapping[str, str]) -> str:
    """The text with its placeholders' values; other braces stay."""
    return PLACEHOLDER.sub(lambda found: values[found[1]], text)


def variables(url: str, model: str) -> dict[str, str]:
    """By which clients find their server."""
    return {
        "OPENAI_BASE_URL": f"{url}/v1",
        "OPENAI_API_BASE": f"{url}/v1",
        "OPENAI_API_KEY": "none",
        "OPENAI_MODEL": model,
        "ANTHROPIC_BASE_URL": url,
        "ANTHROPIC_API_KEY": "none",
        "ANTHROPIC_MODEL": model,
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
    }


def _noting(app: App, answers: list[int]) -> App:
    """The app; the status of each answer to a POST is noted."""

    async def noting(scope: Any, receive: Any, send: Any) -> None:
        async def note(message: Any) -> None:
            if message["type"] == "http.response.start" and scope.get("method") == "POST":
                answers.append(message["status"])
            await send(message)

        await app(scope, receive, note)

    return noting


def _fault(course: Course, ended: ExecResult, answers: list[int]) -> Verdict | None:
    """What says that the attempt was none of the agent's making."""
    last = (ended.stderr.strip() or ended.stdout.strip())[-1000:]
    if answers and answers[-1] >= 500:
        return Verdict(reason=f"model: the server answered {answers[-1]}; the agent ended with {last}")
    replies = [segment for each in course.trajectories for segment in each.segments]
    if ended.exit_code and not ended.timed_out and replies and replies[-1].finish_reason == "abort":
        return Verdict(reason=f"model: the agent gave up waiting for a reply, and ended with {last}")
    if not course.trajectories:
        return Verdict(
            reason=f"agent: it never spoke with the model, and ended with exit code {ended.exit_code}: {last}"
        )
    return None


# What was said


async def _take_record(course: Course, records: Path, session: str) -> None:
    course.trajectories = await asyncio.to_thread(take_record, records, session)
    segments = [each for trajectory in course.trajectories for each in trajectory.segments]
    course.counts = Counts(
        num_turns=len(segments),
        num_prompt_tokens=sum(segment.start for segment in segments),
        num_reply_tokens=sum(segment.stop - segment.start for segment in segments),
    )


def take_record(records: Path, session: str) -> tuple[Trajectory, ...]:
    """The trajectories of a session, in the order in which they began. Their files are deleted."""
    found: list[Trajectory] = []
    for path in sorted(records.glob("*.jsonl")):
        try:
            with path.open("rb") as file:
                first = file.readline()
        except FileNotFoundError:  # another attempt has just taken it
            continue
        if session.encode() not in first:
            continue
        if part_from_line(first).rollout.info.get("session") == session:
            found += [each for rollout in read_rollouts(path) for each in rollout.trajectories]
            path.unlink()
    return tuple(found)
