"""The files below a folder, as glob and grep look at them: what git ignores is left out where git is."""

from __future__ import annotations

import re
from functools import cache

from lathe.agent.tools.tool import ToolError, Workspace

MAX_LIST_BYTES = 32 << 20

# `stat -c` is in GNU's tools and in busybox; `find -printf` is in GNU's alone. Names with newlines are lost.
LIST = """
{ git ls-files -co --exclude-standard -z 2>/dev/null || find . -name .git -prune -o -type f -print0; } |
xargs -0 -r stat -c '%Y %n' 2>/dev/null
"""


async def list_files(
    workspace: Workspace, folder: str, pattern: str | None = None
) -> list[tuple[float, str]]:
    """Files below a folder whose path from there matches the pattern: when changed, path. By path.

    Raises ToolError where the folder is none.
    """
    try:
        await workspace.sandbox.list(folder)
    except (OSError, ValueError):
        raise ToolError(f"{folder} is no folder.") from None
    result = await workspace.sandbox.exec(LIST, cwd=folder, max_output_bytes=MAX_LIST_BYTES)
    if result.timed_out:
        raise ToolError(f"Listing {folder} took too long. Name a smaller folder.")
    matches = re.compile(as_regex(pattern)).fullmatch if pattern else None
    files = set()
    for line in result.stdout.split("\n"):
        seconds, _, path = line.partition(" ")
        path = path.removeprefix("./")
        if seconds.isdigit() and path and (matches is None or matches(path)):
            files.add((float(seconds), path))
    return sorted(files, key=lambda file: file[1])


@cache
def as_regex(pattern: str) -> str:
    """A glob with *, **, ?, [a-z] and {a,b}. Without a slash, it is a name in whatever folder."""
    pattern = pattern.removeprefix("./")
    if "/" not in pattern:
        pattern = f"**/{pattern}"
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\]|[{},])", pattern.lstrip("/"))
    depth, regex = 0, []
    for part in parts:
        if part == "{" and "}" in pattern:
            depth, part = depth + 1, "(?:"
        elif part == "}" and depth:
            depth, part = depth - 1, ")"
        elif part == "," and depth:
            part = "|"
        elif part.startswith("[") and len(part) > 2:
            part = "[" + re.sub(r"^!", "^", part[1:-1]).replace("\\", "\\\\") + "]"
        else:
            known = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
            part = known.get(part) or re.escape(part)
        regex.append(part)
    return "".join(regex) + ")" * depth
