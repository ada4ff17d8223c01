"""bash: one command line at a time, each in processes of its own. Its folder is remembered, nothing else is.

A shell that lives on gets out of step (a password prompt, a stray quote, a changed PS1); a new process can't.
What a command leaves running ends with it, but for those that were started in the background.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from lathe.agent.tools.tool import AgentTool, Output, Workspace, schema
from lathe.types import ExecResult, Tool

DEFAULT_TIMEOUT_S = 120.0
MAX_TIMEOUT_S = 1800.0
MAX_KEPT_BYTES = 4 << 20

# An image may have no bash. Both outputs go where the first goes, so that they stay in their order.
START = 'if command -v bash >/dev/null; then exec bash -c "$1" 2>&1; else exec sh -c "$1" 2>&1; fi'
TRAILING = re.compile(r"(?<![&|>\\])&\s*$")
# Long enough for most commands that fail at once: a wrong name, a port that is taken.
SETTLE_S = 0.5


async def run(workspace: Workspace, arguments: Mapping[str, Any]) -> Output:
    command = arguments["command"]
    if arguments.get("background") or TRAILING.search(command):
        return await run_in_background(workspace, TRAILING.sub("", command))
    timeout_s = min(max(float(arguments.get("timeout_s") or DEFAULT_TIMEOUT_S), 1.0), MAX_TIMEOUT_S)
    cwd_file = f"{workspace.kept}/cwd"
    # On the command's own line, so that bash counts lines as the model does.
    line = f"trap '{{ pwd -P >{cwd_file}; }} 2>/dev/null' EXIT; {command}"
    before = workspace.cwd
    with suppress(OSError, ValueError):  # the last command may have done what it liked with our file
        await workspace.sandbox.write(cwd_file, before + "\n")
    result = await workspace.sandbox.exec(
        ["/bin/sh", "-c", START, "sh", line],
        cwd=before,
        timeout_s=timeout_s,
        max_output_bytes=MAX_KEPT_BYTES,
    )
    workspace.cwd = await last_folder(workspace, before)
    lines = [await workspace.cap((result.stdout + result.stderr).rstrip())]
    lines += said_of(result, timeout_s)
    if workspace.cwd != before:
        lines.append(f"[now in {workspace.cwd}]")
    text = "\n".join(line for line in lines if line) or "[no output]"
    return Output(text, is_error=result.timed_out or result.exit_code != 0)


async def run_in_background(workspace: Workspace, command: str) -> Output:
    """Start it, and tell where its output is. It lives until it ends or the sandbox does."""
    sandbox = workspace.sandbox
    log = f"{workspace.kept}/background-{uuid.uuid4().hex[:8]}.log"
    await sandbox.write(log, "")
    line = f"exec >{log} 2>&1; echo $$ >{log}.pid; {command}"
    process = await sandbox.start(["/bin/sh", "-c", START, "sh", line], cwd=workspace.cwd)
    try:
        result = await process.wait(SETTLE_S)
    except TimeoutError:
        pid = (await sandbox.read(f"{log}.pid")).decode().strip()
        return Output(f"[runs in the background as process {pid}; its output is in {log}]")
    output = (await sandbox.read(log, max_bytes=MAX_KEPT_BYTES)).decode("utf-8", "replace").rstrip()
    lines = [await workspace.cap(output), f"[it ended already, with exit code {result.exit_code}]"]
    return Output("\n".join(line for line in lines if line), is_error=result.exit_code != 0)


def said_of(result: ExecResult, timeout_s: float) -> list[str]:
    if result.timed_out:
        return [
            f"[killed after {timeout_s:g} s. Give a larger timeout_s, or set background for what goes on "
            "running]"
        ]
    return [f"[exit code {result.exit_code}]"] if result.exit_code else []


async def last_folder(workspace: Workspace, before: str) -> str:
    """The folder that the last command ended in; the one before where it can't be told, or is gone."""
    try:
        path = (
            (await workspace.sandbox.read(f"{workspace.kept}/cwd", max_bytes=4096))
            .decode()
            .removesuffix("\n")
        )
        await workspace.sandbox.list(path or before)
    except (OSError, ValueError):
        return before
    return path or before


BASH = AgentTool(
    Tool(
        "bash",
        "Run a command with bash. The current folder is kept between calls, variables are not. "
        "stdin is empty, so nothing may ask questions. What a call leaves running is killed at its end, "
        "unless background is true.",
        schema(
            ("command",),
            command="string",
            background=("boolean", "For servers and the like: returns at once"),
            timeout_s=("number", f"Default {DEFAULT_TIMEOUT_S:g}, at most {MAX_TIMEOUT_S:g}"),
        ),
    ),
    "run",
    run,
)
