"""Text files in a sandbox, and the difference between two versions of one."""

from __future__ import annotations

import difflib
from itertools import islice

from lathe.agent.tools.tool import Output, ToolError, Workspace

MAX_FILE_BYTES = 16 << 20
# difflib takes seconds for longer ones.
MAX_DIFF_CHARS = 400_000
MAX_DIFF_LINES = 2_000


async def read_text(workspace: Workspace, path: str) -> str:
    """A file's text, line ends as they are. Raises ToolError for what is no text, or too long."""
    try:
        data = await workspace.sandbox.read(path, max_bytes=MAX_FILE_BYTES)
    except FileNotFoundError:
        raise ToolError(f"{path} does not exist.{await neighbours(workspace, path)}") from None
    except IsADirectoryError:
        raise ToolError(f"{path} is a folder. Use glob, or bash with ls.") from None
    except PermissionError:
        raise ToolError(f"{path}: permission denied.") from None
    except (ValueError, OSError) as error:
        raise ToolError(f"{path} can't be read: {error}. Use bash with head, tail or sed.") from None
    if b"\0" in data[:8192]:
        raise ToolError(f"{path} is a binary file of {len(data)} bytes. Use bash with file, xxd or strings.")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ToolError(
            f"{path} is not UTF-8 (byte {error.start}). Use bash with iconv or a script."
        ) from None


async def neighbours(workspace: Workspace, path: str) -> str:
    """Names in the same folder that a misspelt path may have meant."""
    folder, _, name = path.rpartition("/")
    try:
        names = [entry.path.rpartition("/")[2] for entry in await workspace.sandbox.list(folder or "/")]
    except (OSError, ValueError):
        return f" Nor does the folder {folder}." if folder else ""
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f" Did you mean {', '.join(f'{folder}/{each}' for each in close)}?" if close else ""


async def write_text(workspace: Workspace, path: str, text: str) -> None:
    """Raises ToolError where the file can't be written."""
    try:
        # A model can write half a surrogate pair, which is no UTF-8.
        await workspace.sandbox.write(path, text.encode("utf-8", "replace"))
    except (OSError, ValueError) as error:
        raise ToolError(f"{path} can't be written: {error}") from None


def diff_of(path: str, before: str | None, after: str) -> str:
    """A unified diff; None is a file that was not there. Of very long ones, the beginning or nothing."""
    if len(before or "") + len(after) > MAX_DIFF_CHARS:
        return ""
    name = path.removeprefix("/")
    lines = difflib.unified_diff(
        (before or "").splitlines(keepends=True),
        after.splitlines(keepends=True),
        "/dev/null" if before is None else f"a/{name}",
        f"b/{name}",
    )
    return "".join(
        line if line.endswith("\n") else line + "\n\\ No newline at end of file\n"
        for line in islice(lines, MAX_DIFF_LINES)
    )


def changed(path: str, before: str | None, after: str, did: str) -> Output:
    """The result of having written a file."""
    diff = diff_of(path, before, after)
    lines = [line for line in diff.splitlines() if not line.startswith(("+++", "---"))]
    num_added = sum(line.startswith("+") for line in lines)
    num_removed = sum(line.startswith("-") for line in lines)
    counts = f" (+{num_added} -{num_removed} lines)" if diff else ""
    return Output(f"{did} {path}{counts}.", diff=diff)
