"""A sandbox of the namespace backend, as its user holds it. It implements types.Sandbox."""

from __future__ import annotations

import asyncio
import posixpath
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from lathe.errors import InfrastructureError, SandboxGone, UserError
from lathe.sandbox.egress import EgressProxy
from lathe.sandbox.namespace.command import Command
from lathe.sandbox.namespace.shell import NamespaceShell
from lathe.sandbox.namespace.tree import (
    pull_tree,
    push_tree,
    receive_answer,
    receive_exactly,
    send_then_hear,
)
from lathe.sandbox.spec import SandboxSpec
from lathe.types import ExecResult, FileInfo

if TYPE_CHECKING:
    from lathe.sandbox.namespace.backend import NamespaceBackend
    from lathe.sandbox.namespace.shard import Shard

T = TypeVar("T")
BACKGROUND_OUTPUT_BYTES = 16 << 20


@contextmanager
def machine(what: str) -> Iterator[None]:
    """An OSError in here is the machine's: a full disk, a folder that somebody took away."""
    try:
        yield
    except OSError as error:
        raise InfrastructureError(f"{what}: {error}") from error


class NamespaceSandbox:
    """Cold (`shard` is None: layers in folders), or warm: mounted, with a first process in a shard.

    `layers` are the names of its own frozen layers, lowest first, above those of its image.
    """

    def __init__(self, backend: NamespaceBackend, name: str, spec: SandboxSpec, env: Mapping[str, str]):
        self.id = name
        self.workdir = spec.workdir
        self.spec = spec
        self.shard: Shard | None = None
        self.layers: list[str] = []
        self.frozen_bytes = 0
        self.gone: str | None = None
        self.is_grouped = False  # commands may start: in control groups, or none are to be had
        self.has_groups = False
        self.proxy: EgressProxy | None = None  # while it is warm, if its network is Egress
        self.last_used = time.monotonic()
        self.num_users = 0
        self.shells: set[NamespaceShell] = set()
        self._backend = backend
        self._env = {**env, **spec.env}
        self._changing = asyncio.Lock()  # between cold and warm, one at a time

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
        argv, folder, merged = self._checked(command, cwd, env)
        async with self.in_use(groups=True) as shard:
            running = Command(shard, self.id, max_output_bytes, on_output)
            running.start(argv, folder, merged, stdin.encode() if isinstance(stdin, str) else stdin)
            return await running.finish(timeout_s)

    async def python(
        self,
        code: str,
        *,
        stdin: str | bytes | None = None,
        timeout_s: float | None = 120.0,
        max_output_bytes: int = 1 << 20,
    ) -> ExecResult:
        argv, folder, merged = self._checked(["python3", "-I", "-B", "-c", code], None, None)
        async with self.in_use(groups=True) as shard:
            running = Command(shard, self.id, max_output_bytes, None)
            data = stdin.encode() if isinstance(stdin, str) else stdin
            running.start(argv, folder, merged, data, **self._backend.warm_python(self.spec))
            return await running.finish(timeout_s)

    async def start(
        self,
        command: str | Sequence[str],
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        stdin: str | bytes | None = None,
    ) -> Command:
        argv, folder, merged = self._checked(command, cwd, env)
        async with self.in_use(groups=True) as shard:
            running = Command(shard, self.id, BACKGROUND_OUTPUT_BYTES, None)
            running.start(argv, folder, merged, stdin.encode() if isinstance(stdin, str) else stdin)
            return running

    async def shell(self, *, cwd: str | None = None, env: Mapping[str, str] | None = None) -> NamespaceShell:
        _, folder, merged = self._checked("true", cwd, env)
        shell = NamespaceShell(self, folder, merged)
        try:
            await shell.open()
        except BaseException:
            self.shells.discard(shell)
            raise
        return shell

    def _checked(
        self, command: str | Sequence[str], cwd: str | None, env: Mapping[str, str] | None
    ) -> tuple[list[str], str, dict[str, str]]:
        argv = ["/bin/sh", "-c", command] if isinstance(command, str) else list(command)
        merged = {**self._env, **(env or {})}
        if not argv or not all(isinstance(each, str) for each in argv):
            raise UserError("a command is a line, or a program and its arguments as strings")
        if any("\0" in each for each in [*argv, *merged, *merged.values(), cwd or ""]):
            raise UserError("a command, its folder and its environment can't hold the character NUL")
        return argv, posixpath.normpath(posixpath.join(self.workdir, cwd or ".")), merged

    async def read(self, path: str, *, max_bytes: int = 16 << 20) -> bytes:
        def talk(end: socket.socket) -> bytes:
            return receive_exactly(end, receive_answer(end)["num_bytes"])

        return await self._files({"what": "read", "path": path, "max_bytes": max_bytes}, talk)

    async def write(self, path: str, data: str | bytes, *, mode: int | None = None) -> None:
        content = data.encode() if isinstance(data, str) else data

        def talk(end: socket.socket) -> None:
            send_then_hear(end, lambda: end.sendall(content))

        await self._files({"what": "write", "path": path, "mode": mode, "num_bytes": len(content)}, talk)

    async def list(self, path: str = ".") -> list[FileInfo]:
        def talk(end: socket.socket) -> list[FileInfo]:
            entries = receive_answer(end)["entries"]
            return [FileInfo(posixpath.join(path, name), *rest) for name, *rest in entries]

        return await self._files({"what": "list", "path": path}, talk)

    async def upload(self, source: Path, path: str) -> None:
        if not source.exists():  # noqa: ASYNC240
            raise FileNotFoundError(2, "there is nothing to upload", str(source))

        def talk(end: socket.socket) -> None:
            send_then_hear(end, lambda: push_tree(end, str(source)))

        await self._files({"what": "push", "path": path}, talk)

    async def download(self, path: str, target: Path) -> None:
        def talk(end: socket.socket) -> None:
            receive_answer(end)
            pull_tree(end, str(target))

        await self._files({"what": "pull", "path": path}, talk)

    async def _files(self, request: dict[str, Any], talk: Callable[[socket.socket], T]) -> T:
        """Have a process in the sandbox do something with files; `talk` speaks with it, in a thread."""
        if "\0" in request["path"]:
            raise UserError("a path can't hold the character NUL")
        async with self.in_use() as shard:
            return await shard.talk({"op": "files", "name": self.id, "cwd": self.workdir, **request}, talk)

    async def snapshot(self) -> str:
        with machine(f"a snapshot of sandbox {self.id}"):
            name, _ = await self._freeze()
            return await self._backend.adopt(self, name)

    async def fork(self) -> NamespaceSandbox:
        with machine(f"a fork of sandbox {self.id}"):
            async with self._changing:
                self._check()
                if self.shard is None:
                    return await self._backend.branch(self, [])
            name, num_bytes = await self._freeze()
            return await self._backend.branch(self, [name], num_bytes)

    async def _freeze(self) -> tuple[str, int]:
        """Copy what it wrote since it became warm to a new folder: its name, and its files' bytes."""
        async with self.in_use() as shard:
            name = self._backend.new_layer()
            request = {"op": "freeze", "name": self.id, "into": name}
            try:
                copied = await shard.talk(request, receive_answer)
            except BaseException:
                self._backend.delete_layer(name)
                raise
        return name, copied["num_bytes"]

    async def hibernate(self) -> None:
        async with self._changing:
            self._check()
            if self.shard is None:
                return
            shard = self.shard
            await shard.ask({"op": "quiet", "name": self.id})
            with machine(f"sandbox {self.id} can't sleep"):
                name = self._backend.new_layer()
                try:
                    request = {"op": "freeze", "name": self.id, "into": name}
                    copied = await shard.talk(request, receive_answer)
                except BaseException:
                    self._backend.delete_layer(name)
                    raise
            self.shard = None
            await self._backend.cool(self, shard)
            if copied["num_entries"]:
                self.layers.append(name)
                self.frozen_bytes += copied["num_bytes"]
            else:
                self._backend.delete_layer(name)
            await self._backend.thin(self)

    async def resume(self) -> None:
        async with self.in_use():
            pass

    @asynccontextmanager
    async def in_use(self, groups: bool = False) -> AsyncIterator[Shard]:
        """The warm sandbox's shard, while something is done with it: being used is not being idle.

        `groups`: with its control groups, as commands need them.
        """
        self.num_users += 1
        try:
            if self.shard is None:
                async with self._changing:
                    self._check()
                    if self.shard is None:
                        self.shard = await self._backend.warm(self)
            if groups and not self.is_grouped:
                async with self._changing:
                    self._check()
                    if self.shard is not None and not self.is_grouped:
                        await self._backend.group(self, self.shard)
            self._check()
            yield self.shard
        finally:
            self.num_users -= 1
            self.last_used = time.monotonic()

    async def close(self) -> None:
        if self.gone is None:
            await self._backend.destroy(self, "it was closed")

    def _check(self) -> None:
        if self.gone is not None:
            raise SandboxGone(f"sandbox {self.id} is no more: {self.gone}")
        if self.shard is not None and self.shard.dead:
            raise InfrastructureError(f"sandbox {self.id}: {self.shard.dead}")
