"""grep: lines by regular expression. With ripgrep where the image has it, else with the image's own grep."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from typing import Any

from lathe.agent.tools.listing import MAX_LIST_BYTES, list_files
from lathe.agent.tools.tool import AgentTool, Output, ToolError, Workspace, schema
from lathe.types import Tool

MAX_LINES = 200
MAX_LINE_CHARS = 300

# The files come on stdin, so that all three look at the same ones. busybox's grep has neither -P nor -I.
SEARCH = """
if command -v rg >/dev/null; then xargs -0 -r rg -nH --no-heading --color never -e "$1" --
elif grep -qP x /dev/null 2>/dev/null; [ $? -lt 2 ]; then xargs -0 -r grep -nHIP -e "$1" --
else xargs -0 -r grep -nHE -e "$1" --
fi
"""


async def run(workspace: Workspace, arguments: Mapping[str, Any]) -> Output:
    pattern, path = arguments["pattern"], workspace.path(arguments.get("path") or ".")
    folder, names = await find_files(workspace, path, arguments.get("glob"))
    if not names:
        return Output(f"There are no files to search in {path}.")
    result = await workspace.sandbox.exec(
        ["/bin/sh", "-c", SEARCH, "sh", pattern],
        cwd=folder,
        stdin="\0".join(names),
        max_output_bytes=MAX_LIST_BYTES,
    )
    if result.timed_out:
        raise ToolError("The search took too long. Name a smaller folder, or a glob.")
    lines = result.stdout.splitlines()
    if not lines and result.stderr.strip():
        raise ToolError(f"{pattern!r} can't be searched for: {result.stderr.strip()[:500]}")
    if not lines:
        return Output(f"No line matches {pattern!r}.")
    lines.sort(key=place)
    shown = [
        line if len(line) <= MAX_LINE_CHARS else line[:MAX_LINE_CHARS] + "…" for line in lines[:MAX_LINES]
    ]
    if len(lines) > MAX_LINES:
        shown.append(f"[{len(lines) - MAX_LINES} lines more; use a narrower pattern, path or glob]")
    return Output(await workspace.cap("\n".join(shown)))


async def find_files(workspace: Workspace, path: str, glob: str | None) -> tuple[str, list[str]]:
    """The folder to search from, and the files, as seen from there."""
    try:
        return path, [name for _, name in await list_files(workspace, path, glob)]
    except ToolError:
        folder, name = posixpath.split(path)
        try:
            kinds = {
                entry.path.rpartition("/")[2]: entry.kind for entry in await workspace.sandbox.list(folder)
            }
        except (OSError, ValueError):
            kinds = {}
        if kinds.get(name) in ("file", "link"):
            return folder, [name]
        raise ToolError(f"{path} does not exist.") from None


def place(line: str) -> tuple[str, int]:
    """A match's file and line, to sort by: ripgrep's threads end in any order."""
    name, _, rest = line.partition(":")
    number = rest.partition(":")[0]
    return name, int(number) if number.isdigit() else 0


GREP = AgentTool(
    Tool(
        "grep",
        "Search the files of a folder for lines that match a regular expression; (?i) ignores case. "
        "What git ignores is left out.",
        schema(
            ("pattern",),
            pattern="string",
            path=("string", "File or folder; default: the current folder"),
            glob=("string", "Only these files, such as *.py"),
        ),
    ),
    "read",
    run,
)
