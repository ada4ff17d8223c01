"""A pool for each test, and the check that after each test nothing of it is left."""

import gc
import os
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from lathe.errors import InfrastructureError
from lathe.sandbox.pool import Pool, open_pool

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
        "cgroups": {str(path) for path in Path("/sys/fs/cgroup").glob(f"**/lathe-{os.getpid()}-*")},
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


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """Fails the test when a process, mount, cgroup, descriptor or folder of it outlives it."""
    before = traces()
    yield
    assert not new_traces(before)


@pytest.fixture
async def pool(nothing_left) -> AsyncIterator[Pool]:
    """A pool of the namespace backend. Skips, and says why, where the machine refuses namespaces."""
    try:
        context = open_pool("namespace")
        made = await context.__aenter__()
    except InfrastructureError as error:
        pytest.skip(f"no namespaces here: {error}")
    try:
        yield made
    finally:
        await context.__aexit__(None, None, None)
