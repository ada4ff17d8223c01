"""A pool over many machines: `async with open_fleet("auto") as fleet: box = await fleet.create(spec)`.

It has the face of `pool.Pool`, so that rollouts and verdicts don't know where their sandboxes are. Ray
(the extra `cluster`) brings the machines together and carries the calls.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import tempfile
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lathe.errors import InfrastructureError, MissingExtra, SandboxGone, UserError
from lathe.sandbox.fleet.node import NodeAgent, NodeStats, pack, pack_image, unpack
from lathe.sandbox.images import ImageStore
from lathe.sandbox.pool import BackendName
from lathe.sandbox.spec import SandboxSpec
from lathe.types import ExecResult, FileInfo

LEASE_S = 60.0
STATS_EVERY_S = 2.0
CONNECT_TIMEOUT_S = 5.0


@dataclass
class Node:
    """A machine: its agent, and what was last heard of it. `num_placed` are sandboxes since then."""

    id: str
    agent: Any
    stats: NodeStats
    num_placed: int = 0
    lost: str | None = None


class Fleet:
    """The machines, and the choice among them: where an image's layers lie, then where most is idle."""

    def __init__(self, nodes: list[Node], images: ImageStore, lost_errors: tuple[type[Exception], ...]):
        self.images = images
        self._nodes = nodes
        self._lost_errors = lost_errors
        self._owner = uuid.uuid4().hex
        self._moving: dict[tuple[str, str], asyncio.Task[None]] = {}

    @property
    def backend(self) -> str:
        return f"fleet of {sum(node.lost is None for node in self._nodes)}"

    @property
    def nodes(self) -> list[Node]:
        return list(self._nodes)

    def choose(self, image: str | None) -> Node:
        """Raises InfrastructureError when no machine is left."""
        alive = [node for node in self._nodes if node.lost is None]
        if not alive:
            reasons = "; ".join(f"{node.stats.host}: {node.lost}" for node in self._nodes)
            raise InfrastructureError(f"the fleet has no machine left ({reasons})")

        def cost(node: Node) -> tuple[bool, float]:
            stats = node.stats
            return (
                image is not None and image not in stats.images,
                (stats.load + node.num_placed) / stats.num_cpus,
            )

        return min(alive, key=cost)

    async def create(self, spec: SandboxSpec | None = None, *, warm: bool = True) -> FleetSandbox:
        """A new sandbox on one of the machines. One that is lost meanwhile is passed over."""
        spec = spec or SandboxSpec()
        if spec.binds:
            raise UserError("a sandbox of a fleet can't show folders of this machine: make an image of them")
        while True:
            node = self.choose(spec.image)
            try:
                return await self._create_on(node, spec, warm)
            except InfrastructureError:
                if node.lost is None:
                    raise

    async def _create_on(self, node: Node, spec: SandboxSpec, warm: bool) -> FleetSandbox:
        if spec.image is not None and spec.image not in node.stats.images:
            await self._bring(spec.image, node)
        name = uuid.uuid4().hex[:12]
        node.num_placed += 1
        workdir = await self.ask(node, "create", name, self._owner, spec, warm)
        return FleetSandbox(self, node, name, spec, workdir)

    async def ask(self, node: Node, method: str, *args: Any) -> Any:
        """One call of an agent. Raises InfrastructureError when its machine is lost, and remembers that."""
        if node.lost is not None:
            raise InfrastructureError(f"machine {node.stats.host} is lost: {node.lost}")
        try:
            return await getattr(node.agent, method).remote(*args)
        except self._lost_errors as error:
            node.lost = str(error).strip().splitlines()[0]
            raise InfrastructureError(f"machine {node.stats.host} was lost: {node.lost}") from error
        except Exception as error:
            cause = getattr(error, "cause", None)  # Ray wraps what was raised there
            if isinstance(cause, Exception):
                raise cause from None
            raise

    async def call(self, node: Node, name: str, method: str, *args: Any, **kwargs: Any) -> Any:
        return await self.ask(node, "call", name, self._owner, method, args, kwargs)

    async def _bring(self, image: str, node: Node) -> None:
        """Have an image's layers on a machine: once, however many wait for them."""
        key = (image, node.id)
        if key not in self._moving:
            self._moving[key] = asyncio.create_task(self._move(image, node))
        try:
            await asyncio.shield(self._moving[key])
        finally:
            if self._moving.get(key) is not None and self._moving[key].done():
                self._moving.pop(key)

    async def _move(self, image: str, node: Node) -> None:
        holders = [each for each in self._nodes if each.lost is None and image in each.stats.images]
        if self.images.has(image):
            packed = await asyncio.to_thread(pack_image, self.images.root, image, self.images.layers(image))
        elif holders:
            packed = await self.ask(holders[0], "image_out", image)
        else:
            raise InfrastructureError(f"no machine of the fleet has the image {image} any more")
        await self.ask(node, "image_in", packed)
        node.stats = await self.ask(node, "stats")

    async def look_around(self) -> None:
        """Ask every machine how it is, and renew what is held there."""

        async def look(node: Node) -> None:
            with contextlib.suppress(InfrastructureError):
                await self.ask(node, "renew", self._owner)
                node.stats, node.num_placed = await self.ask(node, "stats"), 0

        await asyncio.gather(*(look(node) for node in self._nodes if node.lost is None))

    async def close(self) -> None:
        for node in self._nodes:
            if node.lost is None:
                with contextlib.suppress(InfrastructureError):
                    await self.ask(node, "release", self._owner)


class FleetSandbox:
    """A sandbox on another machine. It implements types.Sandbox; `on_output` hears all output at the end.

    When its machine is lost before anything was done in it, it is made anew elsewhere; afterwards, what it
    held is lost, and every call raises InfrastructureError.
    """

    def __init__(self, fleet: Fleet, node: Node, name: str, spec: SandboxSpec, workdir: str):
        self.id = name
        self.workdir = workdir
        self._fleet = fleet
        self._node = node
        self._spec = spec
        self._is_fresh = True

    @property
    def host(self) -> str:
        """The machine on which it is."""
        return self._node.stats.host

    async def _do(self, ask: Callable[[Node, str], Awaitable[Any]]) -> Any:
        was_fresh = self._is_fresh
        try:
            result = await ask(self._node, self.id)
        except InfrastructureError:
            if self._node.lost is None or not was_fresh:
                raise
            again = await self._fleet.create(self._spec)
            self.id, self._node = again.id, again._node
            result = await ask(self._node, self.id)
        self._is_fresh = False
        return result

    async def _call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return await self._do(lambda node, name: self._fleet.call(node, name, method, *args, **kwargs))

    async def exec(
        self,
        command: str | Sequence[str],
        *,
        on_output: Callable[[Literal["stdout", "stderr"], bytes], None] | None = None,
        **options: Any,
    ) -> ExecResult:
        result: ExecResult = await self._call("exec", command, **options)
        if on_output is not None:
            on_output("stdout", result.stdout.encode())
            on_output("stderr", result.stderr.encode())
        return result

    async def python(self, code: str, **options: Any) -> ExecResult:
        return await self._call("python", code, **options)

    async def start(self, command: str | Sequence[str], **options: Any) -> FleetProcess:
        return FleetProcess(self, await self._call("start", command, **options))

    async def shell(self, *, cwd: str | None = None, env: Mapping[str, str] | None = None) -> FleetShell:
        return FleetShell(self, await self._call("shell", cwd=cwd, env=env))

    async def read(self, path: str, *, max_bytes: int = 16 << 20) -> bytes:
        return await self._call("read", path, max_bytes=max_bytes)

    async def write(self, path: str, data: str | bytes, *, mode: int | None = None) -> None:
        await self._call("write", path, data, mode=mode)

    async def list(self, path: str = ".") -> list[FileInfo]:
        return await self._call("list", path)

    async def upload(self, source: Path, path: str) -> None:
        packed = await asyncio.to_thread(pack, source)
        fleet = self._fleet
        await self._do(lambda node, name: fleet.ask(node, "upload", name, fleet._owner, packed, path))

    async def download(self, path: str, target: Path) -> None:
        fleet = self._fleet
        packed = await self._do(lambda node, name: fleet.ask(node, "download", name, fleet._owner, path))
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            await asyncio.to_thread(unpack, packed, Path(folder))
            (Path(folder) / "it").rename(target)

    async def snapshot(self) -> str:
        """An image on this sandbox's machine. Other machines get it when a sandbox is to start from it."""
        image: str = await self._call("snapshot")
        self._node.stats = await self._fleet.ask(self._node, "stats")
        return image

    async def fork(self) -> FleetSandbox:
        made = FleetSandbox(self._fleet, self._node, await self._call("fork"), self._spec, self.workdir)
        made._is_fresh = False
        return made

    async def hibernate(self) -> None:
        await self._call("hibernate")

    async def resume(self) -> None:
        await self._call("resume")

    async def close(self) -> None:
        with contextlib.suppress(SandboxGone, InfrastructureError):
            await self._fleet.call(self._node, self.id, "close")


class FleetProcess:
    """A background command on another machine. It implements types.Process, but for `output`, which waits."""

    def __init__(self, box: FleetSandbox, name: str):
        self._box = box
        self._name = name

    async def wait(self, timeout_s: float | None = None) -> ExecResult:
        return await self._ask("wait", timeout_s)

    async def output(self) -> tuple[str, str]:
        return await self._ask("output")

    async def kill(self) -> None:
        await self._ask("kill")

    async def _ask(self, method: str, *args: Any) -> Any:
        return await self._box._fleet.call(self._box._node, self._name, method, *args)


class FleetShell:
    """A shell on another machine. It implements types.Shell."""

    def __init__(self, box: FleetSandbox, name: str):
        self._box = box
        self._name = name

    async def run(self, line: str, *, timeout_s: float | None = 120.0) -> ExecResult:
        return await self._box._fleet.call(self._box._node, self._name, "run", line, timeout_s=timeout_s)

    async def close(self) -> None:
        await self._box._fleet.call(self._box._node, self._name, "close")


@asynccontextmanager
async def open_fleet(
    address: str = "auto",
    *,
    backend: BackendName = "auto",
    images: Path | None = None,
    num_shards: int | None = None,
    lease_s: float = LEASE_S,
) -> AsyncIterator[Fleet]:
    """A fleet on the Ray cluster at `address`: an agent on each of its machines, until the block ends.

    `backend` and `num_shards` are the pools' on those machines. `images` is the folder of an ImageStore here,
    from which the fleet brings them what they need. A sandbox ends `lease_s` after this process was last
    heard of. Raises UserError when there is no cluster, or none of its machines can hold sandboxes.
    """
    try:
        import ray
        from ray.exceptions import ActorDiedError, ActorUnavailableError, NodeDiedError
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
    except ImportError:
        raise MissingExtra("cluster") from None
    began = not ray.is_initialized()
    if began:
        await _check_reachable(address)
        try:
            await asyncio.to_thread(
                ray.init, address=address, log_to_driver=False, logging_level=logging.ERROR
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UserError(
                f"There is no Ray cluster at {address!r} ({error}). `ray start --head` begins one."
            ) from error
    lost = (ActorDiedError, ActorUnavailableError, NodeDiedError)
    actor = ray.remote(NodeAgent)
    nodes: list[Node] = []
    refused: list[str] = []
    looking: asyncio.Task[None] | None = None
    with tempfile.TemporaryDirectory() as folder:
        fleet = Fleet(nodes, ImageStore(images or Path(folder)), lost)
        try:
            for each in ray.nodes():
                if not each["Alive"]:
                    continue
                where = NodeAffinitySchedulingStrategy(each["NodeID"], soft=False)
                agent = actor.options(num_cpus=0, max_concurrency=10_000, scheduling_strategy=where).remote(
                    backend, num_shards, lease_s
                )
                node = Node(each["NodeID"], agent, NodeStats(each["NodeManagerHostname"], 1, 0.0, 0, 0))
                try:
                    node.stats = await fleet.ask(node, "open")
                    nodes.append(node)
                except Exception as error:
                    refused.append(f"{node.stats.host}: {error}")
            if not nodes:
                raise UserError(f"No machine of the cluster can hold sandboxes. {'; '.join(refused)}")
            looking = asyncio.create_task(_look_around(fleet, min(STATS_EVERY_S, lease_s / 4)))
            yield fleet
        finally:
            if looking is not None:
                looking.cancel()
            await fleet.close()
            for node in nodes:
                with contextlib.suppress(InfrastructureError):
                    await fleet.ask(node, "close")
                ray.kill(node.agent)
            if began:
                ray.shutdown()


async def _check_reachable(address: str) -> None:
    """Ray itself waits for minutes where nobody listens."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(host, int(port)), CONNECT_TIMEOUT_S)
        writer.close()
    except (OSError, TimeoutError) as error:
        raise UserError(
            f"There is no Ray cluster at {address} ({error or 'no answer'}). `ray start --head` begins one."
        ) from error


async def _look_around(fleet: Fleet, every_s: float) -> None:
    while True:
        await asyncio.sleep(every_s)
        await fleet.look_around()
