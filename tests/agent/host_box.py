"""A sandbox that is none, until the real one is there."""

# ruff: noqa
import asyncio
import os
import signal
import time
import uuid
from pathlib import Path

from lathe.types import ExecResult, FileInfo


class HostBox:
    def __init__(self, root):
        self.root = Path(root)
        self.id = uuid.uuid4().hex
        self.workdir = str(root)

    async def exec(
        self,
        command,
        *,
        cwd=None,
        env=None,
        stdin=None,
        timeout_s=120.0,
        max_output_bytes=1 << 20,
        on_output=None,
    ):
        argv = ["/bin/sh", "-c", command] if isinstance(command, str) else list(command)
        started = time.monotonic()
        with open(f"/tmp/hb{self.id}o", "wb+") as o, open(f"/tmp/hb{self.id}e", "wb+") as e:
            p = await asyncio.create_subprocess_exec(
                *argv,
                cwd=cwd or self.workdir,
                stdin=asyncio.subprocess.PIPE,
                stdout=o,
                stderr=e,
                start_new_session=True,
            )
            if stdin:
                p.stdin.write(stdin.encode() if isinstance(stdin, str) else stdin)
            p.stdin.close()
            timed_out = False
            try:
                await asyncio.wait_for(p.wait(), timeout_s)
            except TimeoutError:
                timed_out = True
                os.killpg(p.pid, signal.SIGKILL)
                await p.wait()
            except asyncio.CancelledError:
                os.killpg(p.pid, signal.SIGKILL)
                raise
            o.seek(0)
            e.seek(0)
            code = p.returncode if p.returncode >= 0 else 128 - p.returncode
            return ExecResult(
                code,
                o.read().decode("utf-8", "replace"),
                e.read().decode("utf-8", "replace"),
                timed_out,
                False,
                time.monotonic() - started,
            )

    def _p(self, path):
        return Path(self.workdir) / path

    async def read(self, path, *, max_bytes=16 << 20):
        data = self._p(path).read_bytes()
        if len(data) > max_bytes:
            raise ValueError(f"{path} is longer than {max_bytes} bytes")
        return data

    async def write(self, path, data, *, mode=None):
        p = self._p(path)
        p.parent.mkdir(parents=True, exist_ok=True)
        p.write_bytes(data.encode() if isinstance(data, str) else data)

    async def list(self, path="."):
        return [
            FileInfo(e.name, "folder" if e.is_dir() else "file", 0, 0)
            for e in sorted(self._p(path).iterdir())
        ]

    async def close(self):
        pass
