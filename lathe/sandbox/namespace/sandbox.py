"""A sandbox of the namespace backend, as its user holds it. It implements types.Sandbox."""

from __future__ import annotations

import asyncio
import os
import posixpath
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lathe.errors import InfrastructureError, SandboxGone, UserError
from lathe.sandbox.namespace.command import Command
from lathe.sandbox.namespace.shard import Shard
from lathe.sandbox.namespace.tree import pull_tree, push_tree, receive_exactly, receive_frame
from lathe.sandbox.spec import SandboxSpec
from lathe.types import ExecResult, FileInfo

if TYPE_CHECKING:
    from lathe.sandbox.namespace.backend import NamespaceBackend


class NamespaceSandbox:
    def __init__(
        self, backend: NamespaceBackend, shard: Shard, name: str, spec: SandboxSpec, env: Mapping[str, str]
    ):
        self.id = name
        self.workdir = spec.workdir
        self.spec = spec
        self.gone: str | None = None
        self._backend = backend
        self._shard = shard
        self._env = {**env, **spec.env}

    async def exec(
        self,
        command: str | Sequence[str],
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        stdin: str | bytes | None = None,
        timeout_s: float | None = 120.0,
        max_output_bytes: int = 1 << 20,
        on_output: Callable[[Literal["stdout", "stderr"], bytes], None] | None = None,
    ) -> ExecResult:
        running = self._command(command, cwd, env, stdin, max_output_bytes, on_output)
        return await running.finish(timeout_s)

    async def start(
        self,
        command: str | Sequence[str],
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        stdin: str | bytes | None = None,
    ) -> Command:
        return self._command(command, cwd, env, stdin, 16 << 20, None)

    def _command(
        self,
        command: str | Sequence[str],
        cwd: str | None,
        env: Mapping[str, str] | None,
        stdin: str | bytes | None,
        max_output_bytes: int,
        on_output: Any,
    ) -> Command:
        self._check()
        argv = ["/bin/sh", "-c", command] if isinstance(command, str) else list(command)
        merged = {**self._env, **(env or {})}
        if not argv or not all(isinstance(each, str) for each in argv):
            raise UserError("a command is a line, or a program and its arguments as strings")
        if any("\0" in each for each in [*argv, *merged, *merged.values(), cwd or ""]):
            raise UserError("a command, its folder and its environment can't hold the character NUL")
        running = Command(self._shard, self.id, max_output_bytes, on_output)
        data = stdin.encode() if isinstance(stdin, str) else stdin
        running.start(argv, self._path(cwd or "."), merged, data)
        return running

    async def read(self, path: str, *, max_bytes: int = 16 << 20) -> bytes:
        def talk(end: socket.socket) -> bytes:
            return receive_exactly(end, _answer(end)["num_bytes"])

        return await self._files({"what": "read", "path": path, "max_bytes": max_bytes}, talk)

    async def write(self, path: str, data: str | bytes, *, mode: int | None = None) -> None:
        content = data.encode() if isinstance(data, str) else data

        def talk(end: socket.socket) -> None:
            _send(end, lambda: end.sendall(content))

        await self._files({"what": "write", "path": path, "mode": mode, "num_bytes": len(content)}, talk)

    async def list(self, path: str = ".") -> list[FileInfo]:
        def talk(end: socket.socket) -> list[FileInfo]:
            return [FileInfo(posixpath.join(path, name), *rest) for name, *rest in _answer(end)["entries"]]

        return await self._files({"what": "list", "path": path}, talk)

    async def upload(self, source: Path, path: str) -> None:
        if not source.exists():  # noqa: ASYNC240
            raise FileNotFoundError(2, "there is nothing to upload", str(source))

        def talk(end: socket.socket) -> None:
            _send(end, lambda: push_tree(end, str(source)))

        await self._files({"what": "push", "path": path}, talk)

    async def download(self, path: str, target: Path) -> None:
        def talk(end: socket.socket) -> None:
            _answer(end)
            pull_tree(end, str(target))

        await self._files({"what": "pull", "path": path}, talk)

    async def _files(self, request: dict[str, Any], talk: Callable[[socket.socket], Any]) -> Any:
        """Have a process in the sandbox do something with files; `talk` speaks with it, in a thread."""
        self._check()
        if "\0" in request["path"]:
            raise UserError("a path can't hold the character NUL")
        ours, theirs = socket.socketpair()
        with ours:
            refused = self._shard.request(
                {"op": "files", "name": self.id, "cwd": self.workdir, **request}, [theirs.detach()]
            )
            try:
                return await asyncio.to_thread(talk, ours)
            except ConnectionError:
                await asyncio.wait([refused], timeout=1.0)
                if not refused.done():
                    self._check()
                    raise InfrastructureError(f"handling files in sandbox {self.id} broke off") from None
                answer = refused.result()
                if answer.get("gone"):
                    raise SandboxGone(f"sandbox {self.id} is no more") from None
                raise InfrastructureError(f"sandbox {self.id}: {answer.get('fault')}") from None

    async def close(self) -> None:
        if self.gone is None:
            self.gone = "it was closed"
            await self._backend.destroy(self)

    def _check(self) -> None:
        if self.gone is not None:
            raise SandboxGone(f"sandbox {self.id} is no more: {self.gone}")
        if self._shard.dead:
            raise InfrastructureError(f"sandbox {self.id}: {self._shard.dead}")

    def _path(self, path: str) -> str:
        return posixpath.normpath(posixpath.join(self.workdir, path))


def _answer(end: socket.socket) -> dict[str, Any]:
    """The other side's header. Raises what it met."""
    frame = receive_frame(end)
    if "errno" in frame:
        raise OSError(frame["errno"], os.strerror(frame["errno"]), frame["path"])
    if "refused" in frame:
        raise ValueError(frame["refused"])
    return frame


def _send(end: socket.socket, send: Callable[[], None]) -> None:
    """Send, then hear how it went; what the other side says counts more than that it stopped listening."""
    try:
        send()
        end.shutdown(socket.SHUT_WR)
    except BrokenPipeError:
        pass
    _answer(end)
