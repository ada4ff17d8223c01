"""The pool's side of a spawner: requests by message, answers by future."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import lathe
from lathe.errors import InfrastructureError, SandboxGone, UserError
from lathe.sandbox.namespace import wire

START = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from lathe.sandbox.namespace.spawner import main; main(*sys.argv[2:])"
)


T = TypeVar("T")


class Shard:
    """One spawner process. Raises InfrastructureError from every request once it is gone."""

    def __init__(self, on_death: Callable[[str], None]):
        self.on_death = on_death  # a sandbox whose first process ended, by name
        self.num_boxes = 0
        self.dead: str | None = None
        self._futures: dict[int, asyncio.Future[wire.Message]] = {}
        self._next = 1
        self._waiting: deque[tuple[bytes, list[int]]] = deque()

    async def start(
        self, root: Path, store: Path, boxes: Path, log: Path, host: Sequence[str], mapped: bool
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._end, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._end.setblocking(False)
        self._log_path = log
        house = str(Path(lathe.__file__).parents[1])
        arguments = [str(root), str(store), str(boxes), "mapped" if mapped else "same", *host]
        with self._log_path.open("wb") as words:
            self._process = subprocess.Popen(  # noqa: ASYNC220
                [sys.executable, "-I", "-S", "-c", START, house, str(theirs.fileno()), *arguments],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=words,
                cwd="/",
                env={},
                start_new_session=True,
            )
        theirs.close()
        self._null = os.open(os.devnull, os.O_RDONLY)
        self._futures[0] = ready = self._loop.create_future()
        self._loop.add_reader(self._end.fileno(), self._readable)
        try:
            answer = await asyncio.wait_for(ready, 30)
        except TimeoutError:
            await self.close()
            raise InfrastructureError("a spawner did not start within 30 s") from None
        except BaseException:
            await self.close()
            raise
        if "refused" in answer:
            await self.close()
            raise InfrastructureError(f"this machine refuses sandboxes by namespaces: {answer['refused']}")

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def null(self) -> int:
        """A descriptor of /dev/null, for commands that get no input. It must not be closed."""
        return os.dup(self._null)

    def request(self, message: wire.Message, fds: Sequence[int] = ()) -> asyncio.Future[wire.Message]:
        """Send a request; `fds` are closed once they are sent. The future holds the answer."""
        future: asyncio.Future[wire.Message] = self._loop.create_future()
        message = {**message, "id": self._next}
        data = wire.pack(message)
        if self.dead or len(data) > wire.MAX_BYTES:
            for fd in fds:
                os.close(fd)
            if self.dead:
                raise InfrastructureError(self.dead)
            raise UserError(
                f"arguments and environment have {len(data)} bytes, the limit is {wire.MAX_BYTES}: "
                "write them to a file in the sandbox, or pass them as stdin"
            )
        self._futures[self._next] = future
        self.last_id = self._next
        self._next += 1
        self._waiting.append((data, list(fds)))
        if len(self._waiting) == 1:
            self._writable()
        return future

    async def ask(self, message: wire.Message, fds: Sequence[int] = ()) -> wire.Message:
        """Request and answer. Raises SandboxGone, or InfrastructureError when it could not be done."""
        answer = await self.request(message, fds)
        if answer.get("gone"):
            raise SandboxGone(f"sandbox {message.get('name')} is no more")
        if "fault" in answer:
            raise InfrastructureError(f"{message['op']} in a spawner: {answer['fault']}")
        return answer

    async def talk(self, message: wire.Message, talk: Callable[[socket.socket], T]) -> T:
        """Request something that answers on a connection of its own. `talk` holds our end, in a thread."""
        ours, theirs = socket.socketpair()
        with ours:
            ending = self.request(message, [theirs.detach()])
            which = self.last_id
            talking = asyncio.get_running_loop().run_in_executor(None, talk, ours)
            try:
                return await asyncio.shield(talking)
            except asyncio.CancelledError:
                # Nobody hears how it ends any more, and asyncio would complain of that.
                talking.add_done_callback(lambda done: done.cancelled() or done.exception())
                ours.shutdown(socket.SHUT_RDWR)  # the thread ends, and with it the helper
                await asyncio.wait([talking])
                raise
            except ConnectionError:
                await asyncio.wait([ending], timeout=5.0)
                answer = ending.result() if ending.done() else {}
                if answer.get("gone"):
                    raise SandboxGone(f"sandbox {message.get('name')} is no more") from None
                raise InfrastructureError(f"{message['op']} in a spawner broke off: {answer}") from None
            finally:
                self._futures.pop(which, None)

    def _writable(self) -> None:
        while self._waiting:
            data, fds = self._waiting[0]
            try:
                wire.send(self._end, data, fds)
            except BlockingIOError:
                self._loop.add_writer(self._end.fileno(), self._writable)
                return
            except OSError as error:
                self._die(f"a spawner is gone: {error}")
                return
            self._waiting.popleft()
            for fd in fds:
                os.close(fd)
        self._loop.remove_writer(self._end.fileno())

    def _readable(self) -> None:
        for _ in range(64):
            try:
                message, _fds = wire.receive(self._end)
            except BlockingIOError:
                return
            except OSError as error:
                self._die(f"a spawner is gone: {error}")
                return
            if message is None:
                self._die(f"a spawner ended{self._last_words()}")
                return
            if "dead" in message:
                self.on_death(message["dead"])
                continue
            future = self._futures.pop(message["id"], None)
            if future is not None and not future.done():
                future.set_result(message)

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            text = self._log_path.read_text(errors="replace").strip()
            if text:
                return f": {text.splitlines()[-1]}"
        return ""

    def _die(self, why: str) -> None:
        if self.dead:
            return
        self.dead = why
        self._loop.remove_reader(self._end.fileno())
        self._loop.remove_writer(self._end.fileno())
        self._end.close()
        os.close(self._null)
        for _, fds in self._waiting:
            for fd in fds:
                os.close(fd)
        self._waiting.clear()
        for future in self._futures.values():
            if not future.done():
                future.set_exception(InfrastructureError(why))
                future.exception()  # not everybody waits for the answer
        self._futures.clear()

    async def close(self) -> None:
        """End the spawner and with it all of its sandboxes."""
        self._die("the pool is closed")
        try:
            await asyncio.to_thread(self._process.wait, 60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            await asyncio.to_thread(self._process.wait)
        self._log_path.unlink(missing_ok=True)
