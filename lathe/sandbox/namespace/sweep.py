"""Ending what a command left behind when it ended: its background children, daemons, fork bombs."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from typing import Any

Box = dict[str, Any]
Inside = Callable[[Box, Callable[[int], None]], int]


def end_leftovers(box: Box, inside: Inside) -> None:
    """Kill all that a command, just ended, has started. Returns when nothing of it can do anything any more.

    What it leaves behind has fallen to the sandbox's first process. If no other command runs there, all of it
    was this one's; else its process group and its session go, and orphans that no living command's session
    holds.
    """
    init = box["pid"]
    if not children(init):
        return
    if not box["live"]:
        end_everything(box, inside)
        return
    for _ in range(20):  # what forks while it is being killed
        orphans = [pid for pid in children(init) if session(pid) not in box["live"]]
        if not orphans:
            return
        for pid in orphans:
            signal_below(pid, signal.SIGKILL, and_itself=True)


def end_everything(box: Box, inside: Inside) -> None:
    """Kill every process of a sandbox but its first."""
    with contextlib.suppress(OSError):
        os.waitpid(inside(box, _kill_everything), 0)


def _kill_everything(_: int) -> None:
    # Whose parent is outside its pid namespace sees 0 there. Anywhere else this call would end this machine.
    if os.getppid() == 0:
        os.kill(-1, signal.SIGKILL)
    os._exit(0)


def children(pid: int) -> list[int]:
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:  # noqa: PTH123
            return [int(each) for each in file.read().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def session(pid: int) -> int | None:
    """The session that a process belongs to, by its leader's number on this machine."""
    try:
        with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
            return int(file.read().rpartition(")")[2].split()[3])
    except (FileNotFoundError, ProcessLookupError):
        return None


def signal_below(pid: int, number: int, and_itself: bool = False) -> None:
    """Send a signal to what a process has started, and to what that has started."""
    below = children(pid)
    if and_itself:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
    for each in below:
        signal_below(each, number, and_itself=True)


def is_exiting(pid: int) -> bool:
    """Whether a process is on its way out: its commands end with it, before it can be waited for."""
    try:
        with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
            fields = file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return fields[0] in "ZX" or bool(int(fields[6]) & 0x4)  # PF_EXITING
