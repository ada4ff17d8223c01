"""write: a whole file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lathe.agent.tools.text_files import changed, diff_of, read_text, write_text
from lathe.agent.tools.tool import AgentTool, Output, ToolError, Workspace, schema
from lathe.types import Tool


async def run(workspace: Workspace, arguments: Mapping[str, Any]) -> Output:
    path = workspace.path(arguments["file_path"])
    before, text = await plan(workspace, path, arguments["content"])
    await write_text(workspace, path, text)
    return changed(path, before, text, "Wrote" if before is None else "Replaced")


async def preview(workspace: Workspace, arguments: Mapping[str, Any]) -> str:
    path = workspace.path(arguments["file_path"])
    return diff_of(path, *await plan(workspace, path, arguments["content"]))


async def plan(workspace: Workspace, path: str, content: str) -> tuple[str | None, str]:
    """What is there (None: nothing that is text) and what shall be.

    A call's syntax takes the last newline of a value for its own, so that models lose the one that ends a
    file. It is put back, unless the file had none before.
    """
    try:
        before = await read_text(workspace, path)
    except ToolError:
        before = None
    if content and not content.endswith("\n") and (not before or before.endswith("\n")):
        content += "\r\n" if "\r\n" in content else "\n"
    return before, content


WRITE = AgentTool(
    Tool(
        "write",
        "Create a file, or replace all of it. Folders are made as needed.",
        schema(("file_path", "content"), file_path="string", content="string"),
    ),
    "edit",
    run,
    preview,
)
