"""Making a child of this process in another pid namespace."""

from __future__ import annotations

import os
from collections.abc import Callable

from lathe.sandbox.namespace import syscalls as sys_

Child = Callable[[int], None]


def fork_into(pidfd: int, own_pids: int, child: Child) -> int:
    """Fork into the pid namespace of the process `pidfd`. Its pid here; `child` gets `pidfd`, and must not
    return.

    `own_pids` is a descriptor of this process's own pid namespace. Raises OSError when the other one has
    ended.
    """
    sys_.setns(pidfd, sys_.CLONE_NEWPID)  # of this process's children, not of itself
    try:
        pid = sys_.clone(0)
        if pid == 0:
            try:
                child(pidfd)
            finally:  # whatever happens, there must not be two of this process
                os._exit(255)
    finally:
        sys_.setns(own_pids, sys_.CLONE_NEWPID)
    return pid


def fork_into_unprivileged(pidfd: int, child: Child) -> int:
    """The same for who is root in a user namespace only, and can't come back to the pid namespace around it.

    So a child goes, and makes another child of this process there.
    """
    ours, theirs = os.pipe2(os.O_CLOEXEC)
    with open(ours, "rb") as answer:  # noqa: PTH123
        between = sys_.clone(0)
        if between == 0:
            try:
                sys_.setns(pidfd, sys_.CLONE_NEWPID)
                pid = sys_.clone(sys_.CLONE_PARENT)
                if pid == 0:
                    child(pidfd)
                os.write(theirs, str(pid).encode())
            finally:
                os._exit(255)
        os.close(theirs)
        said = answer.read()
    os.waitpid(between, 0)
    if not said:
        raise ProcessLookupError(3, "the sandbox has ended")
    return int(said)
