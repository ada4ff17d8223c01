"""No sandbox: commands run as the person. Only by an explicit word (`--no-sandbox`)."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lathe.errors import SandboxError
from lathe.types import ExecResult, FileInfo, Shell

CHUNK_BYTES = 1 << 16
LEFT_OUT = b"\n[... %d bytes left out ...]\n"


class Host:
    """The machine itself, as the tools see it: `exec`, `start`, `read`, `write`, `list` of `types.Sandbox`.

    It keeps nothing back and has nothing to snapshot. A command's process group is killed at the limit, and
    when the call is cancelled; what was started in the background is killed by `close`. A program that left
    its group lives on. `kept` is a folder of its own, for the tools.
    """

    def __init__(self, folder: Path):
        self.id = f"host-{uuid.uuid4().hex[:8]}"
        self.workdir = str(folder)
        self.kept = tempfile.mkdtemp(prefix="lathe-host-")
        self._started: list[HostProcess] = []

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
        words = ["/bin/sh", "-c", command] if isinstance(command, str) else list(command)
        started = time.monotonic()
        try:
            process = await asyncio.create_subprocess_exec(
                *words,
                cwd=self._path(cwd or ""),
                env={**os.environ, **(env or {})},
                stdin=asyncio.subprocess.PIPE if stdin else asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            return ExecResult(127 if isinstance(error, FileNotFoundError) else 126, stderr=f"{error}\n")
        kept = {"stdout": _Kept(max_output_bytes), "stderr": _Kept(max_output_bytes)}
        readers = [
            asyncio.ensure_future(_pump(getattr(process, name), name, kept[name], on_output)) for name in kept
        ]
        timed_out = False
        try:
            if stdin and process.stdin is not None:
                process.stdin.write(stdin.encode() if isinstance(stdin, str) else stdin)
                process.stdin.close()
            async with asyncio.timeout(timeout_s):
                await process.wait()
        except TimeoutError:
            timed_out = True
        finally:
            if process.returncode is None:
                _kill_group(process.pid)
                await process.wait()
            # What goes on in the background may hold the pipes open for ever.
            await asyncio.wait(readers, timeout=1.0)
            for reader in readers:
                reader.cancel()
        code = process.returncode or 0
        return ExecResult(
            128 - code if code < 0 else code,
            kept["stdout"].text(),
            kept["stderr"].text(),
            timed_out,
            kept["stdout"].is_cut or kept["stderr"].is_cut,
            time.monotonic() - started,
        )

    async def python(self, code: str, **options: Any) -> ExecResult:
        return await self.exec([sys.executable, "-I", "-B", "-c", code], **options)

    async def start(
        self, command: str | Sequence[str], *, timeout_s: float | None = None, **options: Any
    ) -> HostProcess:
        process = HostProcess(asyncio.ensure_future(self.exec(command, timeout_s=timeout_s, **options)))
        self._started.append(process)
        return process

    async def shell(self, **options: Any) -> Shell:
        raise SandboxError("without a sandbox, there is no shell that lives on")

    async def read(self, path: str, *, max_bytes: int = 16 << 20) -> bytes:
        return await asyncio.to_thread(self._read, self._path(path), max_bytes)

    async def write(self, path: str, data: str | bytes, *, mode: int | None = None) -> None:
        await asyncio.to_thread(self._write, self._path(path), data, mode)

    async def list(self, path: str = ".") -> list[FileInfo]:
        return list(await asyncio.to_thread(self._list, self._path(path)))

    async def upload(self, source: Path, path: str) -> None:
        raise SandboxError("without a sandbox, there is nowhere to copy files to")

    async def download(self, path: str, target: Path) -> None:
        raise SandboxError("without a sandbox, there is nowhere to copy files from")

    async def snapshot(self) -> str:
        raise SandboxError("without a sandbox, there is nothing to freeze")

    async def fork(self) -> Host:
        raise SandboxError("without a sandbox, there is nothing to fork")

    async def hibernate(self) -> None: ...

    async def resume(self) -> None: ...

    async def close(self) -> None:
        for process in self._started:
            await process.kill()
        self._started.clear()
        await asyncio.to_thread(shutil.rmtree, self.kept, ignore_errors=True)

    def _path(self, path: str) -> Path:
        return Path(self.workdir) / path

    def _read(self, path: Path, max_bytes: int) -> bytes:
        if not path.is_file():
            if path.is_dir():
                raise IsADirectoryError(f"{path} is a folder")
            if not path.exists():
                raise FileNotFoundError(f"{path} does not exist")
            raise ValueError(f"{path} is no regular file")
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
        if len(data) > max_bytes:
            raise ValueError(f"{path} is longer than {max_bytes} bytes")
        return data

    def _write(self, path: Path, data: str | bytes, mode: int | None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        if mode is not None:
            path.chmod(mode)

    def _list(self, path: Path) -> Sequence[FileInfo]:
        found = []
        for entry in sorted(path.iterdir()):
            status = entry.lstat()
            kind: Literal["file", "folder", "link", "other"] = "other"
            if entry.is_symlink():
                kind = "link"
            elif entry.is_dir():
                kind = "folder"
            elif entry.is_file():
                kind = "file"
            found.append(FileInfo(entry.name, kind, status.st_size, status.st_mode & 0o7777))
        return found


class HostProcess:
    """A command in the background. Its output is known when it has ended."""

    def __init__(self, running: asyncio.Future[ExecResult]):
        self._running = running

    async def wait(self, timeout_s: float | None = None) -> ExecResult:
        return await asyncio.wait_for(asyncio.shield(self._running), timeout_s)

    def output(self) -> tuple[str, str]:
        result = self._running.result() if self._running.done() else ExecResult(0)
        return result.stdout, result.stderr

    async def kill(self) -> None:
        self._running.cancel()
        await asyncio.gather(self._running, return_exceptions=True)


class _Kept:
    """Output's head and tail."""

    def __init__(self, max_bytes: int):
        self.half = max(max_bytes // 2, 1)
        self.head = bytearray()
        self.tail = bytearray()
        self.num_left_out = 0

    def add(self, data: bytes) -> None:
        room = self.half - len(self.head)
        self.head += data[:room]
        self.tail += data[room:]
        extra = len(self.tail) - self.half
        if extra > 0:
            del self.tail[:extra]
            self.num_left_out += extra

    @property
    def is_cut(self) -> bool:
        return self.num_left_out > 0

    def text(self) -> str:
        middle = LEFT_OUT % self.num_left_out if self.is_cut else b""
        return (bytes(self.head) + middle + bytes(self.tail)).decode("utf-8", "replace")


async def _pump(stream: asyncio.StreamReader, name: Any, kept: _Kept, on_output: Any) -> None:
    while data := await stream.read(CHUNK_BYTES):
        kept.add(data)
        if on_output is not None:
            on_output(name, data)


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return
