"""The agent's loop: ask the model, carry out its calls, ask again. The conversation only ever grows.

Everything that decides what happens next is read from the conversation itself, so that a run which was cut
anywhere goes on as if it had not been.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import replace
from datetime import date
from functools import partial
from typing import Any

from lathe.agent import context, prompt
from lathe.agent.attempt import AgentConfig, Attempt, Counts
from lathe.agent.calls import Answered, Approve, answer_calls, num_damaged
from lathe.agent.events import Compacted, Ended, Event, Nudged, StopReason, TurnEnded, TurnStarted
from lathe.agent.guard import (
    MAX_DAMAGED,
    ONLY_DAMAGED,
    REPEATS,
    STOP_AT,
    TELL_AT,
    Nudge,
    Stop,
    judge,
    num_repeats,
    unanswered,
)
from lathe.agent.tools import NATIVE_TOOLS
from lathe.agent.tools.tool import AgentTool, Workspace
from lathe.errors import LatheError, PromptTooLong, SandboxError, UpstreamError
from lathe.types import (
    Completion,
    Message,
    Model,
    SamplingParams,
    Sandbox,
    ToolCall,
    Trajectory,
)

Start = str | Trajectory | Attempt
Begin = Callable[[str], Awaitable[Trajectory]]


async def run(
    model: Model,
    sandbox: Sandbox | None,
    start: Start,
    config: AgentConfig | None = None,
    *,
    tools: Sequence[AgentTool] = NATIVE_TOOLS,
    workspace: Workspace | None = None,
    memories: Sequence[prompt.Memory] = (),
    today: date | None = None,
    on_event: Callable[[Any], None] | None = None,
    approve: Approve | None = None,
    save: Callable[[Attempt], None] | None = None,
    interrupt: asyncio.Event | None = None,
) -> Attempt:
    """Let a model work until it is done, or something stops it. What stopped it is in the attempt: only bugs
    raise.

    `start` is a task; or a trajectory whose last turn is the user's, a tool's result, or a reply with calls
    that have no result yet; or an attempt to go on with. A task is put behind the date, git's state and the
    project's own words (see `prompt.first_turn`). Without a sandbox and without tools, this is one question
    and its answer. `workspace` keeps what the tools remember from one run to the next.

    `on_event` hears all that happens, `approve` is asked before each call (see `calls.Proposal`), `save` is
    given the attempt after every reply and after its results: enough to go on from. Setting `interrupt` ends
    what is running and the run, with every call answered. Being cancelled does so, too, and raises; `save`
    has the state then.
    """
    config = config or AgentConfig()
    tools = tools if sandbox is not None else ()
    if workspace is None and sandbox is not None:
        workspace = Workspace(sandbox, max_output_chars=config.max_output_chars)
    begin = partial(
        prompt.opening, sandbox=sandbox, tools=tools, system=config.system, memories=memories, today=today
    )
    emit, save = on_event or (lambda event: None), save or (lambda attempt: None)
    return await _Agent(model, config, tools, workspace, emit, approve, save).run(start, begin, interrupt)


class _Agent:
    """A run on its way."""

    def __init__(
        self,
        model: Model,
        config: AgentConfig,
        tools: Sequence[AgentTool],
        workspace: Workspace | None,
        emit: Callable[[Event], None],
        approve: Approve | None,
        save: Callable[[Attempt], None],
    ):
        self.model = model
        self.config = config
        self.tools = tools
        self.workspace = workspace
        self.emit = emit
        self.approve = approve
        self.save = save
        self.refused_at: int | None = None  # where the window ends as the model's refusal told it
        self.trajectories: list[Trajectory] = []
        self.counts = Counts()
        self.started = time.monotonic()
        self.known: int | None = None  # tokens up to the last reply, where its ids don't tell
        self.results: dict[int, Answered] = {}  # of the calls that are being answered
        self.just_compacted = False
        self.was_cut = False  # the last reply, by its limit

    # The run, and what ends it

    async def run(
        self,
        start: Start,
        begin: Begin,
        interrupt: asyncio.Event | None,
    ) -> Attempt:
        try:
            work = self._work(start, begin)
            stop = await (work if interrupt is None else unless(interrupt, work))
        except asyncio.CancelledError:
            self._end("interrupted", "")
            raise
        return self._end(*(stop or ("interrupted", "")))

    def _end(self, reason: StopReason, detail: str) -> Attempt:
        why = {"max_time": "the time was up", "sandbox": "the sandbox failed"}.get(reason, "interrupted")
        self._settle(f"[{why} before this call was done]")
        attempt = replace(self.attempt, stop_reason=reason, detail=detail)
        self.save(attempt)
        self.emit(Ended(reason, detail))
        return attempt

    @property
    def attempt(self) -> Attempt:
        duration_s = self.counts.duration_s + time.monotonic() - self.started
        return Attempt(tuple(self.trajectories), counts=replace(self.counts, duration_s=duration_s))

    @property
    def max_context(self) -> int | None:
        """The window, as it was set, or as the model says: one over HTTP knows it once it has been asked."""
        limit = self.config.max_context or getattr(self.model, "max_context", None)
        return min(limit or self.refused_at, self.refused_at) if self.refused_at else limit

    @property
    def trajectory(self) -> Trajectory:
        return self.trajectories[-1]

    @trajectory.setter
    def trajectory(self, trajectory: Trajectory) -> None:
        self.trajectories[-1] = trajectory

    async def _work(self, start: Start, begin: Begin) -> Stop:
        limit = None
        try:
            match start:
                case Attempt():
                    self.trajectories, self.counts = list(start.trajectories), start.counts
                case Trajectory():
                    self.trajectories = [start]
                case str():  # so that there is something to go on with, should the beginning fail
                    self.trajectories = [prompt.begin(start, self.tools, system=self.config.system)]
            left = None if self.config.max_time_s is None else self.config.max_time_s - self.counts.duration_s
            async with asyncio.timeout(left) as limit:
                if isinstance(start, str):
                    self.trajectories = [await begin(start)]
                segments = self.trajectory.segments
                self.was_cut = bool(segments) and segments[-1].finish_reason == "length"
                while True:
                    if stop := await self._step():
                        return stop
        except TimeoutError:
            if limit is None or not limit.expired():
                raise
            return "max_time", f"{self.config.max_time_s:g} s were up."
        except (PromptTooLong, context.ContextFull) as error:
            return "context", str(error)
        except SandboxError as error:
            return "sandbox", f"{type(error).__name__}: {error}"
        except LatheError as error:
            return "model", f"{type(error).__name__}: {error}"

    async def _step(self) -> Stop | None:
        """The next thing to do: carry out calls, think about a reply without any, or ask the model."""
        messages = self.trajectory.messages
        if calls := unanswered(messages):
            stop = await self._answer(calls)
        elif messages and messages[-1].role == "assistant":
            stop = self._judge()
        else:
            stop = self._over_budget() or await self._ask()
        if stop is None:
            self.save(self.attempt)
        return stop

    # Asking

    def _over_budget(self) -> Stop | None:
        config, counts = self.config, self.counts
        if config.max_turns is not None and counts.num_turns >= config.max_turns:
            return "max_turns", f"{config.max_turns} turns were used."
        if config.max_tokens is not None and counts.num_reply_tokens >= config.max_tokens:
            return "max_tokens", f"{config.max_tokens} tokens were sampled."
        return None

    async def _ask(self) -> Stop | None:
        size = context.num_tokens(self.trajectory, self.known)
        if self.max_context is not None and size >= self.config.compact_at * self.max_context:
            await self._compact()
        turn = self.counts.num_turns + 1
        sampling = self._sampling()
        started, first = time.monotonic(), None

        def hear(event: Any) -> None:
            nonlocal first
            first = first or time.monotonic()
            self.emit(event)

        self.emit(TurnStarted(turn))
        try:
            completion = await self.model.complete(self.trajectory, sampling, on_event=hear)
        except PromptTooLong as error:
            self.refused_at = error.max_context or size  # some servers don't tell
            await self._compact()
            return None
        if completion.finish_reason == "abort":
            raise UpstreamError("the model's engine stopped in the middle of a reply")
        ended = time.monotonic()
        self._extend(completion, sampling)
        self.counts = self.counts.plus(completion, num_turns=1)
        self.just_compacted = False
        self.emit(TurnEnded(turn, completion, (first or ended) - started, ended - started))
        return None

    def _sampling(self) -> SamplingParams | None:
        """The run's own, or the model's, with no more tokens than the budget has left. A server's own way to
        draw is not known here; a reply that it draws may end beyond the budget."""
        sampling = self.config.sampling or getattr(self.model, "default_sampling", None)
        if sampling is None or self.config.max_tokens is None:
            return sampling
        left = max(self.config.max_tokens - self.counts.num_reply_tokens, 1)
        return replace(sampling, max_tokens=min(left, sampling.max_tokens or left))

    def _extend(self, completion: Completion, sampling: SamplingParams | None) -> None:
        self.trajectories[-1:] = context.extended(self.trajectory, completion, sampling)
        self.was_cut = completion.finish_reason == "length"
        known = completion.num_prompt_tokens + completion.num_reply_tokens
        self.known = None if completion.counted is None else known

    async def _compact(self) -> None:
        """Raises ContextFull where it was tried just now, and did not help."""
        if self.just_compacted or self.max_context is None:
            raise context.ContextFull("The context is full: what must be kept of the conversation fills it.")
        before, size = self.trajectory, context.num_tokens(self.trajectory, self.known)
        done = await context.compact(
            self.model, before, self.max_context, known=self.known, sampling=self._sampling()
        )
        if done.completion is not None:
            self.counts = self.counts.plus(done.completion)
        self.trajectories[-1:] = [*done.ended, done.after]
        self.known = None
        self.just_compacted = done.completion is not None  # else there is still a summary to try
        self.counts = replace(self.counts, num_compactions=self.counts.num_compactions + 1)
        self.emit(Compacted(done.ended[-1], done.after, size, done.num_tokens_after))
        self.save(self.attempt)

    # Carrying out calls

    async def _answer(self, calls: Sequence[ToolCall]) -> Stop | None:
        before = num_repeats(self.trajectory.messages)
        await answer_calls(
            calls, self.tools, self.workspace, self.results, approve=self.approve, on_event=self.emit
        )
        self._settle("")
        if num_damaged(self.trajectory.messages, self.tools) >= MAX_DAMAGED:
            return "loop", ONLY_DAMAGED
        repeats = num_repeats(self.trajectory.messages)
        if repeats >= STOP_AT and before >= TELL_AT:
            return "loop", f"The same call was made {repeats} times, with the same result."
        if repeats >= TELL_AT > before:
            self._nudge(Nudge("repeats", REPEATS.format(repeats)))
        return None

    def _settle(self, otherwise: str) -> None:
        """Every call of the last reply gets its result, or this one."""
        calls = unanswered(self.trajectory.messages) if self.trajectories else ()
        num_failed = 0
        for place, call in enumerate(calls):
            answered = self.results.get(place)
            message = Message("tool", otherwise, tool_call_id=call.id, name=call.name)
            self.trajectory = self.trajectory.add(message if answered is None else answered.message)
            num_failed += answered is None or answered.is_error
        self.results.clear()
        self.counts = replace(
            self.counts,
            num_calls=self.counts.num_calls + len(calls),
            num_failed_calls=self.counts.num_failed_calls + num_failed,
        )

    # Replies without calls

    def _judge(self) -> Stop | None:
        """Is the agent done, or did it only stop?"""
        verdict = judge(
            self.trajectory.messages,
            was_cut=self.was_cut,
            has_tools=bool(self.tools),
            max_announced=self.config.max_announced,
            num_damaged=num_damaged(self.trajectory.messages, self.tools),
        )
        if not isinstance(verdict, Nudge):
            return verdict
        if stop := self._over_budget():
            return stop
        self._nudge(verdict)
        return None

    def _nudge(self, nudge: Nudge) -> None:
        self.trajectory = self.trajectory.add(Message("user", nudge.text))
        self.emit(Nudged(nudge.why, nudge.text))


async def unless(interrupt: asyncio.Event, work: Coroutine[Any, Any, Any]) -> Any:
    """The result of `work`; or None when the event was set before: then it is cancelled, and has unwound."""
    working, stopping = asyncio.ensure_future(work), asyncio.ensure_future(interrupt.wait())
    try:
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        stopping.cancel()
        await asyncio.gather(working, stopping, return_exceptions=True)
