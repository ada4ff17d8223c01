"""How a process of the spawner's goes into a sandbox, to run a command there or to handle files.

It is the spawner's child, in the sandbox's namespaces: the first process of the sandbox has no part in it,
and nothing in the sandbox can lie about how a command ended.
"""

from __future__ import annotations

import os
import signal
from typing import Any

from lathe.sandbox.namespace import syscalls as sys_
from lathe.sandbox.namespace.privileges import drop_capabilities, set_limits

Box = dict[str, Any]
STATUS = 200  # the number of a fourth descriptor, out of the way of what scripts use
NOT_FOUND, NOT_EXECUTABLE = 127, 126  # as shells say it


def join(box: Box, pidfd: int, mapped: bool) -> None:
    """Take on the sandbox's namespaces (its pid namespace came with the fork), its root user and its
    limits."""
    kinds = sys_.CLONE_NEWUSER | sys_.CLONE_NEWNS | sys_.CLONE_NEWIPC | sys_.CLONE_NEWUTS
    sys_.setns(pidfd, kinds | (sys_.CLONE_NEWNET if box["network"] == "loopback" else 0))
    if mapped:
        sys_.become(0, 0)
    set_limits(box["bounds"])
    drop_capabilities()
    os.umask(0o022)


def run(box: Box, request: dict[str, Any], pidfd: int, fds: list[int], mapped: bool, faults: int) -> None:
    """Never returns: becomes the command, with `fds` as its standard input, output and errors."""
    try:
        try:
            join(box, pidfd, mapped)
        except OSError as error:
            os.write(faults, f"{request['id']} {error}\n".encode())
            return
        os.setsid()
        take_descriptors(fds)
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and so would the command
            signal.signal(number, signal.SIG_DFL)
        _execute(request)
    finally:
        os._exit(255)


def take_descriptors(fds: list[int]) -> None:
    """These become the standard ones; all others are closed."""
    for fd, place in zip(fds, (0, 1, 2, STATUS), strict=False):
        os.dup2(fd, place)
    sys_.close_range(3, STATUS - 1)
    sys_.close_range(STATUS + (len(fds) > 3))


def _execute(request: dict[str, Any]) -> None:
    argv, folder = request["argv"], request["cwd"]
    try:
        os.chdir(folder)
    except OSError as error:
        os.write(
            2, f"cannot go to {folder}: {os.strerror(error.errno or 0)}\n".encode("utf-8", "surrogateescape")
        )
        os._exit(NOT_EXECUTABLE)
    try:
        os.execvpe(argv[0], argv, request["env"])
    except OSError as error:
        os.write(2, f"{argv[0]}: {os.strerror(error.errno or 0)}\n".encode("utf-8", "surrogateescape"))
        os._exit(NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE)
