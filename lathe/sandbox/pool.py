"""Sandboxes by the thousand: `async with open_pool() as pool: box = await pool.create(spec)`."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

from lathe.errors import BackendRefused, UserError
from lathe.sandbox.images import ImageStore
from lathe.sandbox.landlock.backend import LandlockBackend
from lathe.sandbox.namespace.backend import NamespaceBackend
from lathe.sandbox.probe import BACKENDS, probe
from lathe.sandbox.spec import SandboxSpec
from lathe.sandbox.sync import LoopThread, WithoutAwait
from lathe.types import Sandbox

BackendName = Literal["auto", "namespace", "landlock", "docker"]
BUILT = ("auto", "namespace", "landlock")


class Backend(Protocol):
    """What makes sandboxes of one kind."""

    name: str

    async def create(self, spec: SandboxSpec, warm: bool = True) -> Sandbox: ...

    async def close(self) -> None: ...


class Pool:
    """Sandboxes of one machine, and the images that they start from."""

    def __init__(self, backend: Backend, images: ImageStore):
        self._backend = backend
        self.images = images

    @property
    def backend(self) -> str:
        """The name of the kind of its sandboxes."""
        return self._backend.name

    async def create(self, spec: SandboxSpec | None = None, *, warm: bool = True) -> Sandbox:
        """A new sandbox. Raises InfrastructureError when the machine can't make it.

        With `warm=False` it is only noted, and made at its first use: a folder's cost until then.
        """
        return await self._backend.create(spec or SandboxSpec(), warm)


def _folder(state: Path | None) -> Path:
    if state is None:
        return Path(tempfile.mkdtemp(prefix=f"lathe-pool-{os.getpid()}-"))
    state.mkdir(parents=True, exist_ok=True)
    return state.resolve()  # spawners stand in another folder


@asynccontextmanager
async def open_pool(
    backend: BackendName = "auto",
    state: Path | None = None,
    num_shards: int | None = None,
    use_cgroups: bool = True,
    images: ImageStore | None = None,
) -> AsyncIterator[Pool]:
    """A pool, until the block ends: then all of its sandboxes end.

    `state` keeps images and layers of sleeping sandboxes, None for a folder that is deleted in the end.
    `num_shards` are processes that make sandboxes, at most 2,000 each; None: as many as there are cores, 8
    at most. `use_cgroups`: where it may, give each sandbox that runs commands control groups, which alone
    bound the memory of all its processes together. It takes some milliseconds at the first command.
    `images` is a store that outlives the pool, None for one in `state`.
    """
    temporary = state is None
    folder = _folder(state)
    try:
        images = images or ImageStore(folder / "images")
        chosen = await asyncio.to_thread(choose, backend)
        made: NamespaceBackend | LandlockBackend
        if chosen == "landlock":
            made = LandlockBackend(folder, images)
        else:
            made = NamespaceBackend(folder, images, num_shards or min(8, os.cpu_count() or 1), use_cgroups)
        try:
            await made.start()
            yield Pool(made, images)
        finally:
            await made.close()
    finally:
        if temporary:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


def choose(backend: str) -> str:
    """The backend that `auto` stands for, or the named one. Raises BackendRefused, UserError for no name."""
    if backend not in BUILT:
        raise UserError(f"there is no backend {backend!r}: it is auto, {', '.join(BUILT[1:])}")
    found = probe()
    if backend != "auto":
        found.check(backend)
        return backend
    taken = found.auto
    if taken == "landlock":
        why = found.why("namespace")
        logging.getLogger(__name__).warning("sandboxes are made by landlock, which isolates less: %s", why)
    if taken is None:
        why = " ".join(f"{each}: {found.why(each)}." for each in BACKENDS)
        raise BackendRefused(f"this machine refuses sandboxes of every kind. {why}")
    return taken


@contextmanager
def open_pool_sync(
    backend: BackendName = "auto",
    state: Path | None = None,
    num_shards: int | None = None,
    use_cgroups: bool = True,
    images: ImageStore | None = None,
) -> Iterator[Any]:
    """`open_pool` for code that has no event loop: `with open_pool_sync() as pool: box = pool.create()`.

    Pools, boxes, processes and shells have the methods of types.Sandbox, types.Process and types.Shell, to be
    called without await, from any thread.
    """
    loop = LoopThread()
    try:
        context = open_pool(backend, state, num_shards, use_cgroups, images)
        pool = loop.run(context.__aenter__())
        try:
            yield WithoutAwait(pool, loop)
        finally:
            loop.run(context.__aexit__(None, None, None))
    finally:
        loop.end()
