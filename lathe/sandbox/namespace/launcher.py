"""Starting commands inside a control group, for a sandbox that has one.

To join a group takes milliseconds in version 1 (a grace period of the kernel's). So a process joins once, and
forks each command from there; the spawner is their parent all the same.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from typing import Any

from lathe.sandbox.namespace import enter, wire
from lathe.sandbox.namespace import syscalls as sys_
from lathe.sandbox.namespace.start import NotStarted, make_starter


def serve(
    box: dict[str, Any], end: socket.socket, pidfd: int, groups: list[int], mapped: bool, faults: int
) -> None:
    """Never returns. Says `up` when it has joined; then for each command its pid, or why there is none."""
    try:
        sys_.prctl(sys_.PR_SET_PDEATHSIG, signal.SIGKILL)
        keep = sorted([2, end.fileno(), pidfd, faults, *groups])
        for low, high in zip(keep, [*keep[1:], 1 << 30], strict=True):
            if low + 1 < high:
                sys_.close_range(low + 1, high - 1)
        for fd in groups:
            os.write(fd, b"0")
            os.close(fd)
        sys_.setns(pidfd, sys_.CLONE_NEWPID)
        starter = make_starter()
        wire.send(end, wire.pack({"up": True}))
        while True:
            request, fds = wire.receive(end)
            if request is None:
                return
            try:
                if starter is not None:
                    pid = starter.start(box, request, pidfd, fds, mapped, sys_.CLONE_PARENT)
                else:
                    pid = sys_.clone(sys_.CLONE_PARENT)
                    if pid == 0:
                        enter.run(box, request, pidfd, fds, mapped, faults)
                said: wire.Message = {key: request[key] for key in ("id", "exit_code") if key in request}
                wire.send(end, wire.pack({**said, "pid": pid}))
            except OSError as error:
                said = {"id": request["id"], "fault": str(error)}
                if isinstance(error, NotStarted):
                    said["pid"] = error.pid
                wire.send(end, wire.pack(said))
            for fd in fds:
                os.close(fd)
    except OSError as error:
        with contextlib.suppress(OSError):
            wire.send(end, wire.pack({"fault": str(error)}))
    finally:
        os._exit(0)
