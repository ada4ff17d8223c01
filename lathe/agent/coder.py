"""One session at work: a person says something, the agent works in their project, and all of it is kept.

What the terminal and the headless run share. Nothing is drawn here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date

from lathe.agent import context
from lathe.agent.approvals import Approvals
from lathe.agent.attempt import AgentConfig, Attempt
from lathe.agent.calls import Proposal
from lathe.agent.commands import mentions
from lathe.agent.events import Compacted, Ended, Event, StopReason, TurnEnded
from lathe.agent.loop import run, unanswered
from lathe.agent.prompt import Memory, begin, first_turn
from lathe.agent.session import Point, Session, branch
from lathe.agent.shadow import Rewind, Shadow, ShadowError, Snapshot
from lathe.agent.stats import Stats, Window, window_of
from lathe.agent.tools import NATIVE_TOOLS
from lathe.agent.tools.tool import AgentTool, Workspace
from lathe.agent.workplace import Workplace
from lathe.errors import SandboxError, UserError
from lathe.types import Message, Model, Sandbox, ToolCall, Trajectory

MAX_MENTIONED_BYTES = 64 << 10
UNFINISHED = "[the program ended before this call was done]"
NOBODY = (
    "This was not done: {}, and nobody is there to allow it. Do what can be done without it, and say at the "
    "end what you could not do."
)


@dataclass(frozen=True)
class Permission:
    """What a person said to a call. `always`: calls like it need not be asked for again. `words` are for the
    model, where it was refused."""

    allowed: bool
    always: bool = False
    words: str = ""


Ask = Callable[[Proposal], Awaitable[Permission]]


class Coder:
    """A model, a place, a session, and what ties them. `ask` None: nobody is there, and what would be asked
    for is refused. `memories` are the person's own words to every agent.

    `on_event` hears the loop's events, `warn` what a person should know and nobody can mend here.
    """

    def __init__(
        self,
        model: Model,
        workplace: Workplace,
        session: Session,
        shadow: Shadow | None,
        approvals: Approvals,
        config: AgentConfig,
        *,
        tools: Sequence[AgentTool] = NATIVE_TOOLS,
        memories: Sequence[Memory] = (),
        ask: Ask | None = None,
        on_event: Callable[[Event], None] = lambda event: None,
        warn: Callable[[str], None] = lambda text: None,
    ):
        self.model, self.workplace, self.session, self.shadow = model, workplace, session, shadow
        self.approvals, self.config, self.tools, self.memories = approvals, config, tools, memories
        self.ask, self.on_event, self.warn = ask, on_event, warn
        self.stats = Stats()
        self.refused: list[ToolCall] = []
        self.started_with: Snapshot | None = None
        self._workspace: Workspace | None = None
        self._known: int | None = None  # tokens of the conversation, where a server counted them

    # A turn

    async def say(self, text: str, interrupt: asyncio.Event | None = None) -> Attempt:
        """A person's turn, to the end of the agent's work on it. What stopped it is in the attempt."""
        # What was typed in another encoding comes as halves of surrogate pairs, which no tokenizer knows.
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        try:
            box = await self.workplace.sandbox(read_only=self.approvals.mode == "plan")
            before, start = await self._begin(box, await self._with_mentions(box, text))
        except (SandboxError, UserError) as error:
            return self._stopped("sandbox", str(error))
        files = await self.snapshot()
        self.started_with = self.started_with or files
        self.session.begin_turn(text, before, files)
        attempt = await run(
            self.model,
            box,
            start,
            self.config,
            tools=self.tools,
            workspace=self._workspace,
            on_event=self._hear,
            approve=self._approve,
            save=self._save,
            interrupt=interrupt,
        )
        self.session.end_turn(attempt.trajectory, await self.snapshot(), attempt.stop_reason or "done")
        if attempt.stop_reason == "sandbox":
            await self.workplace.forget()
            self._workspace = None
        return attempt

    async def _begin(self, box: Sandbox, text: str) -> tuple[Trajectory, Trajectory]:
        """The conversation before this turn, and with it."""
        if self._workspace is None or self._workspace.sandbox is not box:
            old = self._workspace
            self._workspace = Workspace(box, max_output_chars=self.config.max_output_chars)
            self._workspace.kept = getattr(box, "kept", self._workspace.kept)
            if old is not None:
                self._workspace.cwd, self._workspace.todos = old.cwd, old.todos
        before = self.session.trajectory
        if before is None:
            words = await first_turn(box, text, today=date.today(), memories=self.memories)
            start = begin(words, self.tools, system=self.config.system)
            return replace(start, messages=start.messages[:-1]), start
        left = unanswered(before.messages)
        before = before.add(
            *(Message("tool", UNFINISHED, tool_call_id=call.id, name=call.name) for call in left)
        )
        return before, before.add(Message("user", text))

    async def _with_mentions(self, box: Sandbox, text: str) -> str:
        """The turn, with the files that it names by @ behind it."""
        files = []
        for name in mentions(text):
            try:
                data = await box.read(name, max_bytes=MAX_MENTIONED_BYTES)
                files.append(f'<file path="{name}">\n{data.decode("utf-8")}\n</file>')
            except (OSError, ValueError):  # a folder, a long file, or no file at all: only words
                continue
        return "\n\n".join([text, *files])

    def answer_of(self, attempt: Attempt) -> str:
        """The agent's last words in answer to the last turn; "" when it has said none."""
        point = self.session.points[-1] if self.session.points else None
        if not attempt.counts.num_turns or point is None:
            return ""
        trajectory = attempt.trajectory
        if trajectory.id != point.trajectory:  # it was summed up on the way
            return attempt.answer
        new = trajectory.messages[point.num_messages :]
        spoken = (message.content for message in reversed(new) if message.role == "assistant")
        return next((words for words in spoken if words.strip()), "")

    def _stopped(self, reason: StopReason, detail: str) -> Attempt:
        self._hear(Ended(reason, detail))
        return Attempt((self.session.trajectory or Trajectory(()),), reason, detail)

    def _hear(self, event: Event) -> None:
        self.stats.hear(event)
        if isinstance(event, TurnEnded):
            self._known = event.completion.num_prompt_tokens + event.completion.num_reply_tokens
        elif isinstance(event, Compacted):
            self._known = None
        self.on_event(event)

    def _save(self, attempt: Attempt) -> None:
        for trajectory in attempt.trajectories:
            self.session.save(trajectory)

    async def _approve(self, proposal: Proposal) -> str | None:
        answer, why = self.approvals.judge(proposal.call)
        if answer == "allow":
            return None
        if answer == "ask" and self.ask is not None:
            permission = await self.ask(proposal)
            if permission.allowed:
                if permission.always:
                    self.approvals.allow(proposal.call)
                return None
            why = permission.words or "the user said no"
        self.refused.append(proposal.call)
        if answer == "ask" and self.ask is None:
            return NOBODY.format(why)
        return f"The user did not allow this: {why}."

    # Files

    async def snapshot(self) -> Snapshot | None:
        """The files now; None where they are not kept, which is told once."""
        if self.shadow is None:
            return None
        try:
            return await asyncio.to_thread(self.shadow.snapshot)
        except ShadowError as error:
            self.warn(f"/rewind and /diff will not know the files: {error}.")
            self.shadow = None
            return None

    async def changes(self) -> str | None:
        """A unified diff of all that was changed since the first turn here; None when files are not kept."""
        if self.started_with is None or (now := await self.snapshot()) is None or self.shadow is None:
            return None
        return await asyncio.to_thread(self.shadow.diff, self.started_with, now)

    async def plan_rewind(self, point: Point) -> Rewind | None:
        """What going back would do to the files; None where they are not kept."""
        if self.shadow is None or point.before is None:
            return None
        turns = [
            (each.before, each.after)
            for each in self.session.points
            if each.number >= point.number and each.before is not None and each.after is not None
        ]
        return await asyncio.to_thread(self.shadow.plan, point.before, turns)

    async def rewind(self, point: Point, files: Rewind | None, keep: Sequence[str] = ()) -> None:
        """Back to before a turn: the files first, then the conversation."""
        if files is not None and self.shadow is not None:
            await asyncio.to_thread(self.shadow.apply, files, keep=keep)
        self.session.rewind(point)
        self._known = None

    # The conversation

    def clear(self) -> None:
        """Forget it; the session's file keeps it."""
        self.session.clear()
        self._known = None

    def use_session(self, session: Session) -> None:
        """Go on with another one."""
        self.session.close()
        self.session, self._known = session, None
        self._with_known_ids()

    def use_model(self, model: Model, name: str) -> None:
        """Another model goes on with the conversation: it reads the words anew, in its own tokens."""
        self.model = model
        self._known = None
        if self.session.model != name:
            self.session.model = name
            self._forget_ids()

    def _with_known_ids(self) -> None:
        name = getattr(self.model, "model_id", None)
        if name is not None and self.session.model not in (None, name):
            self.session.model = name
            self._forget_ids()

    def _forget_ids(self) -> None:
        if (trajectory := self.session.trajectory) is not None and trajectory.token_ids:
            self.session.save(branch(trajectory, len(trajectory.messages), 0))

    async def compact(self) -> tuple[int, int]:
        """Sum the conversation up. The tokens before and after. Raises LatheError, UserError when there is
        nothing to sum up."""
        trajectory = self.session.trajectory
        if trajectory is None or not any(message.role == "assistant" for message in trajectory.messages):
            raise UserError("There is no conversation to sum up yet.")
        size = context.num_tokens(trajectory, self._known)
        room = self.max_context or max(2 * size, 8192)
        done = await context.compact(
            self.model, trajectory, room, known=self._known, sampling=self.config.sampling
        )
        for each in (*done.ended, done.after):
            self.session.save(each)
        self._hear(Compacted(done.ended[-1], done.after, size, done.num_tokens_after))
        return size, done.num_tokens_after

    @property
    def max_context(self) -> int | None:
        return self.config.max_context or getattr(self.model, "max_context", None)

    def window(self) -> Window:
        """What fills the model's window."""
        trajectory = self.session.trajectory
        size = 0 if trajectory is None else context.num_tokens(trajectory, self._known)
        is_exact = bool(self._known) or bool(trajectory and trajectory.token_ids)
        return window_of(trajectory, size, self.max_context, is_exact)
