"""How a conversation begins: a short system prompt, always the same, and today's facts in the user's turn.

Tools and system prompt are the same bytes in every run, so that a server's cache holds them; the date, git's
state and the project's own words come behind them.
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from lathe.agent.tools.tool import AgentTool
from lathe.types import Message, Sandbox, Trajectory

SYSTEM = """\
You are Lathe, a coding agent. You work on the user's files with tools, in a sandbox, until the task is done.

- Look before you change: find the code with grep and glob, read it, and follow its style.
- Do what was asked, completely, and nothing else. Never guess what a tool can tell you.
- When you say that you will do something, call the tool in the same turn. Calls that don't need each \
other's results go in one turn.
- After a change, run the tests or the program, and mend what fails.
- Never commit, push or delete what you did not make, unless you are asked to.
- A failed call says why: read it, and try something else than the same call again.
- At the end, say in a few plain sentences what you changed and what you saw."""

MEMORY_NAMES = ("AGENTS.md", "QWEN.md")
MAX_MEMORY_CHARS = 12_000
MAX_STATUS_LINES = 20
GIT_TIMEOUT_S = 20.0

GIT = f"""
git rev-parse --show-toplevel 2>/dev/null || exit 0
git -c core.fsmonitor=false status --short --branch 2>/dev/null | head -n {MAX_STATUS_LINES + 1}
echo ---
git log --oneline -n 3 2>/dev/null
"""


@dataclass(frozen=True)
class Memory:
    """A file that the project or the user wrote for agents."""

    path: str
    text: str


def begin(first_turn: str, tools: Sequence[AgentTool], *, system: str | None = None) -> Trajectory:
    """A new conversation. `system` None is Lathe's own prompt where there are tools, "" none."""
    if system is None:
        system = SYSTEM if tools else ""
    messages = [Message("system", system)] if system else []
    return Trajectory((*messages, Message("user", first_turn)), tuple(tool.spec for tool in tools))


async def opening(
    task: str,
    *,
    sandbox: Sandbox | None,
    tools: Sequence[AgentTool],
    system: str | None = None,
    memories: Sequence[Memory] = (),
    today: date | None = None,
) -> Trajectory:
    """A conversation about a task, which begins with what its place looks like. Without tools, the task
    alone."""
    if sandbox is not None and tools:
        task = await first_turn(sandbox, task, today=today, memories=memories)
    return begin(task, tools, system=system)


async def first_turn(
    sandbox: Sandbox, task: str, *, today: date | None = None, memories: Sequence[Memory] = ()
) -> str:
    """The task, behind what its place looks like. `memories` are the user's own; the project's are read from
    the sandbox. `today` None leaves the date out."""
    root, state = await git_state(sandbox)
    facts = [f"Today is {today:%A, %d %B %Y}."] if today else []
    facts.append(f"The working folder is {sandbox.workdir}.")
    facts.append(state or "It is in no git repository.")
    found = [*memories, *await read_memories(sandbox, root)]
    files = [f'<file path="{each.path}">\n{each.text.strip()}\n</file>' for each in found]
    return "\n".join(["<context>", *facts, *files, "</context>", "", task])


async def git_state(sandbox: Sandbox) -> tuple[str | None, str]:
    """The repository's root, and its branch, changes and latest commits as git says them. None and "" where
    there is no repository, or no git."""
    result = await sandbox.exec(GIT, timeout_s=GIT_TIMEOUT_S)
    root, _, rest = result.stdout.partition("\n")
    if not root.startswith("/") or result.timed_out:
        return None, ""
    status, _, commits = rest.partition("---\n")
    lines = status.splitlines()
    if len(lines) > MAX_STATUS_LINES:
        lines = [*lines[:MAX_STATUS_LINES], "…"]
    said = [f"git status at the beginning (root {root}):", *(lines or ["clean"])]
    if commits.strip():
        said += ["Latest commits:", commits.rstrip()]
    return root, "\n".join(said)


async def read_memories(sandbox: Sandbox, root: str | None) -> list[Memory]:
    """AGENTS.md and QWEN.md from the working folder up to the repository's root, nearest first."""
    found: list[Memory] = []
    room = MAX_MEMORY_CHARS
    for folder in folders_up(sandbox.workdir, root):
        for name in MEMORY_NAMES:
            path = posixpath.join(folder, name)
            try:
                text = (await sandbox.read(path, max_bytes=1 << 20)).decode("utf-8", "replace")
            except (OSError, ValueError):  # not there, or nothing that is meant for reading
                continue
            if any(text == each.text for each in found):  # often one is a link to the other
                continue
            found.append(Memory(path, cut(text, room)))
            room -= len(found[-1].text)
            if room <= 0:
                return found
    return found


def folders_up(workdir: str, root: str | None) -> list[str]:
    """The folder, and those above it up to the root; the folder alone where there is no root above it."""
    folders = [posixpath.normpath(workdir)]
    if root is None or not f"{folders[0]}/".startswith(f"{root.rstrip('/')}/"):
        return folders
    while folders[-1] != posixpath.normpath(root):
        folders.append(posixpath.dirname(folders[-1]))
    return folders


def user_memories(home: Path) -> list[Memory]:
    """The user's own words to every agent, from the first of their places that is there."""
    places = [
        home / ".config" / "lathe" / "AGENTS.md",
        home / ".qwen" / "AGENTS.md",
        home / ".qwen" / "QWEN.md",
    ]
    for place in places:
        if place.is_file():
            return [Memory(str(place), cut(place.read_text("utf-8", "replace"), MAX_MEMORY_CHARS))]
    return []


def cut(text: str, room: int) -> str:
    return text if len(text) <= room else f"{text[:room]}\n[… {len(text) - room} characters left out …]"
