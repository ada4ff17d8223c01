"""The namespace backend: shards of sandboxes, and what all of them share."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import uuid
from dataclasses import asdict
from pathlib import Path

from lathe.errors import InfrastructureError, UserError
from lathe.sandbox.images import ImageStore
from lathe.sandbox.namespace.sandbox import NamespaceSandbox
from lathe.sandbox.namespace.shard import Shard
from lathe.sandbox.spec import SandboxSpec

MAX_BOXES_PER_SHARD = 2000
SYSTEM_PATHS = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
VENV = "/opt/venv"


class NamespaceBackend:
    """Makes sandboxes in `num_shards` spawners; a dead one is replaced when the next sandbox needs it."""

    name = "namespace"

    def __init__(self, state: Path, images: ImageStore, num_shards: int):
        self.state = state
        self.images = images
        self.mapped = os.getuid() == 0
        self.host = host_paths()
        self._slots: list[Shard | None] = [None] * num_shards
        self._locks = [asyncio.Lock() for _ in range(num_shards)]
        self._boxes: dict[str, NamespaceSandbox] = {}
        self._counter = 0

    async def start(self) -> None:
        """Start the first spawner. Raises InfrastructureError where the machine refuses."""
        await self._shard(0)

    async def _shard(self, place: int) -> Shard:
        async with self._locks[place]:
            shard = self._slots[place]
            if shard is not None and not shard.dead:
                return shard
            if shard is not None:
                await shard.close()
            self._counter += 1
            fresh = Shard(f"shard-{self._counter}", self._on_death)
            root = self.state / "root"
            root.mkdir(exist_ok=True)
            await fresh.start(root, self.images.root / "layers", self.state, self.host, self.mapped)
            self._slots[place] = fresh
            return fresh

    def _on_death(self, name: str) -> None:
        box = self._boxes.pop(name, None)
        if box is not None:
            box.gone = "its first process was killed"
            box._shard.num_boxes -= 1

    async def create(self, spec: SandboxSpec) -> NamespaceSandbox:
        loads = [
            (0 if shard is None or shard.dead else shard.num_boxes, place)
            for place, shard in enumerate(self._slots)
        ]
        load, place = min(loads)
        if load >= MAX_BOXES_PER_SHARD:
            raise InfrastructureError(
                f"all {len(self._slots)} shards hold {MAX_BOXES_PER_SHARD} sandboxes: "
                "open the pool with more shards"
            )
        shard = await self._shard(place)
        name = uuid.uuid4().hex[:12]
        on_host = spec.image is None or self.images.on_host(spec.image)
        venv_home = self._venv_home(spec) if on_host else None
        box = {
            "name": name,
            "layers": self._layers(spec.image),
            "host": self._host_binds(venv_home) if on_host else [],
            "binds": [],
            "workdir": spec.workdir,
            "hostname": spec.hostname,
            "network": spec.network if isinstance(spec.network, str) else "loopback",
            "limits": {**asdict(spec.limits), "data_bytes": spec.limits.memory_bytes},
        }
        shard.num_boxes += 1
        try:
            answer = await shard.request({"op": "create", "box": box})
            if "fault" in answer:
                raise InfrastructureError(f"a sandbox could not be made: {answer['fault']}")
        except BaseException:
            shard.num_boxes -= 1
            raise
        path = f"{venv_home or sys.prefix}/bin:{PATH}" if on_host else PATH
        env = {"PATH": path, "HOME": "/root", "USER": "root", "LANG": "C.UTF-8", "TERM": "dumb"}
        made = NamespaceSandbox(self, shard, name, spec, env)
        self._boxes[name] = made
        return made

    async def destroy(self, box: NamespaceSandbox) -> None:
        if self._boxes.pop(box.id, None) is None:
            return
        box._shard.num_boxes -= 1
        with contextlib.suppress(InfrastructureError):  # with its spawner, the sandbox is gone, too
            await box._shard.request({"op": "destroy", "name": box.id})

    async def close(self) -> None:
        for box in self._boxes.values():
            box.gone = "its pool is closed"
        self._boxes.clear()
        for shard in self._slots:
            if shard is not None:
                await shard.close()
        with contextlib.suppress(OSError):
            (self.state / "root").rmdir()

    def _layers(self, image: str | None) -> list[str]:
        if image is None:
            return []
        views = []
        for layer in self.images.layers(image):
            store = "owned" if self.mapped and layer.stat().st_uid == 0 else "store"
            try:
                views.append(f"/{store}/{layer.relative_to(self.images.root / 'layers')}")
            except ValueError:
                raise UserError(
                    f"image {image}: its layer {layer} lies outside of {self.images.root}"
                ) from None
        return views

    def _venv_home(self, spec: SandboxSpec) -> str | None:
        """Where the running Python's virtual environment stands, None if it is none. A path inside the
        sandbox's working folder would show among the work's files: then it moves, and only its scripts' first
        lines miss it."""
        if sys.prefix == sys.base_prefix:
            return None
        return VENV if Path(sys.prefix).is_relative_to(spec.workdir) else sys.prefix

    def _host_binds(self, venv_home: str | None) -> list[tuple[str, str]]:
        return [
            (f"/host/{place}", venv_home if path == sys.prefix and venv_home else path)
            for place, path in enumerate(self.host)
        ]


def host_paths() -> list[str]:
    """The folders of this machine that its programs need: real ones, none inside another."""
    wanted = [path for path in SYSTEM_PATHS if Path(path).is_dir() and not Path(path).is_symlink()]
    wanted += [os.path.realpath(sys.base_prefix), sys.prefix]
    kept: list[str] = []
    for path in wanted:
        if not any(Path(path).is_relative_to(each) for each in kept):
            kept.append(path)
    return kept
