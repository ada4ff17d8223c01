"""What a test with sandboxes leaves behind, if anything; and waiting for conditions."""

import asyncio
import gc
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

GRACE_S = 20.0


def descendants(pid: int) -> set[int]:
    """Every process below `pid`, also in pid namespaces below."""
    found: set[int] = set()
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            below = {int(each) for each in task.read_text().split()}
        except OSError:  # it ended meanwhile
            continue
        for each in below - found:
            found |= {each} | descendants(each)
    return found


def own_groups() -> set[str]:
    """Control groups of this process's pools, in version 2's tree or version 1's hierarchies."""
    name = f"lathe-{os.getpid()}-*"
    return {str(path) for place in (name, f"*/{name}") for path in Path("/sys/fs/cgroup").glob(place)}


def traces() -> dict[str, set]:
    """What this process and its sandboxes have of the machine right now."""
    open_files = set()
    for link in Path("/proc/self/fd").iterdir():
        try:
            open_files.add((int(link.name), str(link.readlink())))
        except OSError:  # the listing's own
            continue
    return {
        "processes": descendants(os.getpid()),
        "mounts": set(Path("/proc/self/mountinfo").read_text().splitlines()),
        "cgroups": own_groups(),
        "descriptors": open_files,
        "folders": {str(path) for path in Path(tempfile.gettempdir()).glob(f"lathe-pool-{os.getpid()}-*")},
    }


def new_traces(before: dict[str, set]) -> dict[str, set]:
    """What there is now and was not before; waits for what is just ending."""
    deadline = time.monotonic() + GRACE_S
    while True:
        gc.collect()
        now = traces()
        left = {kind: now[kind] - before[kind] for kind in now if now[kind] - before[kind]}
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.05)


async def until(condition: Callable[[], bool], limit_s: float = 60.0) -> None:
    """Wait for a condition. Raises TimeoutError at the limit."""
    async with asyncio.timeout(limit_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)
