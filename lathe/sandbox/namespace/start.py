"""Starting a command without a fork: its child runs a list of system calls instead of Python.

Forking a Python and running some more of it cost two milliseconds of processor time for each command: page
tables are copied, and every page that a count of references touches. Here a few instructions of machine code
clone the process as `vfork` does, sharing its memory while it waits, and the child walks through a table that
Python has laid out: join the namespaces, become root there, set limits, give up capabilities, place the
descriptors, exec. The results stay in the table for the parent to read.

x86-64 only; elsewhere, and where memory can't be made executable, `enter.run` does the same in Python.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import platform
import signal
import struct
from typing import Any

from lathe.sandbox.namespace import syscalls as sys_
from lathe.sandbox.namespace.enter import NOT_EXECUTABLE, NOT_FOUND, STATUS
from lathe.sandbox.namespace.privileges import CAPABILITIES, UNBOUND

# long start(entry *table, void *stack_end, long clone_flags)
CODE = bytes.fromhex(
    "53"  # push rbx
    "4889fb"  # mov rbx, rdi: the table
    "4889d7"  # mov rdi, rdx: the flags; the stack is in rsi already
    "31d2 4531d2 4531c0"  # xor edx, edx; xor r10d, r10d; xor r8d, r8d
    "b838000000 0f05"  # mov eax, 56; syscall: clone
    "4885c0 7402"  # test rax, rax; jz to the child's part
    "5b c3"  # pop rbx; ret
    "488b03 488b7b08 488b7310 488b5318"  # mov rax, [rbx]; rdi, [rbx+8]; rsi, [rbx+16]; rdx, [rbx+24]
    "4c8b5320 4c8b4328 4c8b4b30"  # mov r10, [rbx+32]; r8, [rbx+40]; r9, [rbx+48]
    "0f05"  # syscall
    "488903"  # mov [rbx], rax: the result
    "488b4b38"  # mov rcx, [rbx+56]: where to go on after an error
    "4883c340"  # add rbx, 64: else with the next
    "4885c0 480f48d9"  # test rax, rax; cmovs rbx, rcx
    "ebcf"  # jmp to the child's part
)
NUMBERS = {
    "setns": 308,
    "setgroups": 116,
    "setresgid": 119,
    "setresuid": 117,
    "prlimit64": 302,
    "prctl": 157,
    "capset": 126,
    "umask": 95,
    "setsid": 112,
    "dup2": 33,
    "fcntl": 72,
    "close_range": 436,
    "rt_sigaction": 13,
    "rt_sigprocmask": 14,
    "chdir": 80,
    "execve": 59,
    "exit_group": 231,
}
ENTRY = struct.Struct("<8q")
CLONE_VM, CLONE_VFORK = 0x100, 0x4000
STACK_BYTES = 1 << 14
ARENA_BYTES = 4 << 20  # a request fits in wire.MAX_BYTES, its pointers in as much again
HANDLED = (signal.SIGCHLD, signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ)  # by Python, or ignored by it
EXIT = ("exit_group", 255)


class NotStarted(OSError):
    """A child could not join its sandbox, and has ended. Its `pid` is still to be waited for."""

    def __init__(self, number: int, text: str, pid: int):
        super().__init__(number, text)
        self.pid = pid


class Starter:
    """The code, and the memory in which tables are laid out: one at a time, as the parent waits for the
    child."""

    def __init__(self) -> None:
        self._code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self._code.write(CODE)
        self._arena = mmap.mmap(-1, ARENA_BYTES)
        prototype = ctypes.PYFUNCTYPE(ctypes.c_long, ctypes.c_long, ctypes.c_long, ctypes.c_long)
        self._start = prototype(ctypes.addressof(ctypes.c_char.from_buffer(self._code)))
        self._base = ctypes.addressof(ctypes.c_char.from_buffer(self._arena))
        self._sigprocmask = ctypes.CDLL(None).sigprocmask
        self._all = ctypes.create_string_buffer(b"\xff" * 128)
        self._old = ctypes.create_string_buffer(128)
        self._cursor = 0

    def start(
        self,
        box: dict[str, Any],
        request: dict[str, Any],
        pidfd: int,
        fds: list[int],
        mapped: bool,
        flags: int = 0,
    ) -> int:
        """The pid of a child that has become the command.

        Raises NotStarted when it could not join the sandbox. A command that can't be executed says so on its
        standard error, and `request` gets the `exit_code` that shells have for that.
        """
        self._cursor = STACK_BYTES
        calls = [*self._join(box, pidfd, mapped), *self._arrange(fds)]
        num_sure = len(calls)
        calls += self._execution(request)
        table = self._lay_out(calls, num_sure)
        # The child shares this memory: no handler of Python's may run in it.
        self._sigprocmask(signal.SIG_SETMASK, self._all, self._old)
        try:
            pid = self._start(
                self._base + table, self._base + STACK_BYTES, CLONE_VM | CLONE_VFORK | 17 | flags
            )
        finally:
            self._sigprocmask(signal.SIG_SETMASK, self._old, None)
        if pid < 0:
            raise OSError(-pid, f"clone: {os.strerror(-pid)}")
        results = [ENTRY.unpack_from(self._arena, table + 64 * place)[0] for place in range(len(calls))]
        for (name, *_), result in zip(calls[:num_sure], results, strict=False):
            if result < 0:
                raise NotStarted(-result, f"{name}: {os.strerror(-result)}", pid)
        self._explain(request, results[num_sure:-1], fds[2])
        return pid

    def _explain(self, request: dict[str, Any], results: list[int], stderr: int) -> None:
        """Say on a command's standard error why it was not executed."""
        went, *tried = results
        if went < 0:
            text, code = f"cannot go to {request['cwd']}: {os.strerror(-went)}", NOT_EXECUTABLE
        elif all(result < 0 for result in tried):
            why = errno.EACCES if -errno.EACCES in tried else -tried[-1]
            missing = why in (errno.ENOENT, errno.ENOTDIR)
            text, code = f"{request['argv'][0]}: {os.strerror(why)}", NOT_FOUND if missing else NOT_EXECUTABLE
        else:
            return
        request["exit_code"] = code
        with contextlib.suppress(OSError):  # nobody may listen any more
            os.write(stderr, os.fsencode(text + "\n"))

    def _join(self, box: dict[str, Any], pidfd: int, mapped: bool) -> list[tuple]:
        kinds = sys_.CLONE_NEWUSER | sys_.CLONE_NEWNS | sys_.CLONE_NEWIPC | sys_.CLONE_NEWUTS
        calls: list[tuple] = [
            ("setns", pidfd, kinds | (sys_.CLONE_NEWNET if box["network"] == "loopback" else 0))
        ]
        if mapped:
            calls += [("setgroups", 0, 0), ("setresgid", 0, 0, 0), ("setresuid", 0, 0, 0)]
        for kind, bound in box["bounds"]:
            calls.append(("prlimit64", 0, kind, self._put(struct.pack("<2Q", bound, bound)), 0))
        calls += [("prctl", sys_.PR_CAPBSET_DROP, each, 0, 0, 0) for each in UNBOUND]
        kept = sum(1 << each for each in CAPABILITIES)
        header = self._put(struct.pack("<2I", 0x20080522, 0))
        calls.append(("capset", header, self._put(struct.pack("<6I", kept, kept, 0, 0, 0, 0))))
        return [*calls, ("umask", 0o022), ("setsid",)]

    def _arrange(self, fds: list[int]) -> list[tuple]:
        calls: list[tuple] = []
        for fd, place in zip(fds, (0, 1, 2, STATUS), strict=False):
            calls.append(("dup2", fd, place))
            calls.append(
                ("fcntl", place, 2, 0)
            )  # F_SETFD: not closed by exec, also if it stood there already
        calls.append(("close_range", 3, STATUS - 1, 0))
        calls.append(("close_range", STATUS + (len(fds) > 3), 0x7FFFFFFF, 0))
        default = self._put(bytes(32))
        calls += [("rt_sigaction", number, default, 0, 8) for number in HANDLED]
        calls.append(("rt_sigprocmask", signal.SIG_SETMASK, default, 0, 8))
        return calls

    def _execution(self, request: dict[str, Any]) -> list[tuple]:
        argv = [self._text(each) for each in request["argv"]]
        env = [self._text(f"{name}={value}") for name, value in request["env"].items()]
        arguments = self._put(struct.pack(f"<{len(argv) + 1}Q", *argv, 0))
        environment = self._put(struct.pack(f"<{len(env) + 1}Q", *env, 0))
        program = request["argv"][0]
        if "/" in program:
            paths = [argv[0]]
        else:
            search = request["env"].get("PATH", "/bin:/usr/bin")
            paths = [self._text(f"{folder or '.'}/{program}") for folder in search.split(":")]
        calls = [("chdir", self._text(request["cwd"]))]
        return [*calls, *(("execve", path, arguments, environment) for path in paths), EXIT]

    def _lay_out(self, calls: list[tuple], num_sure: int) -> int:
        """Write the table. An error in one of the first, or in `chdir`, ends it; one of `execve` tries the
        next."""
        table = self._cursor
        self._check_room(64 * len(calls))
        end = self._base + table + 64 * (len(calls) - 1)
        for place, (name, *arguments) in enumerate(calls):
            after = self._base + table + 64 * (place + 1) if place > num_sure else end
            padded = [*arguments, 0, 0, 0, 0, 0, 0][:6]
            ENTRY.pack_into(self._arena, table + 64 * place, NUMBERS[name], *padded, after)
        return table

    def _check_room(self, num_bytes: int) -> None:
        if self._cursor + num_bytes > ARENA_BYTES:
            raise OSError(errno.E2BIG, "arguments, environment or PATH are too long")

    def _text(self, text: str) -> int:
        return self._put(os.fsencode(text) + b"\0")

    def _put(self, data: bytes) -> int:
        """Keep some bytes until the next start. Their address."""
        self._check_room(len(data))
        place = self._cursor
        self._arena[place : place + len(data)] = data
        self._cursor += len(data) + -len(data) % 8
        return self._base + place


def make_starter() -> Starter | None:
    """None where commands must be forked."""
    if platform.machine() != "x86_64":
        return None
    try:
        return Starter()
    except OSError:  # a machine that lets no memory be both written and executed
        return None
