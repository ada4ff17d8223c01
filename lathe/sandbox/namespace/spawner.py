"""The process that makes a shard of sandboxes, and every command in them: its children, so that it knows
their ends.

It runs `python -I -S` afresh (no fork of the caller: nothing of its memory, its environment or its files
comes along), reads requests from one socket and holds no descriptor for a sandbox: a child that nobody has
waited for keeps its number, so `pidfd_open` finds the right one. When the pool's process goes, the socket
closes, this process ends, and with it by PDEATHSIG every sandbox of the shard.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lathe.sandbox.namespace import binds, build, enter, files, launcher, sweep, view, wire
from lathe.sandbox.namespace import syscalls as sys_
from lathe.sandbox.namespace.fork import fork_into, fork_into_unprivileged
from lathe.sandbox.namespace.privileges import install_filter, process_limits
from lathe.sandbox.namespace.start import NotStarted, make_starter
from lathe.sandbox.namespace.zygote import Zygote

Message = dict[str, Any]
# A launcher lives in its sandbox's control groups. When it dies, the sandbox's own programs have taken all
# memory for good (shared segments, extended attributes): new commands are killed for it, as in mid-run.
OUT_OF_MEMORY = 128 + signal.SIGKILL
KEPT_SIGNALS = (signal.SIGPIPE, signal.SIGXFSZ)  # an error's return value is better; commands get the default


class Spawner:
    """State of a shard: which child is which sandbox's first process, or which command's."""

    def __init__(self, control: socket.socket, outside: int, mapped: bool, zygote: Zygote):
        self.control = control
        self.zygote = zygote
        self.mapped = mapped
        self.outside = outside
        self.boxes: dict[str, Message] = {}
        self.box_of_init: dict[int, str] = {}
        self.commands: dict[int, Message] = {}  # pid of a running command's leader: its request
        self.helpers: dict[int, Message] = {}  # pid of a child that handles files: its request
        self.births: dict[int, tuple[socket.socket, Message, int]] = {}  # by descriptor of the birth's socket
        self.launchers: dict[
            int, tuple[Message, Message]
        ] = {}  # by descriptor: its sandbox, who asked for it
        self.starting: dict[int, Message] = {}  # commands that a launcher is about to start
        self.early: dict[int, int] = {}  # pid of such a one that has ended before that was heard: its status
        self.starter = make_starter()
        self.epoll = select.epoll()
        self.own_pids = os.open("/proc/self/ns/pid", os.O_RDONLY)
        self.faults, self.faults_in = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.wake, self.wake_in = socket.socketpair()
        for end in (self.wake, self.wake_in):
            end.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self.wake_in.fileno(), warn_on_full_buffer=False)
        for fd in (self.control.fileno(), self.wake.fileno()):
            self.epoll.register(fd, select.EPOLLIN)
        self.outbox: deque[bytes] = deque()
        self.is_blocked = False

    def serve(self) -> None:
        """Until the other side closes its end."""
        while True:
            for fd, _ in self.epoll.poll():
                if fd == self.control.fileno():
                    if not self._take_requests():
                        return
                elif fd == self.wake.fileno():
                    with contextlib.suppress(BlockingIOError):
                        self.wake.recv(4096)
                    self._reap()
                elif fd in self.launchers:
                    self._hear_launcher(fd)
                elif fd in self.births:
                    self._finish_birth(fd)
            self._send_waiting()

    def _take_requests(self) -> bool:
        for _ in range(64):
            try:
                request, fds = wire.receive(self.control)
            except BlockingIOError:
                return True
            except ConnectionError:
                return False
            if request is None:
                return False
            try:
                self._answer(request, fds)
            except OSError as error:
                self._fail(request, f"{error}")
            finally:
                for each in fds:
                    os.close(each)
        return True

    def _answer(self, request: Message, fds: list[int]) -> None:
        operations: dict[str, Callable[[Message, list[int]], None]] = {
            "create": self._create,
            "exec": self._exec,
            "launch": self._launch,
            "kill": self._kill,
            "interrupt": self._interrupt,
            "quiet": self._quiet,
            "freeze": self._freeze,
            "merge": self._merge,
            "files": self._files,
            "destroy": self._destroy,
        }
        operations[request["op"]](request, fds)

    def _fail(self, request: Message, why: str) -> None:
        """Say that something could not be done: the machine's fault, unless the sandbox is just ending."""
        box = self.boxes.get(request.get("name", ""))
        if "name" in request and (box is None or sweep.is_exiting(box["pid"])):
            self.reply(request, gone=True)
        else:
            self.reply(request, fault=why)

    def reply(self, request: Message, **more: Any) -> None:
        self.outbox.append(wire.pack({"id": request["id"], **more}))
        if len(self.outbox) == 1:
            self._send_waiting()

    def _send_waiting(self) -> None:
        while self.outbox:
            try:
                wire.send(self.control, self.outbox[0])
            except BlockingIOError:
                break
            except ConnectionError:
                return
            self.outbox.popleft()
        if self.is_blocked != bool(self.outbox):
            self.is_blocked = bool(self.outbox)
            events = select.EPOLLIN | (select.EPOLLOUT if self.is_blocked else 0)
            self.epoll.modify(self.control.fileno(), events)

    def _create(self, request: Message, _: list[int]) -> None:
        with binds.attached(request["box"]["binds"], self.outside, self.mapped) as places:
            box = request["box"]
            box["bounds"] = process_limits(box["limits"])
            self._give_birth(request, {**box, "binds": places})

    def _give_birth(self, request: Message, box: Message) -> None:
        ours, theirs = socket.socketpair()
        pid = sys_.clone(build.namespaces(box))
        if pid == 0:
            ours.close()
            build.build(box, theirs, self.mapped)
        theirs.close()
        try:
            rows = [(0, view.FIRST_UID, view.NUM_UIDS)] if self.mapped else [(0, 0, 1)]
            view.write_maps(pid, rows, rows)
            ours.send(b"m", socket.MSG_NOSIGNAL)
        except OSError:
            os.kill(pid, signal.SIGKILL)
            ours.close()
            raise
        ours.setblocking(False)
        self.births[ours.fileno()] = (ours, request, pid)
        self.epoll.register(ours.fileno(), select.EPOLLIN)

    def _finish_birth(self, fd: int) -> None:
        end, request, pid = self.births.pop(fd)
        self.epoll.unregister(fd)
        try:
            trouble = end.recv(4096).decode(errors="replace")
        except OSError as error:
            trouble = str(error)
        end.close()
        if trouble:
            self.reply(request, fault=trouble)
            return
        box = request["box"]
        box["pid"], box["live"], box["num_starting"] = pid, set(), 0
        self.boxes[box["name"]] = box
        self.box_of_init[pid] = box["name"]
        self.reply(request, pid=pid)

    def _inside(self, box: Message, child: Callable[[int], None]) -> int:
        """Fork into a sandbox's pid namespace. `child` gets the sandbox's pidfd and must not return."""
        pidfd = sys_.pidfd_open(box["pid"])
        try:
            if self.mapped:
                return fork_into(pidfd, self.own_pids, child)
            return fork_into_unprivileged(pidfd, child)
        finally:
            os.close(pidfd)

    def _box(self, request: Message) -> Message | None:
        box = self.boxes.get(request["name"])
        if box is None:
            self.reply(request, gone=True)
        return box

    def _exec(self, request: Message, fds: list[int]) -> None:
        box = self._box(request)
        if box is None:
            return
        pid = self._fork_warm(box, request, fds) if request.get("is_python") else None
        if pid is not None:
            self._command_began(request, pid)
            return
        if "launcher" in box:
            try:
                wire.send(box["launcher"][0], wire.pack(request), fds)
            except ConnectionError:
                self.reply(request, exit_code=OUT_OF_MEMORY)
                return
            self.starting[request["id"]] = request
            box["num_starting"] += 1
            return
        if self.starter is not None and self.mapped:
            pid = self._start(box, request, fds)
        else:
            pid = self._inside(
                box, lambda pidfd: enter.run(box, request, pidfd, fds, self.mapped, self.faults_in)
            )
        self._command_began(request, pid)

    def _start(self, box: Message, request: Message, fds: list[int]) -> int:
        assert self.starter is not None
        pidfd = sys_.pidfd_open(box["pid"])
        try:
            sys_.setns(pidfd, sys_.CLONE_NEWPID)
            try:
                return self.starter.start(box, request, pidfd, fds, self.mapped)
            except NotStarted as error:
                os.waitpid(error.pid, 0)
                raise
            finally:
                sys_.setns(self.own_pids, sys_.CLONE_NEWPID)
        finally:
            os.close(pidfd)

    def _command_began(self, request: Message, pid: int) -> None:
        self.commands[pid] = request
        box = self.boxes.get(request["name"])
        if box is not None:
            box["live"].add(pid)

    def _launch(self, request: Message, groups: list[int]) -> None:
        """Have a process join the control groups, from which this sandbox's commands will come."""
        box = self._box(request)
        if box is None:
            return
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pidfd = sys_.pidfd_open(box["pid"])
        pid = sys_.clone(0)
        if pid == 0:
            try:
                launcher.serve(box, theirs, pidfd, groups, self.mapped, self.faults_in)
            finally:
                os._exit(255)
        os.close(pidfd)
        theirs.close()
        box["launcher"] = (ours, pid)
        box["groups"] = [os.dup(each) for each in groups]  # the zygote's forks join by themselves
        self.launchers[ours.fileno()] = (box, request)
        self.epoll.register(ours.fileno(), select.EPOLLIN)

    def _hear_launcher(self, fd: int) -> None:
        box, joining = self.launchers[fd]
        try:
            said, _ = wire.receive(box["launcher"][0])
        except OSError:
            said = None
        if said is None or "id" not in said:
            if said is None:
                self.epoll.unregister(fd)
                for which in self._starting_in(box):
                    self.reply(self.starting.pop(which), exit_code=OUT_OF_MEMORY)
                    box["num_starting"] -= 1
            self._fail(joining, str(said)) if said != {"up": True} else self.reply(joining)
            return
        request = {**self.starting.pop(said["id"]), **said}
        box["num_starting"] -= 1
        if "fault" in said:
            if "pid" in said and self.early.pop(said["pid"], None) is None:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(said["pid"], 0)
            self._fail(request, said["fault"])
            return
        pid = said["pid"]
        self._command_began(request, pid)
        if request.get("killed"):
            self._kill_command(pid)
        if pid in self.early:
            self._command_ended(pid, self.early.pop(pid))

    def _starting_in(self, box: Message) -> list[int]:
        return [which for which, each in self.starting.items() if each["name"] == box["name"]]

    def _end_launcher(self, box: Message) -> None:
        if "launcher" not in box:
            return
        end, pid = box.pop("launcher")
        for each in box.pop("groups"):
            os.close(each)
        del self.launchers[end.fileno()]
        with contextlib.suppress(OSError):
            self.epoll.unregister(end.fileno())
        end.close()
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        for which in self._starting_in(box):
            self.reply(self.starting.pop(which), gone=True)

    def _fork_warm(self, box: Message, request: Message, fds: list[int]) -> int | None:
        """Python by the zygote; None as long as it isn't ready."""
        if not self.zygote.want():
            return None
        pidfd = sys_.pidfd_open(box["pid"])
        try:
            return self.zygote.run(box, request, [pidfd, self.faults_in, *fds, *box.get("groups", ())])
        finally:
            os.close(pidfd)

    def _files(self, request: Message, fds: list[int]) -> None:
        box = self._box(request)
        if box is None:
            return

        def child(pidfd: int) -> None:
            end = socket.socket(fileno=os.dup(fds[0]))
            try:
                enter.join(box, pidfd, self.mapped)
            except OSError as error:
                os.write(self.faults_in, f"{request['id']} {error}\n".encode())
                os._exit(255)
            files.serve(request, end)
            os._exit(0)

        pid = self._inside(box, child)
        box["live"].add(pid)
        self.helpers[pid] = request

    def _freeze(self, request: Message, fds: list[int]) -> None:
        box = self._box(request)
        if box is not None:
            self._copy_layers([f"/proc/{box['pid']}/cwd/upper"], request, fds[0], box["pid"])

    def _merge(self, request: Message, fds: list[int]) -> None:
        self._copy_layers(request["layers"], request, fds[0])

    def _copy_layers(self, sources: list[str], request: Message, fd: int, owner: int | None = None) -> None:
        """Lay folders over one of `/boxes`, in a child that reports on `fd`."""
        pid = sys_.clone(0)
        if pid == 0:
            try:
                end = socket.socket(fileno=os.dup(fd))
                try:
                    files.report_copy(sources, f"/boxes/{request['into']}", end)
                    os._exit(0)
                except OSError as error:
                    if owner is None or not sweep.is_exiting(owner):
                        files.report_error(end, error, request["into"])
                        os._exit(0)
            finally:
                os._exit(255)
        self.helpers[pid] = request

    def _quiet(self, request: Message, _: list[int]) -> None:
        box = self._box(request)
        if box is not None and sweep.is_exiting(box["pid"]):
            self.reply(request, gone=True)
        elif box is not None:
            sweep.end_everything(box, self._inside)
            self.reply(request)

    def _interrupt(self, request: Message, _: list[int]) -> None:
        """Tell a shell to give up its line. It does when what it waits for ends by SIGINT, as by a ^C; what
        does not heed that is killed, before which the shell must have heard."""
        for pid, each in self.commands.items():
            if each["id"] == request["which"]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGINT)
                sweep.signal_below(pid, signal.SIGKILL if request["kill"] else signal.SIGINT)
        self.reply(request)

    def _kill(self, request: Message, _: list[int]) -> None:
        if request["which"] in self.starting:
            self.starting[request["which"]]["killed"] = True
        for pid, each in self.commands.items():
            if each["id"] == request["which"]:
                self._kill_command(pid)
        self.reply(request)

    def _kill_command(self, pid: int) -> None:
        for kill in (os.killpg, os.kill):  # it may not have its own group yet
            with contextlib.suppress(ProcessLookupError):
                kill(pid, signal.SIGKILL)

    def _destroy(self, request: Message, _: list[int]) -> None:
        box = self._box(request)
        if box is not None:
            box["farewell"] = request
            os.kill(box["pid"], signal.SIGKILL)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid in self.commands:
                self._command_ended(pid, status)
            elif pid in self.box_of_init:
                self._box_ended(pid)
            else:
                self._helper_ended(pid, status)

    def _helper_ended(self, pid: int, status: int) -> None:
        request = self.helpers.pop(pid, None)
        if (
            request is None
        ):  # a command whose launcher has not spoken yet; or one that failed to become a sandbox
            if self.starting:
                self.early[pid] = status
            return
        box = self.boxes.get(request.get("name", ""))
        if box is not None:
            box["live"].discard(pid)
        fault = self._fault(request["id"]) if status else None
        if fault is not None:
            self._fail(request, fault)
        else:
            ended = status and "name" in request and (box is None or sweep.is_exiting(box["pid"]))
            self.reply(request, **({"gone": True} if ended else {"status": status}))

    def _command_ended(self, pid: int, status: int) -> None:
        request = self.commands.pop(pid)
        box = self.boxes.get(request["name"])
        code = request.get("exit_code", os.waitstatus_to_exitcode(status))
        if box is not None:
            box["live"].discard(pid)
            if not box.get("farewell"):
                sweep.end_leftovers(box, self._inside)
        fault = self._fault(request["id"]) if code == 255 else None
        if fault is not None:
            self._fail(request, fault)
        elif code == -signal.SIGKILL and (box is None or sweep.is_exiting(box["pid"])):
            self.reply(request, gone=True)  # it fell with its sandbox
        else:
            self.reply(request, exit_code=code if code >= 0 else 128 - code)

    def _fault(self, which: int) -> str | None:
        with contextlib.suppress(BlockingIOError):
            for line in os.read(self.faults, 1 << 16).decode().splitlines():
                number, _, text = line.partition(" ")
                if int(number) == which:
                    return text
        return None

    def _box_ended(self, pid: int) -> None:
        box = self.boxes.pop(self.box_of_init.pop(pid))
        self._end_launcher(box)
        if box.get("farewell"):
            self.reply(box["farewell"])
        else:
            self.outbox.append(wire.pack({"id": 0, "dead": box["name"]}))

    def end(self) -> None:
        """End every sandbox, some at a time: a kernel that frees thousands at once holds up its
        neighbours."""
        self.zygote.end.close()
        for box, _ in list(self.launchers.values()):
            self._end_launcher(box)
        waiting = list(self.box_of_init)
        while waiting:
            for pid in waiting[:50]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            del waiting[:50]
            self._reap()
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                if os.waitpid(-1, os.WNOHANG)[0] == 0:
                    time.sleep(0.002)
            except ChildProcessError:
                return


def main(fd: str, root: str, store: str, boxes: str, mapped: str, *host: str) -> None:
    """Serve on the socket `fd` until it closes (see `shard.py` for the other side)."""
    # A caller in a shell's background ignores ^C, and so would every command.
    for number in signal.valid_signals() - {*KEPT_SIGNALS, signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    control = socket.socket(fileno=int(fd))
    os.set_inheritable(control.fileno(), False)
    control.setblocking(False)
    is_mapped = mapped == "mapped"
    try:
        zygote = Zygote(is_mapped)
        outside = view.enter(Path(root), Path(store), Path(boxes), list(host), is_mapped)
        install_filter()
        spawner = Spawner(control, outside, is_mapped, zygote)
    except OSError as error:
        wire.send(control, wire.pack({"id": 0, "refused": str(error)}))
        sys.exit(1)
    wire.send(control, wire.pack({"id": 0, "ready": True}))
    spawner.serve()
    spawner.end()
