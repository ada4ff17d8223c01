"""glob: files by name, those changed last first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lathe.agent.tools.listing import list_files
from lathe.agent.tools.tool import AgentTool, Output, Workspace, schema
from lathe.types import Tool

MAX_FILES = 100


async def run(workspace: Workspace, arguments: Mapping[str, Any]) -> Output:
    folder = workspace.path(arguments.get("path") or ".")
    files = await list_files(workspace, folder, arguments["pattern"])
    if not files:
        return Output(f"No file in {folder} matches {arguments['pattern']}.")
    latest = sorted(files, key=lambda file: -file[0])
    lines = [path for _, path in latest[:MAX_FILES]]
    if len(files) > MAX_FILES:
        lines.append(f"[{len(files) - MAX_FILES} files more; use a narrower pattern]")
    return Output(await workspace.cap("\n".join(lines)))


GLOB = AgentTool(
    Tool(
        "glob",
        "Find files by name, such as src/**/*.py; the latest changed first. What git ignores is left out.",
        schema(("pattern",), pattern="string", path=("string", "Folder; default: the current one")),
    ),
    "read",
    run,
)
