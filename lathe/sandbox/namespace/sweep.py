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
    if not box["live"] and not box["num_starting"]:
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
    text = _read(f"/proc/{pid}/task/{pid}/children")
    return [int(each) for each in text.split()] if text else []


def _read(path: str) -> str | None:
    """A file of /proc, None when its process has gone. `open` would make ten system calls of these three."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except (FileNotFoundError, ProcessLookupError):
        return None
    try:
        parts = []
        while part := os.read(fd, 1 << 16):
            parts.append(part)
        return b"".join(parts).decode()
    except ProcessLookupError:
        return None
    finally:
        os.close(fd)


def session(pid: int) -> int | None:
    """The session that a process belongs to, by its leader's number on this machine."""
    text = _read(f"/proc/{pid}/stat")
    return int(text.rpartition(")")[2].split()[3]) if text else None


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
    text = _read(f"/proc/{pid}/stat")
    if not text:
        return True
    fields = text.rpartition(")")[2].split()
    return fields[0] in "ZX" or bool(int(fields[6]) & 0x4)  # PF_EXITING
