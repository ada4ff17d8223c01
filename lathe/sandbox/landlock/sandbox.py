"""A sandbox of the landlock backend. It implements types.Sandbox."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lathe.sandbox.namespace.layers import lay_over
from lathe.sandbox.namespace.sandbox import NamespaceSandbox, T, machine
from lathe.sandbox.spec import SandboxSpec

if TYPE_CHECKING:
    from lathe.sandbox.landlock.backend import LandlockBackend


class LandlockSandbox(NamespaceSandbox):
    """Its working folder is a folder of this machine: `workdir` names it, and paths below the spec's workdir
    are understood as below that."""

    _backend: LandlockBackend  # type: ignore[assignment]

    def __init__(
        self,
        backend: LandlockBackend,
        name: str,
        spec: SandboxSpec,
        env: Mapping[str, str],
        folder: Path,
        uid: int | None,
    ):
        super().__init__(backend, name, spec, env)  # type: ignore[arg-type]
        self.folder = folder
        self.uid = uid
        self.workdir = str(folder / "work")

    def _place(self, path: str) -> str:
        """Where a path of the sandbox is on this machine."""
        inside = os.path.normpath(path)
        if any(inside == bind.path or inside.startswith(bind.path + "/") for bind in self.spec.binds):
            return path
        outer = os.path.normpath(self.spec.workdir)
        if inside == outer or inside.startswith(outer + "/"):
            return self.workdir + inside[len(outer) :]
        return path

    def _checked(
        self, command: str | Sequence[str], cwd: str | None, env: Mapping[str, str] | None
    ) -> tuple[list[str], str, dict[str, str]]:
        return super()._checked(command, cwd and self._place(cwd), env)

    async def _files(self, request: dict[str, Any], talk: Callable[[socket.socket], T]) -> T:
        return await super()._files({**request, "path": self._place(request["path"])}, talk)

    async def snapshot(self) -> str:
        """A copy of the working folder, whole, as an image."""
        with machine(f"a snapshot of sandbox {self.id}"):
            self._check()
            return await asyncio.to_thread(self._copy_to_image)

    def _copy_to_image(self) -> str:
        from lathe.sandbox.landlock.backend import give

        store = self._backend.images
        layer = Path(tempfile.mkdtemp(prefix="layer-", dir=store.root))
        try:
            layer.chmod(0o755)
            inner = layer / self.spec.workdir.strip("/")
            inner.mkdir(parents=True)
            lay_over(self.workdir, str(inner))
            if self.uid is not None:
                give(layer, 0)
            return store.adopt(layer, None)
        except BaseException:
            shutil.rmtree(layer, ignore_errors=True)
            raise

    async def fork(self) -> LandlockSandbox:
        """A cold sandbox with a copy of its folders."""
        with machine(f"a fork of sandbox {self.id}"):
            self._check()
            fresh = await self._backend.create(self.spec, warm=False)
            await asyncio.to_thread(self._copy_to, fresh)
            return fresh

    def _copy_to(self, other: LandlockSandbox) -> None:
        from lathe.sandbox.landlock.backend import give

        shutil.rmtree(other.folder / "work")
        (other.folder / "work").mkdir()
        lay_over(str(self.folder), str(other.folder))
        if other.uid is not None:
            give(other.folder, other.uid)

    async def quiet(self) -> None:
        """End its keeper and all of its processes; wait until that has happened."""
        shard, self.shard = self.shard, None
        if shard is not None and not shard.dead:
            await shard.ask({"op": "quiet"})
            await shard.close()

    async def hibernate(self) -> None:
        async with self._changing:
            self._check()
            await self.quiet()
