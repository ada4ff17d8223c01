"""The processes behind landlock sandboxes: a spawner with the filter, and for each warm sandbox a keeper.

The spawner runs `python -I -S` afresh, installs one seccomp filter that all inherit, and forks keepers. A
keeper takes on the rules of its sandbox and starts its commands. It is the parent of whatever loses its own,
so it finds and ends what a command leaves behind.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

from lathe.sandbox.landlock import rules
from lathe.sandbox.namespace import enter, files, wire
from lathe.sandbox.namespace import syscalls as sys_
from lathe.sandbox.namespace.privileges import process_limits, set_limits
from lathe.sandbox.namespace.sweep import children, session, signal_below

Message = dict[str, Any]
PR_SET_CHILD_SUBREAPER = 36
ENDING_S = 10.0


def main(control: str) -> None:
    """Fork a keeper for each message that comes; when none can come any more, end all that is left."""
    end = socket.socket(fileno=int(control))
    sys_.prctl(PR_SET_CHILD_SUBREAPER, 1)
    sys_.prctl(sys_.PR_SET_DUMPABLE, 0)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # which Python ignores, and so would every command
        signal.signal(number, signal.SIG_DFL)
    rules.install_filter()
    wire.send(end, b"{}")
    keepers: set[int] = set()
    poll = select.poll()
    poll.register(end, select.POLLIN)
    while True:
        message, fds = wire.receive(end) if poll.poll(1000) else ({}, [])
        if message is None:
            break
        if fds:
            pid = os.fork()
            if pid == 0:
                end.close()
                keep(message, socket.socket(fileno=fds[0]))
            os.close(fds[0])
            keepers.add(pid)
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG)[0]) != 0:
                keepers.discard(ended)
        for orphan in set(children(os.getpid())) - keepers:  # of a keeper that was killed
            signal_below(orphan, signal.SIGKILL, and_itself=True)
    end_all()
    os._exit(0)


def end_all() -> None:
    """Kill everything below this process, and wait for it."""
    deadline = time.monotonic() + ENDING_S
    while time.monotonic() < deadline:
        signal_below(os.getpid(), signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.002)


def keep(box: Message, control: socket.socket) -> None:
    """Never returns: this process is the keeper of a sandbox."""
    try:
        sys_.prctl(sys_.PR_SET_PDEATHSIG, signal.SIGKILL)
        sys_.prctl(PR_SET_CHILD_SUBREAPER, 1)
        rules.restrict(box["readable"], box["writable"])
        Keeper(box, control).serve()
    except BaseException as error:
        with contextlib.suppress(OSError):
            wire.send(control, wire.pack({"id": 0, "refused": f"{type(error).__name__}: {error}"}))
    finally:
        with contextlib.suppress(BaseException):
            end_all()
        os._exit(1)


class Keeper:
    """Starts, watches and ends the commands of one sandbox."""

    def __init__(self, box: Message, control: socket.socket):
        self.box = box
        self.control = control
        self.bounds = process_limits(box["limits"])
        self.running: dict[int, Message] = {}
        self.wake, wake_in = socket.socketpair()
        for each in (self.wake, wake_in):
            each.setblocking(False)
        self._wake_in = wake_in
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake_in.fileno(), warn_on_full_buffer=False)

    def serve(self) -> None:
        """Until the other side closes its end."""
        self.say({"id": 0, "ready": True})
        operations: dict[str, Callable[[Message, list[int]], None]] = {
            "exec": self._exec,
            "files": self._files,
            "kill": self._kill,
            "interrupt": self._interrupt,
            "quiet": self._quiet,
        }
        while True:
            ready, _, _ = select.select([self.control, self.wake], [], [])
            if self.wake in ready:
                with contextlib.suppress(BlockingIOError):
                    self.wake.recv(4096)
                self._reap()
            if self.control in ready:
                request, fds = wire.receive(self.control)
                if request is None:
                    return
                try:
                    operations[request["op"]](request, fds)
                except OSError as error:
                    self.say({"id": request["id"], "fault": str(error)})
                finally:
                    for each in fds:
                        os.close(each)

    def say(self, message: Message) -> None:
        wire.send(self.control, wire.pack(message))

    def _fork(self, request: Message, child: Callable[[], None]) -> None:
        pid = os.fork()
        if pid == 0:
            try:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                become(self.box["uid"], self.bounds)
                child()
                os._exit(0)
            finally:
                os._exit(255)
        self.running[pid] = request

    def _exec(self, request: Message, fds: list[int]) -> None:
        def child() -> None:
            os.setsid()
            enter.take_descriptors(fds)
            sys_.prctl(sys_.PR_SET_DUMPABLE, 1)
            enter._execute(request)

        self._fork(request, child)

    def _files(self, request: Message, fds: list[int]) -> None:
        self._fork(request, lambda: files.serve(request, socket.socket(fileno=os.dup(fds[0]))))

    def _kill(self, request: Message, _: list[int]) -> None:
        for pid, each in self.running.items():
            if each["id"] == request["which"]:
                signal_below(pid, signal.SIGKILL, and_itself=True)
        self.say({"id": request["id"]})

    def _interrupt(self, request: Message, _: list[int]) -> None:
        for pid, each in self.running.items():
            if each["id"] == request["which"]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGINT)
                signal_below(pid, signal.SIGKILL if request["kill"] else signal.SIGINT)
        self.say({"id": request["id"]})

    def _quiet(self, request: Message, _: list[int]) -> None:
        signal_below(os.getpid(), signal.SIGKILL)
        self.say({"id": request["id"]})

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                request = self.running.pop(pid, None)
                if request is not None:
                    self._sweep()
                    code = os.waitstatus_to_exitcode(status)
                    self.say({"id": request["id"], "exit_code": code if code >= 0 else 128 - code})

    def _sweep(self) -> None:
        """End what belongs to no running command."""
        for _ in range(20):  # what forks while it is being killed
            left = [pid for pid in children(os.getpid()) if pid not in self.running]
            left = [pid for pid in left if session(pid) not in self.running]
            if not left:
                return
            for pid in left:
                signal_below(pid, signal.SIGKILL, and_itself=True)
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, 0)


def become(uid: int | None, bounds: list[tuple[int, int]]) -> None:
    """Take on the sandbox's user, where there is another than ours, and its limits; keep no capability."""
    if uid is not None:
        sys_.become(uid, uid)
    set_limits(bounds)
    header = (sys_.ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this thread
    sys_.call("capset", header, (sys_.ctypes.c_uint32 * 6)())
    sys_.prctl(sys_.PR_SET_PDEATHSIG, signal.SIGKILL)  # last: a change of user clears it
    os.umask(0o022)


if __name__ == "__main__":
    main(sys.argv[1])
