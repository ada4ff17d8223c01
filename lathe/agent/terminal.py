"""A person and the agent in a terminal: turns are typed, work streams, and what is asked for is answered.

Ctrl-C ends the turn, not the session; twice at the prompt leaves.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prompt_toolkit import PromptSession
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import FileHistory
from rich.console import Console
from rich.text import Text

from lathe.agent.approvals import MODES, parse_mode, prefixes_of
from lathe.agent.calls import Proposal
from lathe.agent.coder import Coder, Permission
from lathe.agent.commands import Typed, parse_command
from lathe.agent.keys import TypedCompleter, forget_typed_ahead, key_bindings
from lathe.agent.loop import unless
from lathe.agent.panels import (
    diff_panel,
    help_panel,
    points_panel,
    rewind_panel,
    sessions_panel,
    stats_panel,
    window_panel,
)
from lathe.agent.render import Renderer, clean, diff_text, diff_within, hidden_words
from lathe.agent.session import Point, SessionStore
from lathe.agent.shadow import ShadowError
from lathe.errors import LatheError, UserError
from lathe.types import Model

MAX_ASKED_LINES = 5000  # nobody should allow what they were not shown
LEAVE_S = 2.0  # two Ctrl-C within this leave
# A name or URL becomes a model, and the name that it has.
OpenModel = Callable[[str], Awaitable[tuple[Model, str]]]


class Terminal:
    """One session in a terminal. `history` is the file of what was typed, `open_model` serves /model."""

    def __init__(
        self,
        coder: Coder,
        store: SessionStore,
        console: Console,
        history: Path,
        open_model: OpenModel | None = None,
        **prompt_options: Any,
    ):
        self.coder, self.store, self.console, self.open_model = coder, store, console, open_model
        self.renderer = Renderer(console, str(coder.workplace.config.folder))
        self.files: list[str] = []
        self.status = ""
        self.interrupt = asyncio.Event()
        coder.on_event, coder.ask, coder.warn = self.renderer.hear, self.ask, self.warn
        history.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        history.touch(mode=0o600)
        self.session: PromptSession[str] = PromptSession(
            history=FileHistory(str(history)),
            completer=TypedCompleter(lambda: self.files, lambda: [info.id for info in self.store.list()]),
            complete_while_typing=True,
            key_bindings=key_bindings(),
            multiline=True,
            prompt_continuation="  ",
            bottom_toolbar=lambda: FormattedText([("", self.status)]),
            **prompt_options,
        )
        self.question: PromptSession[str] = PromptSession(**prompt_options)

    async def converse(self, first: str | None = None) -> None:
        """Take turns until the person leaves. `first` is a turn that was typed already."""
        self.greet()
        turn = first
        while True:
            if turn is None:
                turn = await self._typed()
            if turn is None:
                return
            try:
                command = parse_command(turn)
                if command is None:
                    await self.say(turn)
                elif await self.obey(command):
                    return
            except LatheError as error:
                self.renderer.print(Text(clean(str(error)), style="red"))
            turn = None

    # Typing

    async def _typed(self) -> str | None:
        """The next turn that says something; None when the person leaves."""
        last_interrupt = 0.0
        self.files = await asyncio.to_thread(self._list_files)
        self.status = self._status_line()
        while True:
            try:
                text = await self.session.prompt_async("❯ ", handle_sigint=False)
            except KeyboardInterrupt:
                if time.monotonic() - last_interrupt < LEAVE_S:
                    return None
                last_interrupt = time.monotonic()
                self.renderer.print(Text("Ctrl-C again leaves.", style="dim"))
                continue
            except EOFError:
                return None
            if text.strip():
                return text

    def _list_files(self) -> list[str]:
        try:
            return [] if self.coder.shadow is None else self.coder.shadow.files()
        except ShadowError:
            return []

    def _status_line(self) -> str:
        window = self.coder.window()
        left = "" if not window.size else f"  ·  {window.num_tokens / window.size:.0%} of the window"
        return f" {self.coder.approvals.mode}  ·  {self.coder.session.model}{left}  ·  /help"

    def greet(self) -> None:
        coder = self.coder
        self.renderer.print(
            Text(
                f"{coder.session.model} in {coder.workplace.config.folder}  ({coder.workplace.description}, "
                f"mode {coder.approvals.mode})  /help lists what you can type.",
                style="dim",
            )
        )
        if coder.session.trajectory is not None:
            number = len(coder.session.points)
            self.renderer.print(Text(f"Going on with {coder.session.id}, after {number} turns.", style="dim"))

    def warn(self, text: str) -> None:
        self.renderer.print(Text(text, style="yellow"))

    # The agent's turn

    async def say(self, text: str) -> None:
        """The agent works; Ctrl-C ends its turn."""
        started = time.monotonic()
        num_before = self.coder.stats.num_reply_tokens
        with self._interruptible():
            attempt = await self.coder.say(text, self.interrupt)
        num_tokens = self.coder.stats.num_reply_tokens - num_before
        turns = "1 turn" if attempt.counts.num_turns == 1 else f"{attempt.counts.num_turns} turns"
        line = f"{turns}, {num_tokens:,} tokens, {time.monotonic() - started:.1f} s"
        self.renderer.print(Text(line + "\n", style="dim"))

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Ctrl-C sets `interrupt` meanwhile, and the spinner turns."""
        self.interrupt.clear()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, self.interrupt.set)
        spinning = asyncio.ensure_future(self.renderer.spinner.spin())
        try:
            yield
        finally:
            spinning.cancel()
            self.renderer.spinner.rest()
            loop.remove_signal_handler(signal.SIGINT)

    async def ask(self, proposal: Proposal) -> Permission:
        """May this call be done? Ctrl-C and Ctrl-D say no, and end the turn."""
        self.renderer.spinner.rest()
        forget_typed_ahead()
        if proposal.diff:
            self.renderer.diffs_shown.add(proposal.call.id)
            diff = diff_within(proposal.diff, self.renderer.folder)
            self.renderer.print(diff_text(diff, max_lines=MAX_ASKED_LINES))
        elif rest := hidden_words(proposal.call):
            self.renderer.print(Text(rest))
        always = self._always(proposal)
        choices = "y yes  n no" + (f"  a always ({always})" if always else "") + "  or say what to do instead"
        self.renderer.print(Text(f"  {choices}", style="dim"))
        try:
            answer = (await self.question.prompt_async("  allow? ", handle_sigint=False)).strip()
        except (KeyboardInterrupt, EOFError):
            self.interrupt.set()
            return Permission(False)
        match answer.lower():
            case "y" | "yes":
                return Permission(True)
            case "a" | "always" if always:
                return Permission(True, always=True)
            case "n" | "no" | "":
                return Permission(False)
        return Permission(False, words=f"the user said: {answer}")

    def _always(self, proposal: Proposal) -> str:
        """What "always" would stand for; "" where there is no such thing."""
        if proposal.kind == "edit":
            return "all edits"
        if proposal.call.name == "bash":
            prefixes = prefixes_of(str(proposal.call.arguments.get("command", "")))
            return ", ".join(clean(" ".join(prefix)) + " …" for prefix in dict.fromkeys(prefixes))
        return ""

    # Commands

    async def obey(self, command: Typed) -> bool:
        """Do what a slash command says. True when the person leaves."""
        coder, show = self.coder, self.renderer.print
        match command.name:
            case "quit":
                return True
            case "help":
                show(help_panel())
            case "stats":
                show(stats_panel(coder.stats))
            case "context":
                show(window_panel(coder.window(), self.console.width))
            case "diff":
                show(diff_panel(await coder.changes()))
            case "sessions":
                show(sessions_panel(self.store.list(), coder.session.id))
            case "mode":
                self._set_mode(command.argument)
            case "model":
                await self._set_model(command.argument)
            case "compact":
                with self._interruptible():
                    self.renderer.spinner.say("summing up")
                    sizes = await unless(self.interrupt, coder.compact())
                if sizes is None:
                    show(Text("Interrupted: nothing was summed up.", style="dim"))
            case "clear":
                coder.clear()
                show(Text("The conversation is forgotten. Files stay as they are.", style="dim"))
            case "resume":
                await self._resume(command.argument)
            case "rewind":
                await self._rewind(command.argument)
        return False

    def _set_mode(self, argument: str) -> None:
        if argument:
            self.coder.approvals.mode = parse_mode(argument)
        self.renderer.print(Text(f"Mode {self.coder.approvals.mode} (of {', '.join(MODES)}).", style="dim"))

    async def _set_model(self, argument: str) -> None:
        if argument and self.open_model is not None:
            self.coder.use_model(*await self.open_model(argument))
        self.renderer.print(Text(f"{self.coder.session.model} answers.", style="dim"))

    async def _resume(self, argument: str) -> None:
        known = self.store.list()
        if not argument:
            self.renderer.print(sessions_panel(known, self.coder.session.id))
            argument = (await self._choose("  which? ")) or ""
        if argument:
            info = self.store.find(argument)
            if info.id != self.coder.session.id:
                self.coder.use_session(self.store.resume(info.id))
            number = len(self.coder.session.points)
            self.renderer.print(Text(f"Going on with {info.id}, after {number} turns.", style="dim"))

    async def _rewind(self, argument: str) -> None:
        points = self.coder.session.points
        if not points:
            raise UserError("There is no turn to go back to yet.")
        if not argument:
            self.renderer.print(points_panel(points))
            argument = (await self._choose(f"  before which turn? [{points[-1].number}] ")) or ""
            argument = str(points[-1].number) if argument == "" else argument
        if argument in ("n", "no"):
            return
        point = find_point(points, argument)
        files = await self.coder.plan_rewind(point)
        self.renderer.print(rewind_panel(files))
        keep: Sequence[str] = ()
        if files is not None and files.persons:
            answer = await self._choose("  y all of it  k keep what you changed  n nothing: ")
            keep = files.persons if (answer or "n").lower() == "k" else ()
        else:
            answer = await self._choose("  go back? y n: ")
        if (answer or "n").lower() not in ("y", "yes", "k"):
            self.renderer.print(Text("Nothing was changed.", style="dim"))
            return
        await self.coder.rewind(point, files, keep)
        self.renderer.print(Text(f"Back before turn {point.number}: {clean(point.prompt)}", style="dim"))

    async def _choose(self, question: str) -> str | None:
        """A short answer; None when there is none (Ctrl-C, Ctrl-D)."""
        try:
            return (await self.question.prompt_async(question, handle_sigint=False)).strip()
        except (KeyboardInterrupt, EOFError):
            return None


def find_point(points: Sequence[Point], argument: str) -> Point:
    for point in points:
        if str(point.number) == argument:
            return point
    numbers = ", ".join(str(point.number) for point in points)
    raise UserError(f"There is no turn {argument}: choose one of {numbers}.")
