"""One machine of a fleet: an agent that holds a pool, and does in its sandboxes what it is asked from afar.

It is a plain class; `fleet.py` makes it a Ray actor, one on each machine. An actor for each sandbox would be
the wrong grain: Ray makes some hundred of them a second, and each is a process.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import subprocess
import tarfile
import tempfile
import time
import uuid
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from lathe.errors import InfrastructureError, SandboxError, SandboxGone
from lathe.sandbox.pool import BackendName, Pool, open_pool
from lathe.sandbox.spec import SandboxSpec

HANDLES = ("start", "shell", "fork")  # what they return lives here, and is named there
MAX_LAYER_BYTES = 4 << 30


@dataclass(frozen=True)
class NodeStats:
    """A machine as a fleet sees it. `images` are those whose layers lie there."""

    host: str
    num_cpus: int
    load: float
    free_bytes: int
    num_boxes: int
    images: frozenset[str] = frozenset()
    backend: str = ""


@dataclass
class _Held:
    """Something of this machine's that is used from afar. Without a renewed lease it ends."""

    value: Any
    owner: str
    is_box: bool
    until: float = field(default=float("inf"))


class NodeAgent:
    """The agent. All calls come from a fleet; errors travel back as they are."""

    def __init__(self, backend: BackendName, num_shards: int | None, lease_s: float):
        self._asked = (backend, num_shards)
        self._lease_s = lease_s
        self._stack = AsyncExitStack()
        self._pool: Pool | None = None
        self._opening = asyncio.Lock()
        self._held: dict[str, _Held] = {}
        self._reaper: asyncio.Task[None] | None = None

    async def open(self) -> NodeStats:
        """Open the pool, once. Raises what the pool raises where the machine refuses sandboxes."""
        async with self._opening:
            if self._pool is None:
                backend, num_shards = self._asked
                context = open_pool(backend, num_shards=num_shards)
                self._pool = await self._stack.enter_async_context(context)
                self._reaper = asyncio.create_task(self._reap())
        return await self.stats()

    async def stats(self) -> NodeStats:
        images = self._pool.images.root / "images" if self._pool else None
        return NodeStats(
            host=os.uname().nodename,
            num_cpus=psutil.cpu_count() or 1,
            load=psutil.getloadavg()[0],
            free_bytes=psutil.virtual_memory().available,
            num_boxes=sum(each.is_box for each in self._held.values()),
            images=frozenset(path.stem for path in images.glob("*.json")) if images else frozenset(),
            backend=self._pool.backend if self._pool else "",
        )

    async def create(self, name: str, owner: str, spec: SandboxSpec, warm: bool) -> str:
        """A sandbox, held under `name` as long as its owner renews the lease. Asked twice, it is made once.
        Its workdir."""
        if name not in self._held:
            assert self._pool is not None, "an agent is opened first"
            box = await self._pool.create(spec, warm=warm)
            self._held[name] = _Held(box, owner, True, time.monotonic() + self._lease_s)
        return self._held[name].value.workdir

    async def call(
        self, name: str, owner: str, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Call a method of something held. What can't travel stays here: its name, kind and place go back."""
        if name not in self._held:
            raise SandboxGone(f"{name} is no more on this machine: it was closed, or its lease had run out")
        result = getattr(self._held[name].value, method)(*args, **kwargs)
        if asyncio.iscoroutine(result):
            result = await result
        if method == "close":
            self._held.pop(name, None)
        if method not in HANDLES:
            return result
        new = uuid.uuid4().hex[:12]
        self._held[new] = _Held(result, owner, method == "fork", time.monotonic() + self._lease_s)
        return new

    async def upload(self, name: str, owner: str, packed: bytes, path: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            await asyncio.to_thread(unpack, packed, Path(folder))
            await self.call(name, owner, "upload", (Path(folder) / "it", path), {})

    async def download(self, name: str, owner: str, path: str) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            await self.call(name, owner, "download", (path, Path(folder) / "it"), {})
            return await asyncio.to_thread(pack, Path(folder) / "it")

    async def renew(self, owner: str) -> None:
        """The owner is alive: what it holds here may go on."""
        for each in self._held.values():
            if each.owner == owner:
                each.until = time.monotonic() + self._lease_s

    async def release(self, owner: str) -> None:
        """End all that an owner holds here."""
        await self._end([name for name, each in self._held.items() if each.owner == owner])

    async def _reap(self) -> None:
        while True:
            await asyncio.sleep(self._lease_s / 4)
            now = time.monotonic()
            await self._end([name for name, each in self._held.items() if each.until < now])

    async def _end(self, names: list[str]) -> None:
        for name in names:
            held = self._held.pop(name, None)
            if held is not None and held.is_box:
                with contextlib.suppress(SandboxError):
                    await held.value.close()

    # Images on their way between machines

    async def image_out(self, image_id: str) -> bytes:
        """An image as a tar of its layers, with what overlays note in extended attributes."""
        assert self._pool is not None
        store = self._pool.images
        return await asyncio.to_thread(pack_image, store.root, image_id, store.layers(image_id))

    async def image_in(self, packed: bytes) -> None:
        assert self._pool is not None
        await asyncio.to_thread(unpack_image, packed, self._pool.images.root)

    async def close(self) -> None:
        if self._reaper is not None:
            self._reaper.cancel()
        await self._stack.aclose()


def pack_image(root: Path, image_id: str, layers: list[Path]) -> bytes:
    names = [*(str(layer.relative_to(root)) for layer in layers), f"images/{image_id}.json"]
    return _tar(["--create", "--xattrs", "--xattrs-include=*", "-C", str(root), *names], b"")


def unpack_image(packed: bytes, root: Path) -> None:
    """Layers that are here already stay; the list of layers comes last, so that no image lacks one."""
    with tempfile.TemporaryDirectory(dir=root) as folder:
        _tar(["--extract", "--xattrs", "--xattrs-include=*", "--numeric-owner", "-p", "-C", folder], packed)
        for kind in ("layers", "images"):
            for each in (Path(folder) / kind).iterdir():
                if not (root / kind / each.name).exists():
                    each.rename(root / kind / each.name)


def _tar(arguments: list[str], data: bytes) -> bytes:
    done = subprocess.run(["tar", *arguments], input=data, capture_output=True, check=False)
    if done.returncode != 0:
        raise InfrastructureError(f"an image could not be moved: {done.stderr.decode()[-500:]}")
    return done.stdout


def pack(path: Path) -> bytes:
    """A file or a folder, under the name `it`."""
    with io.BytesIO() as data:
        with tarfile.open(fileobj=data, mode="w") as tar:
            tar.add(path, "it")
        return data.getvalue()


def unpack(data: bytes, folder: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        tar.extractall(folder, filter="tar")
