"""One running command, seen from outside: its pipes, its end, its time limit."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from lathe.errors import InfrastructureError, SandboxGone
from lathe.sandbox.capture import Capture
from lathe.sandbox.namespace.shard import Shard
from lathe.types import ExecResult

Stream = Literal["stdout", "stderr"]
OnOutput = Callable[[Stream, bytes], None]

CHUNK = 1 << 16
AFTER_END = 4 << 20  # a pipe holds at most 1 MiB; what a survivor goes on writing is nobody's output
KILL_GRACE_S = 20.0


class Command:
    """Implements types.Process."""

    def __init__(self, shard: Shard, name: str, max_output_bytes: int, on_output: OnOutput | None):
        self._shard = shard
        self._name = name
        self._on_output = on_output
        self._captures: dict[Stream, Capture] = {
            "stdout": Capture(max_output_bytes),
            "stderr": Capture(max_output_bytes),
        }
        self._pipes: dict[Stream, int] = {}
        self._stdin: int | None = None
        self._input = memoryview(b"")
        self._loop = asyncio.get_running_loop()
        self._result: ExecResult | None = None
        self._timed_out = False

    def start(
        self,
        argv: Sequence[str],
        cwd: str,
        env: Mapping[str, str],
        stdin: bytes | int | None,
        more: Sequence[int] = (),
        **fields: Any,
    ) -> None:
        """Send it on its way. `stdin` may be a descriptor; it and `more` are closed once they are sent.
        `fields` are the spawner's to understand."""
        self._began = time.monotonic()
        fds = []
        if isinstance(stdin, int):
            fds.append(stdin)
        elif stdin:
            theirs, self._stdin = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(self._stdin, False)
            self._input = memoryview(stdin)
            fds.append(theirs)
        else:
            fds.append(self._shard.null)
        for stream in self._captures:
            ours, theirs = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(ours, False)
            self._pipes[stream] = ours
            fds.append(theirs)
        request = {"op": "exec", "name": self._name, "argv": list(argv), "cwd": cwd, "env": dict(env)}
        request |= fields
        try:
            self.future = self._shard.request(request, [*fds, *more])
        except BaseException:
            self._close()
            raise
        self._which = self._shard.last_id
        for stream, fd in self._pipes.items():
            self._loop.add_reader(fd, self._readable, stream)
        if self._stdin is not None:
            self._loop.add_writer(self._stdin, self._writable)

    def _readable(self, stream: Stream) -> int:
        fd = self._pipes.get(stream)
        if fd is None:
            return 0
        try:
            data = os.read(fd, CHUNK)
        except BlockingIOError:
            return 0
        if not data:
            self._loop.remove_reader(fd)
            os.close(self._pipes.pop(stream))
            return 0
        self._captures[stream].add(data)
        if self._on_output is not None:
            self._on_output(stream, data)
        return len(data)

    def _writable(self) -> None:
        assert self._stdin is not None
        try:
            self._input = self._input[os.write(self._stdin, self._input[:CHUNK]) :]
        except BlockingIOError:
            return
        except OSError:  # it reads no more
            self._input = memoryview(b"")
        if not self._input:
            self._close_stdin()

    def _close_stdin(self) -> None:
        if self._stdin is not None:
            self._loop.remove_writer(self._stdin)
            os.close(self._stdin)
            self._stdin = None

    def _close(self) -> None:
        self._close_stdin()
        for fd in self._pipes.values():
            self._loop.remove_reader(fd)
            os.close(fd)
        self._pipes.clear()

    async def finish(self, timeout_s: float | None) -> ExecResult:
        """What became of it; at the limit it is killed. Cancelled, it is killed, too."""
        timer = self._loop.call_later(timeout_s, self._at_limit) if timeout_s is not None else None
        try:
            answer = await asyncio.shield(self.future)
        except asyncio.CancelledError:
            await self.kill()
            raise
        finally:
            if timer is not None:
                timer.cancel()
            if self.future.done():
                self._drain()
        return self._judge(answer)

    def _judge(self, answer: dict) -> ExecResult:
        if answer.get("gone"):
            raise SandboxGone(f"sandbox {self._name} ended while a command ran in it")
        if "fault" in answer:
            raise InfrastructureError(
                f"a command could not be started in sandbox {self._name}: {answer['fault']}"
            )
        self._result = ExecResult(
            exit_code=answer["exit_code"],
            stdout=self._captures["stdout"].text(),
            stderr=self._captures["stderr"].text(),
            timed_out=self._timed_out,
            truncated=any(each.num_dropped for each in self._captures.values()),
            duration_s=time.monotonic() - self._began,
        )
        return self._result

    def _drain(self) -> None:
        """Take what still stands in the pipes. They may never end: a survivor can hold them open."""
        for stream in list(self._pipes):
            left = AFTER_END
            while left > 0 and (num_bytes := self._readable(stream)):
                left -= num_bytes
        self._close()

    def _at_limit(self) -> None:
        self._timed_out = True
        self._send_kill()

    def _send_kill(self) -> None:
        if not self.future.done() and not self._shard.dead:
            self._shard.request({"op": "kill", "which": self._which})
            self._loop.call_later(KILL_GRACE_S, self._give_up)

    def _give_up(self) -> None:
        if not self.future.done():
            self.future.set_exception(
                InfrastructureError(f"a killed command did not end in {KILL_GRACE_S:.0f} s")
            )

    async def wait(self, timeout_s: float | None = None) -> ExecResult:
        if self._result is None:
            await asyncio.wait_for(asyncio.shield(self.future), timeout_s)
            self._drain()
            return self._judge(self.future.result())
        return self._result

    def output(self) -> tuple[str, str]:
        for stream in list(self._pipes):
            self._readable(stream)
        return self._captures["stdout"].text(), self._captures["stderr"].text()

    @property
    def ended(self) -> bool:
        return self.future.done()

    @property
    def answer(self) -> dict:
        """What the spawner said of its end; empty while it runs."""
        return self.future.result() if self.future.done() else {}

    def take(self) -> dict[Stream, Capture]:
        """What it has written until now, which is then forgotten here."""
        for stream in list(self._pipes):
            left = AFTER_END
            while left > 0 and (num_bytes := self._readable(stream)):
                left -= num_bytes
        taken = self._captures
        self._captures = {stream: Capture(each.max_head + each.max_tail) for stream, each in taken.items()}
        return taken

    async def interrupt(self, kill: bool) -> None:
        """Send SIGINT to it and to all below it, or SIGKILL to the latter."""
        await self._shard.ask({"op": "interrupt", "which": self._which, "kill": kill})

    async def kill(self) -> None:
        self._send_kill()
        if not self.future.done():
            await asyncio.wait([self.future])
        self._drain()
