"""The namespace backend: shards of sandboxes, the layers that sandboxes share, and their lifetimes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from lathe.errors import InfrastructureError, SandboxGone, UserError
from lathe.sandbox import egress
from lathe.sandbox.images import ImageStore
from lathe.sandbox.lifetimes import watch_lifetimes
from lathe.sandbox.namespace.cgroups import Cgroups, find_cgroups
from lathe.sandbox.namespace.layers import delete
from lathe.sandbox.namespace.sandbox import NamespaceSandbox
from lathe.sandbox.namespace.shard import Shard
from lathe.sandbox.namespace.tree import receive_answer
from lathe.sandbox.namespace.view import FIRST_UID, NUM_UIDS
from lathe.sandbox.spec import Egress, SandboxSpec

MAX_BOXES_PER_SHARD = 2000
MAX_OWN_LAYERS = 40  # an overlay's options must fit a page of 4,096 bytes
SYSTEM_PATHS = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
VENV = "/opt/venv"


class NamespaceBackend:
    """Makes sandboxes in `num_shards` spawners; a dead one is replaced when the next sandbox needs it."""

    name = "namespace"

    def __init__(self, state: Path, images: ImageStore, num_shards: int, use_cgroups: bool = True):
        self.images = images
        self._state = state
        self._mapped = os.getuid() == 0 and can_map()
        self._host = host_paths()
        self._slots: list[Shard | None] = [None] * num_shards
        self._locks = [asyncio.Lock() for _ in range(num_shards)]
        self._boxes: dict[str, NamespaceSandbox] = {}
        self._layer_users: Counter[str] = Counter()
        self._num_started = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._folder = state / "boxes"
        self._cgroups, self.missing_cgroups = (
            find_cgroups() if use_cgroups else (Cgroups([]), "not asked for")
        )

    async def start(self) -> None:
        """Start the first spawner. Raises InfrastructureError where the machine refuses."""
        for name in ("boxes", "root"):
            (self._state / name).mkdir(exist_ok=True)
        self._folder.chmod(0o711)  # sandboxes go through it as nobody's user
        await self._shard(0)

    async def _shard(self, place: int) -> Shard:
        async with self._locks[place]:
            shard = self._slots[place]
            if shard is not None and not shard.dead:
                return shard
            if shard is not None:
                await shard.close()
            self._num_started += 1
            fresh = Shard(self._on_death)
            log = self._state / f"spawner-{self._num_started}.log"
            layers = self.images.root / "layers"
            await fresh.start(self._state / "root", layers, self._folder, log, self._host, self._mapped)
            self._slots[place] = fresh
            return fresh

    def _on_death(self, name: str) -> None:
        box = self._boxes.get(name)
        if box is not None:
            self._forget(box, "its first process was killed")

    async def create(self, spec: SandboxSpec, warm: bool = True) -> NamespaceSandbox:
        """A new sandbox; a cold one is only noted, and mounted at its first use."""
        check(spec)
        on_host = self.images.on_host(spec.image)
        path = f"{self._venv(spec) or sys.prefix}/bin:{PATH}" if on_host else PATH
        env = {"HOME": "/root", "USER": "root", "LANG": "C.UTF-8", "TERM": "dumb"}
        env |= self.images.env(spec.image, path)
        if isinstance(spec.network, Egress):
            env |= egress.environment(spec.network)
        box = NamespaceSandbox(self, uuid.uuid4().hex[:12], spec, env)
        self._boxes[box.id] = box
        if warm:
            try:
                await box.resume()
            except BaseException:
                await self.destroy(box, "it could not be made")
                raise
        watch_lifetimes(box, self._timers, lambda why: self._later(self.destroy(box, why)))
        return box

    async def warm(self, box: NamespaceSandbox) -> Shard:
        """Mount a cold sandbox in the shard that has the fewest."""
        loads = [0 if shard is None or shard.dead else shard.num_boxes for shard in self._slots]
        place = loads.index(min(loads))
        if loads[place] >= MAX_BOXES_PER_SHARD:
            raise InfrastructureError(
                f"all {len(loads)} shards hold {MAX_BOXES_PER_SHARD} warm sandboxes: "
                "open the pool with more shards, or let some hibernate"
            )
        shard = await self._shard(place)
        shard.num_boxes += 1
        try:
            making = shard.request({"op": "create", "box": self._describe(box)})
        except BaseException:
            shard.num_boxes -= 1
            raise
        try:
            answer = await asyncio.shield(making)
        except asyncio.CancelledError:
            self._later(self._undo(making, box, shard))
            raise
        except BaseException:
            shard.num_boxes -= 1
            raise
        if "fault" in answer:
            shard.num_boxes -= 1
            raise InfrastructureError(f"a sandbox could not be made: {answer['fault']}")
        box.is_grouped = not self._cgroups.controllers
        if isinstance(box.spec.network, Egress) and not box.gone:
            try:
                await self._open_egress(box, shard, box.spec.network)
            except BaseException:
                await self.cool(box, shard)
                raise
        if box.gone:  # closed meanwhile
            await self.cool(box, shard)
        return shard

    async def _open_egress(self, box: NamespaceSandbox, shard: Shard, network: Egress) -> None:
        """Serve, from outside, the ports that a sandbox reaches this machine and its proxy by."""
        proxy_port, local = egress.ports(network)
        request: dict = {"op": "files", "name": box.id, "cwd": "/", "path": "its network"}
        request |= {"what": "listen", "ports": [proxy_port, *local]}
        listeners = await shard.talk(request, lambda end: egress.receive_listeners(end, len(local) + 1))
        box.proxy = egress.EgressProxy(network)
        await box.proxy.serve(listeners, proxy_port)

    async def _undo(self, making: asyncio.Future[dict], box: NamespaceSandbox, shard: Shard) -> None:
        """Nobody waits for this sandbox any more."""
        with contextlib.suppress(InfrastructureError):
            await making
        await self.cool(box, shard)

    def _describe(self, box: NamespaceSandbox) -> dict:
        spec = box.spec
        limits = asdict(spec.limits)
        if limits["disk_bytes"] is not None:  # what it has written already, within bounds that keep it usable
            limits["disk_bytes"] = max(limits["disk_bytes"] - box.frozen_bytes, limits["disk_bytes"] // 8)
        return {
            "name": box.id,
            "layers": self._layers(spec.image) + [f"/boxes/{name}" for name in box.layers],
            "host": self._host_binds(spec) if self.images.on_host(spec.image) else [],
            "binds": [asdict(bind) for bind in spec.binds],
            "workdir": spec.workdir,
            "hostname": spec.hostname,
            "network": spec.network if isinstance(spec.network, str) else "loopback",
            "limits": {**limits, "data_bytes": limits["memory_bytes"]},
        }

    async def group(self, box: NamespaceSandbox, shard: Shard) -> None:
        """Have the commands of a warm sandbox start in control groups of its own."""
        try:
            groups = self._cgroups.create(box.id, box.spec.limits)
        except OSError as error:
            raise InfrastructureError(f"sandbox {box.id} got no control group: {error}") from error
        box.has_groups = bool(groups)
        if groups:
            await shard.ask({"op": "launch", "name": box.id}, groups)
        box.is_grouped = True

    async def cool(self, box: NamespaceSandbox, shard: Shard) -> None:
        """End a warm sandbox's processes and unmount it."""
        shard.num_boxes -= 1
        if box.proxy is not None:
            box.proxy.close()
            box.proxy = None
        with contextlib.suppress(InfrastructureError, SandboxGone):  # with its spawner, it has ended, too
            await shard.ask({"op": "destroy", "name": box.id})
        if box.has_groups:
            box.has_groups = False
            await asyncio.to_thread(self._cgroups.delete, box.id)

    async def destroy(self, box: NamespaceSandbox, why: str) -> None:
        shard = box.shard
        if self._forget(box, why) and shard is not None:
            shard.num_boxes += 1  # which `cool` takes back
            await self.cool(box, shard)

    def _forget(self, box: NamespaceSandbox, why: str) -> bool:
        """Strike a sandbox off the list. Whether it was on it."""
        if self._boxes.pop(box.id, None) is None:
            return False
        box.gone = why
        if box.proxy is not None:
            box.proxy.close()
        if box.shard is not None:
            box.shard.num_boxes -= 1
        if (timer := self._timers.pop(box.id, None)) is not None:
            timer.cancel()
        for shell in box.shells:
            shell.drop()
        for name in box.layers:
            self._drop(name)
        box.layers = []
        return True

    def _later(self, work) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def new_layer(self) -> str:
        """An empty folder for what a sandbox wrote. It has one user."""
        name = uuid.uuid4().hex[:12]
        (self._folder / name).mkdir()
        self._layer_users[name] += 1
        return name

    def delete_layer(self, name: str) -> None:
        self._drop(name)

    def _drop(self, name: str) -> None:
        self._layer_users[name] -= 1
        if self._layer_users[name] <= 0:
            del self._layer_users[name]
            self._later(asyncio.to_thread(delete, str(self._folder / name)))

    async def branch(
        self, box: NamespaceSandbox, above: Sequence[str], num_bytes: int = 0
    ) -> NamespaceSandbox:
        """A cold sandbox with the layers of another, and some above them, which it owns already."""
        fresh = await self.create(box.spec, warm=False)
        self._layer_users.update(box.layers)
        fresh.layers = [*box.layers, *above]
        fresh.frozen_bytes = box.frozen_bytes + num_bytes
        await self.thin(fresh)
        return fresh

    async def adopt(self, box: NamespaceSandbox, name: str) -> str:
        """Make an image of a sandbox's image, its own layers and a fresh one."""
        into = name
        if box.layers:
            into = self.new_layer()
            try:
                await self._merge([*box.layers, name], into)
            finally:
                self._drop(name)
        del self._layer_users[into]
        return await asyncio.to_thread(self.images.adopt, self._folder / into, box.spec.image)

    async def thin(self, box: NamespaceSandbox) -> None:
        """Make one layer of a cold sandbox's own when they are too many to mount."""
        if len(box.layers) <= MAX_OWN_LAYERS:
            return
        into = self.new_layer()
        await self._merge(box.layers, into)
        for name in box.layers:
            self._drop(name)
        box.layers = [into]

    async def _merge(self, layers: Sequence[str], into: str) -> None:
        shard = await self._shard(0)
        sources = [f"/boxes/{name}" for name in layers]
        await shard.talk({"op": "merge", "layers": sources, "into": into}, receive_answer)

    async def close(self) -> None:
        for box in list(self._boxes.values()):
            self._forget(box, "its pool is closed")
        for shard in self._slots:
            if shard is not None:
                await shard.close()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await asyncio.to_thread(self._cgroups.close)
        for name in ("boxes", "root"):
            with contextlib.suppress(OSError):
                (self._state / name).rmdir()

    def _layers(self, image: str | None) -> list[str]:
        if image is None:
            return []
        views: list[str] = []
        for layer in self.images.layers(image):
            try:
                store = "owned" if self._mapped and layer.stat().st_uid == 0 else "store"
                views.append(f"/{store}/{layer.relative_to(self.images.root / 'layers')}")
            except ValueError:
                raise UserError(
                    f"image {image}: its layer {layer} lies outside of {self.images.root}"
                ) from None
            except OSError as error:
                raise InfrastructureError(f"image {image}: no overlay without its layer: {error}") from None
        return views

    def _venv(self, spec: SandboxSpec) -> str | None:
        """Where the running Python's virtual environment stands inside, None if it is none.

        Inside the sandbox's working folder it would show among the work's files: then it stands elsewhere,
        and only its scripts' first lines miss it.
        """
        if sys.prefix == sys.base_prefix:
            return None
        return VENV if Path(sys.prefix).is_relative_to(spec.workdir) else sys.prefix

    def warm_python(self, spec: SandboxSpec) -> dict:
        """What a spawner must know to run Python from a process that is warm: nothing where an image brings
        its own."""
        if not self.images.on_host(spec.image):
            return {}
        venv = self._venv(spec)
        return {"is_python": True, **({"venv": [sys.prefix, venv]} if venv else {})}

    def _host_binds(self, spec: SandboxSpec) -> list[tuple[str, str]]:
        venv = self._venv(spec)
        return [
            (f"/host/{place}", venv if venv and path == sys.prefix else path)
            for place, path in enumerate(self._host)
        ]


def check(spec: SandboxSpec) -> None:
    """Raise UserError for what no sandbox can be made of."""
    if isinstance(spec.network, Egress):
        egress.parse(spec.network)
    elif spec.network not in ("none", "loopback"):
        raise UserError(f"a network is none, loopback or Egress, not {spec.network!r}")
    for what, path in [("workdir", spec.workdir), *(("a bind's path", bind.path) for bind in spec.binds)]:
        if not path.startswith("/") or ".." in path.split("/") or "\0" in path:
            raise UserError(f"{what} must be an absolute path inside the sandbox, not {path!r}")
    for bind in spec.binds:
        if not Path(bind.source).is_absolute() or not Path(bind.source).exists():
            raise UserError(
                f"there is no {bind.source!r} on this machine to show in a sandbox (say its whole path)"
            )
    if not spec.hostname or len(spec.hostname.encode()) > 64 or "\0" in spec.hostname:
        raise UserError(f"a host name has 1 to 64 bytes, not {spec.hostname!r}")


def can_map() -> bool:
    """Whether sandboxes can have users of their own: a root inside a container may own too few."""
    rows = [tuple(map(int, line.split())) for line in Path("/proc/self/uid_map").read_text().splitlines()]
    return any(first <= FIRST_UID and first + count >= FIRST_UID + NUM_UIDS for first, _, count in rows)


def host_paths() -> list[str]:
    """The folders of this machine that its programs need: real ones, none inside another."""
    wanted = [path for path in SYSTEM_PATHS if Path(path).is_dir() and not Path(path).is_symlink()]
    wanted += [os.path.realpath(sys.base_prefix), sys.prefix]
    kept: list[str] = []
    for path in wanted:
        if not any(Path(path).is_relative_to(each) for each in kept):
            kept.append(path)
    return kept
