"""What a tool is, the place in which it works, and how much of its output a model is given to read."""

from __future__ import annotations

import posixpath
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lathe.errors import LatheError
from lathe.types import Sandbox, Tool

# Where the tools keep what is theirs in a sandbox: whole outputs, and the folder that bash is in.
KEPT = "/tmp/.lathe"

Kind = Literal["read", "edit", "run"]


class ToolError(LatheError):
    """A call that can't be done. The message is for the model, and says what to do instead."""


@dataclass(frozen=True)
class Output:
    """What a call gave. `diff` is a unified diff of the file that it changed."""

    text: str
    is_error: bool = False
    diff: str = ""


@dataclass(eq=False)
class Workspace:
    """A sandbox as the tools see it, and what they remember between calls.

    `cwd` is the folder that bash is in; relative paths start there. `max_output_chars` is the most that one
    result holds. `kept` is a folder in the sandbox for what the tools keep: whole outputs, and bash's folder.
    """

    sandbox: Sandbox
    cwd: str = ""
    max_output_chars: int = 10_000
    kept: str = KEPT
    todos: list[Mapping[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.cwd = self.cwd or self.sandbox.workdir

    def path(self, path: str) -> str:
        """An absolute path in the sandbox."""
        return posixpath.normpath(posixpath.join(self.cwd, path))

    async def cap(self, text: str) -> str:
        """The text, or its head and tail with a line between them that names the file with all of it."""
        if len(text) <= self.max_output_chars:
            return text
        kept = f"{self.kept}/output-{uuid.uuid4().hex[:8]}.txt"
        # Commands may print what is no UTF-8; it was replaced when it was decoded.
        await self.sandbox.write(kept, text.encode("utf-8", "replace"))
        half = self.max_output_chars // 2
        head, tail = text[:half], text[-half:]
        # Whole lines read better, unless a line is all there is.
        head = head[: head.rfind("\n") + 1] or head
        tail = tail[tail.find("\n") + 1 :] or tail
        num_left_out = len(text) - len(head) - len(tail)
        return f"{head.rstrip()}\n[… {num_left_out} characters left out; all of it is in {kept} …]\n{tail}"


Run = Callable[[Workspace, Mapping[str, Any]], Awaitable[Output]]
Preview = Callable[[Workspace, Mapping[str, Any]], Awaitable[str]]


@dataclass(frozen=True)
class AgentTool:
    """A tool with the function that does it. Calls of `kind` "read" change nothing, and may run side by side.

    `run` raises ToolError for what the model can mend; errors of the sandbox itself fly. `preview` is the
    diff that a call would make.
    """

    spec: Tool
    kind: Kind
    run: Run
    preview: Preview | None = None

    @property
    def name(self) -> str:
        return self.spec.name


def schema(required: tuple[str, ...], **properties: Any) -> dict[str, Any]:
    """A tool's parameters. A property is its type's name, a (type, description) pair or a whole schema."""

    def one(value: Any) -> Any:
        if isinstance(value, str):
            return {"type": value}
        return {"type": value[0], "description": value[1]} if isinstance(value, tuple) else value

    return {
        "type": "object",
        "properties": {name: one(value) for name, value in properties.items()},
        "required": list(required),
    }
