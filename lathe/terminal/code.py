"""`lathe code`: opens the model, the place and the session, and gives them to a person or to a script."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from lathe.agent.approvals import Approvals, parse_mode
from lathe.agent.attempt import AgentConfig
from lathe.agent.coder import Coder
from lathe.agent.headless import EXIT_CODES, Output, answer, parse_output, read_prompt
from lathe.agent.mcp import open_servers, read_servers
from lathe.agent.project import open_project, project_name, state_folder, top_of
from lathe.agent.prompt import user_memories
from lathe.agent.session import Session, SessionStore
from lathe.agent.shadow import Shadow, ShadowError
from lathe.agent.tools import NATIVE_TOOLS
from lathe.agent.workplace import PlaceConfig, Workplace, parse_folders, parse_network
from lathe.errors import SandboxError, UpstreamError, UserError
from lathe.types import Model, SamplingParams

if TYPE_CHECKING:
    from lathe.engine.llm import LLM

NO_SANDBOX = (
    "No sandbox: commands run as you, with all that you may read, write and reach. Answer with care, or "
    "leave and start without --no-sandbox."
)
CONNECT_RETRIES = 1


@dataclass(frozen=True)
class CodeOptions:
    """What `lathe code` was told. `resume` is a session's id; `go_on` takes up the last one."""

    model: str
    folder: Path
    prompt: str | None = None
    is_headless: bool = False
    output: str = "text"
    mode: str = "ask"
    go_on: bool = False
    resume: str | None = None
    fork: bool = False
    model_name: str | None = None
    api_key: str | None = None
    network: str = "none"
    backend: str = "auto"
    allow: tuple[str, ...] = ()
    is_sandboxed: bool = True
    max_turns: int | None = None
    max_tokens: int | None = None
    max_time_s: float | None = None
    max_context: int | None = None
    temperature: float | None = None
    seed: int | None = None
    mcp: tuple[Path, ...] = ()


def code(options: CodeOptions, load: Callable[[str], LLM], console: Console) -> int:
    """A session in the terminal, or one turn without. The exit code. `load` makes a model of a name, and
    `console` is stderr. What is wrong with the options is raised before a model loads (UserError)."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without Unicode shows the rest
    folder = open_project(options.folder)
    output, approvals = parse_output(options.output), Approvals(parse_mode(options.mode))
    writable, readable = parse_folders(options.allow)
    network = parse_network(options.network)
    place = PlaceConfig(folder, network, options.backend, writable, readable, options.is_sandboxed)
    prompt = options.prompt
    if options.is_headless:
        prompt = read_prompt(prompt, sys.stdin)
    elif not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UserError("Without a terminal there is nobody to talk with: use lathe code -p, see --help.")
    state = state_folder(os.environ)
    store = SessionStore(state, top_of(folder))
    session = open_session(store, options)
    if not options.is_sandboxed:
        console.print(NO_SANDBOX, style="yellow", markup=False, soft_wrap=True)
    try:
        return asyncio.run(
            _work(options, prompt, output, place, approvals, store, session, state, load, console)
        )
    except (KeyboardInterrupt, asyncio.CancelledError):
        return EXIT_CODES["interrupted"]
    except (UpstreamError, SandboxError) as error:
        console.print(f"Error: {error}", style="red", markup=False, soft_wrap=True)
        return EXIT_CODES["model" if isinstance(error, UpstreamError) else "sandbox"]
    except BrokenPipeError:  # whoever read the output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_CODES["interrupted"]
    finally:
        session.close()


def open_session(store: SessionStore, options: CodeOptions) -> Session:
    """A new one, or the one that was asked for. Raises UserError."""
    if options.go_on and options.resume is not None:
        raise UserError("-c takes up the last session and -r one by its id: give one of them.")
    if not (options.go_on or options.resume is not None):
        if options.fork:
            raise UserError("--fork copies a session: say which with -c or -r ID.")
        return store.create()
    return store.fork(options.resume) if options.fork else store.resume(options.resume)


async def _work(
    options: CodeOptions,
    prompt: str | None,
    output: Output,
    place: PlaceConfig,
    approvals: Approvals,
    store: SessionStore,
    session: Session,
    state: Path,
    load: Callable[[str], LLM],
    console: Console,
) -> int:
    task = asyncio.current_task()
    assert task is not None
    for each in (signal.SIGTERM, signal.SIGHUP):  # a closed window, too: sandboxes end with the program
        asyncio.get_running_loop().add_signal_handler(each, task.cancel)
    shadow = open_shadow(state, store.project)
    async with AsyncExitStack() as stack:
        workplace = await stack.enter_async_context(Workplace(place))
        models = await stack.enter_async_context(Models(options, load))
        # A machine that refuses says so before a model loads.
        await workplace.sandbox(read_only=approvals.mode == "plan")
        servers = [each for path in mcp_files(options) for each in read_servers(path, os.environ)]
        mcp = await stack.enter_async_context(open_servers(servers))
        for problem in mcp.problems:
            console.print(problem, style="yellow", markup=False, soft_wrap=True)
        model, name = await models.open(options.model)
        coder = Coder(
            model,
            workplace,
            session,
            shadow,
            approvals,
            config_of(options, model),
            tools=(*NATIVE_TOOLS, *mcp.tools),
            memories=user_memories(Path.home()),
            warn=lambda text: console.print(text, style="yellow", markup=False, soft_wrap=True),
        )
        coder.use_model(model, name)
        if options.is_headless:
            return await answer(coder, prompt or "", output, sys.stdout, console)
        from lathe.agent.terminal import Terminal

        terminal = Terminal(coder, store, Console(), state / "code_history", models.open)
        await terminal.converse(prompt)
        return 0


def mcp_files(options: CodeOptions) -> list[Path]:
    """The person's own, and those that were named. A project's file is read only when it is named: it may
    start any command, and not in the sandbox."""
    own = Path.home() / ".config" / "lathe" / "mcp.json"
    return [*([own] if own.is_file() else []), *options.mcp]


def open_shadow(state: Path, folder: Path) -> Shadow | None:
    try:
        return Shadow(folder, state / "shadow" / project_name(folder))
    except ShadowError:
        return None


def config_of(options: CodeOptions, model: Model) -> AgentConfig:
    sampling = None
    given = {"temperature": options.temperature, "seed": options.seed}
    if any(value is not None for value in given.values()):
        default = getattr(model, "default_sampling", None) or SamplingParams()
        sampling = replace(default, **{name: value for name, value in given.items() if value is not None})
    return AgentConfig(
        sampling=sampling,
        max_turns=options.max_turns,
        max_tokens=options.max_tokens,
        max_time_s=options.max_time_s,
        max_context=options.max_context,
    )


class Models:
    """Models by name or URL. All of them are closed in the end."""

    def __init__(self, options: CodeOptions, load: Callable[[str], LLM]):
        self.options, self.load = options, load
        self._opened: list[Any] = []

    async def __aenter__(self) -> Models:
        return self

    async def __aexit__(self, *_: object) -> None:
        while self._opened:
            model = self._opened.pop()
            if hasattr(model, "aclose"):
                await model.aclose()
            else:
                model.close()

    async def open(self, name: str) -> tuple[Model, str]:
        """A model, and its name. Raises UserError, UpstreamError when a URL is not answered."""
        if name.startswith(("http://", "https://")):
            from lathe.client import ChatClient

            client = ChatClient(name, self.options.model_name, self.options.api_key)
            self._opened.append(client)
            retries, client.max_retries = client.max_retries, CONNECT_RETRIES
            await client.find()
            client.max_retries = retries
            return client, str(client.model)
        llm = await asyncio.to_thread(self.load, name)
        self._opened.append(llm)
        return llm, llm.model_id
