"""edit: one exact text of a file becomes another. When it is not found, the nearest lines are shown."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lathe.agent.tools.text_files import changed, diff_of, read_text, write_text
from lathe.agent.tools.tool import AgentTool, Output, ToolError, Workspace, schema
from lathe.types import Tool

MAX_PLACES = 5
# Comparing every line with every other takes seconds beyond.
MAX_COMPARED = 20_000
MAX_SHOWN = 40


async def run(workspace: Workspace, arguments: Mapping[str, Any]) -> Output:
    path = workspace.path(arguments["file_path"])
    before, after, count = await plan(workspace, path, arguments)
    await write_text(workspace, path, after)
    return changed(path, before, after, "Edited" if count == 1 else f"Edited {count} places of")


async def preview(workspace: Workspace, arguments: Mapping[str, Any]) -> str:
    path = workspace.path(arguments["file_path"])
    before, after, _ = await plan(workspace, path, arguments)
    return diff_of(path, before, after)


async def plan(workspace: Workspace, path: str, arguments: Mapping[str, Any]) -> tuple[str, str, int]:
    """The file before and after, and in how many places it differs. Raises ToolError."""
    before = await read_text(workspace, path)
    return (before, *replaced(path, before, arguments))


def replaced(path: str, text: str, arguments: Mapping[str, Any]) -> tuple[str, int]:
    """The text with its new part, and how often. Line ends stay what they are. Raises ToolError."""
    old, new = arguments["old_string"], arguments["new_string"]
    if not old:
        raise ToolError("old_string is empty. To make or replace a whole file, use write.")
    if old not in text and "\r\n" in text:
        old, new = (re.sub(r"\r?\n", "\r\n", each) for each in (old, new))
    if old == new:
        raise ToolError("old_string and new_string are the same: nothing would change.")
    count = text.count(old)
    if count == 0:
        raise ToolError(f"old_string is not in {path}. {nearest(text, old)}")
    if count > 1 and not arguments.get("replace_all"):
        raise ToolError(
            f"old_string is {count} times in {path}, at lines {places(text, old)}. "
            "Give more lines around the one that you mean, or set replace_all."
        )
    return text.replace(old, new), count


def places(text: str, old: str) -> str:
    numbers: list[str] = []
    start = 0
    while len(numbers) < MAX_PLACES and (start := text.find(old, start)) >= 0:
        numbers.append(str(text.count("\n", 0, start) + 1))
        start += len(old)
    return ", ".join(numbers) + (" …" if len(numbers) == MAX_PLACES else "")


def nearest(text: str, old: str) -> str:
    """What in the file is most like the text that is not in it."""
    wanted = old.strip("\n").splitlines()
    if wanted and all(re.match(r"\s*\d+\t", line) for line in wanted):
        return "Leave out the line numbers that read shows, and the tab behind them."
    lines = text.splitlines()
    at, same = most_alike(lines, wanted)
    if at is None:
        return "Nothing in it is like that; read it again."
    shown = lines[at : at + min(len(wanted), MAX_SHOWN)]
    reason = "These lines differ from it in white space alone" if same else "The nearest lines are"
    return f"{reason}:\n" + "\n".join(f"{number:6}\t{line}" for number, line in enumerate(shown, at + 1))


def most_alike(lines: Sequence[str], wanted: Sequence[str]) -> tuple[int | None, bool]:
    """Where the lines begin that are most like `wanted` (None: nowhere), and whether only spaces differ."""
    bare, bare_wanted = [["".join(line.split()) for line in each] for each in (lines, wanted)]
    size = len(bare_wanted)
    for at in range(len(bare) - size + 1):
        if bare[at : at + size] == bare_wanted:
            return at, True
    if not size or len(bare) * size > MAX_COMPARED * 20:
        return None, False
    # By the line that says most: a closing brace is like a hundred others.
    key = max(range(size), key=lambda place: len(bare_wanted[place]))
    matcher = difflib.SequenceMatcher(autojunk=False)
    matcher.set_seq2(bare_wanted[key][:200])
    best, best_at = 0.6, None
    for at, line in enumerate(bare[:MAX_COMPARED]):
        matcher.set_seq1(line[:200])
        if matcher.real_quick_ratio() > best and matcher.quick_ratio() > best and matcher.ratio() > best:
            best, best_at = matcher.ratio(), max(at - key, 0)
    return best_at, False


EDIT = AgentTool(
    Tool(
        "edit",
        "Replace text in a file. old_string must be in it exactly, spaces included, and only once "
        "unless replace_all is true.",
        schema(
            ("file_path", "old_string", "new_string"),
            file_path="string",
            old_string="string",
            new_string="string",
            replace_all="boolean",
        ),
    ),
    "edit",
    run,
    preview,
)
