"""A bash that lives on between commands. It implements types.Shell.

Commands go to it through one pipe, the status of each comes back through another: what a command prints is
never searched for a prompt. It is told that it is interactive because such a shell, on SIGINT, gives up the
whole of what it is doing and reads on; others would go on with the next command of the line, or end.
"""

from __future__ import annotations

import asyncio
import os
import shlex
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from lathe.errors import SandboxGone
from lathe.sandbox.namespace.command import Command
from lathe.sandbox.namespace.enter import STATUS
from lathe.types import ExecResult

if TYPE_CHECKING:
    from lathe.sandbox.namespace.sandbox import NamespaceSandbox

REPORT = f'printf \'%d %s\\0\' "$?" "$PWD" >&{STATUS}\n'
MAX_OUTPUT_BYTES = 1 << 20
# After each interruption. The first ones let programs end by themselves; then every other one kills, since a
# shell gives its line up only if what it waits for heeds the signal, too.
PATIENCE_S = (0.2,) * 12 + (0.5,) * 8


class NamespaceShell:
    """If its bash ends (by `exit`, or because nothing else stopped it), the next command gets a new one, in
    the folder where the old one was; variables and functions are lost then."""

    def __init__(self, sandbox: NamespaceSandbox, cwd: str, env: Mapping[str, str]):
        self._sandbox = sandbox
        self._cwd = cwd
        self._env = {**env, "PS1": "", "PS2": "", "HISTFILE": "", "BASH_SILENCE_DEPRECATION_WARNING": "1"}
        self._running: Command | None = None
        self._one_at_a_time = asyncio.Lock()
        self._closed = False
        sandbox.shells.add(self)

    async def open(self) -> None:
        """Start the bash. Raises FileNotFoundError where the sandbox has none."""
        self._loop = asyncio.get_running_loop()
        theirs, self._input = os.pipe2(os.O_CLOEXEC)
        self._status, reports = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._input, False)
        os.set_blocking(self._status, False)
        self._reports = b""
        self._reported = asyncio.Event()
        try:
            async with self._sandbox.in_use(groups=True) as shard:
                self._running = Command(shard, self._sandbox.id, MAX_OUTPUT_BYTES, None)
                argv = ["bash", "--noprofile", "--norc", "--noediting", "-i"]
                self._running.start(argv, self._cwd, self._env, theirs, [reports])
        except BaseException:
            for fd in (theirs, reports, self._input, self._status):
                os.close(fd)
            raise
        self._loop.add_reader(self._status, self._readable)
        if await self._say("set +H; unset HISTFILE", None) is None:
            code, why = self._running.answer.get("exit_code"), self._running.output()[1].strip()
            await self._end()
            raise FileNotFoundError(
                2, f"no bash could be started in the sandbox (it ended with {code}): {why}"
            )
        self._running.take()

    def _readable(self) -> None:
        with suppress(BlockingIOError):
            data = os.read(self._status, 4096)
            if not data:
                self._loop.remove_reader(self._status)
            self._reports += data
            if b"\0" in self._reports:
                self._reported.set()

    async def run(self, line: str, *, timeout_s: float | None = 120.0) -> ExecResult:
        async with self._one_at_a_time:
            if self._closed:
                raise SandboxGone("the shell is closed")
            if self._running is not None and self._running.ended:  # with a sandbox that slept meanwhile
                await self._end()
            if self._running is None:
                await self.open()
            assert self._running is not None
            async with self._sandbox.in_use():
                self._running.take()
                began = self._loop.time()
                try:
                    code = await self._say(line, timeout_s)
                except asyncio.CancelledError:
                    await self._end()
                    raise
                timed_out = timeout_s is not None and self._interrupted
                if code is None:  # the bash itself ended
                    with suppress(TimeoutError):
                        code = (await self._running.wait(0)).exit_code
                captures = self._running.take()
                if self._running.ended:
                    await self._end()
        return ExecResult(
            exit_code=137 if code is None else code,
            stdout=captures["stdout"].text(),
            stderr=captures["stderr"].text(),
            timed_out=timed_out,
            truncated=any(each.num_dropped for each in captures.values()),
            duration_s=self._loop.time() - began,
        )

    async def _say(self, line: str, timeout_s: float | None) -> int | None:
        """Have a line run; its status, or None when the bash ended over it."""
        assert self._running is not None
        self._reported.clear()
        self._reports = b""
        self._interrupted = False
        feeding = asyncio.create_task(self._feed(f"eval {shlex.quote(line)} </dev/null\n{REPORT}".encode()))
        try:
            if not await self._ended(timeout_s):
                self._interrupted = True
                for time_, patience_s in enumerate(PATIENCE_S):
                    await self._running.interrupt(kill=time_ >= 3 and time_ % 2 == 1)
                    if await self._ended(patience_s):
                        break
                else:
                    await self._running.kill()
        finally:
            feeding.cancel()
        if not self._reported.is_set():
            self._readable() if not self._closed else None
        report, found, _ = self._reports.partition(b"\0")
        if not found:
            return None
        code, _, folder = report.partition(b" ")
        self._cwd = os.fsdecode(folder)
        return int(code)

    async def _ended(self, timeout_s: float | None) -> bool:
        """Wait until the line has ended, or the bash."""
        assert self._running is not None
        waiting = asyncio.create_task(self._reported.wait())
        try:
            done, _ = await asyncio.wait(
                [waiting, asyncio.ensure_future(asyncio.wait([self._running.future]))],
                timeout=timeout_s,
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            waiting.cancel()
        return bool(done)

    async def _feed(self, data: bytes) -> None:
        while data:
            try:
                data = data[os.write(self._input, data) :]
            except BlockingIOError:
                await asyncio.sleep(0.005)
            except OSError:
                return

    async def _end(self) -> None:
        running = self._running
        self.drop()
        if running is not None:
            await running.kill()

    def drop(self) -> None:
        """Let go of the bash: its sandbox has ended, or ends it."""
        if self._running is not None:
            self._running = None
            self._loop.remove_reader(self._status)
            os.close(self._input)
            os.close(self._status)

    async def close(self) -> None:
        self._closed = True
        self._sandbox.shells.discard(self)
        await self._end()
