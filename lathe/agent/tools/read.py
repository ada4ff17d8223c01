"""read: a file's lines with their numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lathe.agent.tools.text_files import read_text
from lathe.agent.tools.tool import AgentTool, Output, Workspace, schema
from lathe.types import Tool

MAX_LINES = 2000
MAX_LINE_CHARS = 2000
# A file of 500 lines is read at once; what a command prints seldom deserves as much.
FACTOR = 2


async def run(workspace: Workspace, arguments: Mapping[str, Any]) -> Output:
    path = workspace.path(arguments["file_path"])
    lines = (await read_text(workspace, path)).split("\n")
    if lines[-1] == "":
        lines.pop()
    if not lines:
        return Output(f"[{path} is empty]")
    first = max(int(arguments.get("offset") or 1), 1)
    if first > len(lines):
        return Output(f"{path} has {len(lines)} lines; offset {first} is behind its end.", is_error=True)
    limit = min(max(int(arguments.get("limit") or MAX_LINES), 1), MAX_LINES)
    shown: list[str] = []
    room = workspace.max_output_chars * FACTOR
    for number, line in enumerate(lines[first - 1 : first - 1 + limit], first):
        shown.append(f"{number:6}\t{shortened(line.removesuffix(chr(13)))}")
        room -= len(shown[-1]) + 1
        if room < 0 and len(shown) > 1:
            shown.pop()
            break
    last = first + len(shown) - 1
    if last < len(lines):
        shown.append(f"[lines {first}-{last} of {len(lines)}; go on with offset={last + 1}]")
    return Output("\n".join(shown))


def shortened(line: str) -> str:
    if len(line) <= MAX_LINE_CHARS:
        return line
    return f"{line[:MAX_LINE_CHARS]} [… {len(line) - MAX_LINE_CHARS} characters more]"


READ = AgentTool(
    Tool(
        "read",
        "Read a text file. Each line is shown behind its number and a tab.",
        schema(
            ("file_path",),
            file_path="string",
            offset=("integer", "First line, from 1"),
            limit=("integer", "Number of lines"),
        ),
    ),
    "read",
    run,
)
