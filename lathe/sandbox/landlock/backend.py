"""The landlock backend: each sandbox is a folder of its own, and rules that keep its commands in there."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import stat
import subprocess
import sys
import uuid
from collections.abc import Callable, Coroutine
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lathe
from lathe.errors import BackendRefused, InfrastructureError, UserError
from lathe.sandbox.images import ImageStore
from lathe.sandbox.landlock.sandbox import LandlockSandbox
from lathe.sandbox.lifetimes import watch_lifetimes
from lathe.sandbox.namespace import wire
from lathe.sandbox.namespace.backend import PATH, can_map, check, host_paths
from lathe.sandbox.namespace.layers import delete, lay_over
from lathe.sandbox.namespace.shard import Shard
from lathe.sandbox.namespace.view import FIRST_UID
from lathe.sandbox.spec import SandboxSpec

START = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from lathe.sandbox.landlock.keeper import main; main(*sys.argv[2:])"
)
SYSTEM = ("/etc", "/proc")
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty")
START_TIMEOUT_S = 30.0
FOLDERS = ("work", "home", "tmp")


class Link(Shard):
    """The pool's side of one keeper."""

    def __init__(
        self,
        end: socket.socket,
        name: str,
        on_death: Callable[[str], None],
        is_infrastructure: Callable[[], bool],
    ):
        super().__init__(on_death)
        self._is_infrastructure = is_infrastructure  # whether its end is the machine's fault
        self._name = name
        self._loop = asyncio.get_running_loop()
        self._end = end
        self._end.setblocking(False)
        self._log_path = Path(os.devnull)
        self._null = os.open(os.devnull, os.O_RDONLY)
        self._futures[0] = self.ready = self._loop.create_future()
        self._loop.add_reader(self._end.fileno(), self._readable)

    async def close(self) -> None:
        """The keeper ends with its socket, and with it all that it started."""
        self._die("the sandbox sleeps or has ended")

    def _die(self, why: str) -> None:
        if self.dead:
            return
        if self._is_infrastructure():
            super()._die("the spawner of landlock sandboxes has ended")
        else:  # it slept, was closed, or an ordinary user's sandbox killed its own keeper
            for future in self._futures.values():
                if not future.done():
                    future.set_result({"gone": True})
            super()._die(why)
        self.on_death(self._name)


class LandlockBackend:
    """Copies trees instead of laying them over each other, and hides nothing that everybody may read."""

    name = "landlock"

    def __init__(self, state: Path, images: ImageStore):
        self.images = images
        self._state = state
        self._folder = state / "boxes"
        self._boxes: dict[str, LandlockSandbox] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._own_users = os.getuid() == 0 and can_map()
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Start the spawner. Raises BackendRefused where the machine refuses."""
        self._folder.mkdir(exist_ok=True)
        if self._own_users:  # sandboxes have users of their own, who must come through
            for folder in (self._state, self._folder):
                folder.chmod(0o711)
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        house = str(Path(lathe.__file__).parents[1])
        command = [sys.executable, "-I", "-S", "-B", "-c", START, house, str(theirs.fileno())]
        log = self._state / "landlock.log"
        with log.open("wb") as words:
            self._process = subprocess.Popen(  # noqa: ASYNC220
                command,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=words,
                cwd="/",
                env={},
                start_new_session=True,
            )
        theirs.close()
        self._control.settimeout(START_TIMEOUT_S)
        ready, _ = await asyncio.to_thread(wire.receive, self._control)
        if ready is None:
            raise BackendRefused(f"this machine refuses sandboxes by landlock: {log.read_text()[-1000:]}")

    async def create(self, spec: SandboxSpec, warm: bool = True) -> LandlockSandbox:
        """A new sandbox. Raises UserError for what landlock can't do."""
        check(spec)
        refuse_what_is_not_possible(spec)
        if not self.images.on_host(spec.image):
            raise UserError(f"image {spec.image} is a whole root, which the landlock backend can't go into")
        name = uuid.uuid4().hex[:12]
        folder = self._folder / name
        writable = [bind for bind in spec.binds if bind.writable]
        uid = None
        if self._own_users:
            owner = Path(writable[0].source).stat().st_uid if writable else None  # noqa: ASYNC240
            uid = random.randrange(FIRST_UID + 10_000, FIRST_UID + 60_000) if owner is None else owner
        await asyncio.to_thread(self._fill, folder, spec, uid)
        env = {
            "PATH": f"{sys.prefix}/bin:{PATH}",
            "HOME": str(folder / "home"),
            "TMPDIR": str(folder / "tmp"),
        }
        env |= {"LANG": "C.UTF-8", "TERM": "dumb", "USER": "sandbox"}
        box = LandlockSandbox(self, name, spec, env, folder, uid)
        self._boxes[name] = box
        if warm:
            await box.resume()
        watch_lifetimes(box, self._timers, lambda why: self._later(self.destroy(box, why)))
        return box

    def _fill(self, folder: Path, spec: SandboxSpec, uid: int | None) -> None:
        folder.mkdir()
        for each in FOLDERS:
            (folder / each).mkdir(mode=0o755)
        for layer in self.images.layers(spec.image) if spec.image else []:
            refuse_other_places(layer, spec)
            source = layer / spec.workdir.strip("/")
            if source.is_dir():
                lay_over(str(source), str(folder / "work"))
        drop_whiteouts(folder)
        if uid is not None:
            give(folder, uid)

    async def warm(self, box: LandlockSandbox) -> Link:
        """Start a keeper."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        binds = box.spec.binds
        limits = asdict(box.spec.limits)
        if box.uid is None and limits["num_processes"] is not None:
            limits["num_processes"] += num_processes(os.getuid())
        message = {
            "readable": [*SYSTEM, *host_paths(), *(each.source for each in binds if not each.writable)],
            "writable": [str(box.folder), *DEVICES, *(each.source for each in binds if each.writable)],
            "uid": box.uid,
            "limits": {**limits, "data_bytes": limits["memory_bytes"]},
        }
        try:
            wire.send(self._control, wire.pack(message), [theirs.fileno()])
        except OSError as error:
            ours.close()
            raise InfrastructureError(f"the spawner of landlock sandboxes is gone: {error}") from None
        finally:
            theirs.close()
        link = Link(ours, box.id, self._on_death, self._spawner_ended)
        answer = await asyncio.wait_for(link.ready, START_TIMEOUT_S)
        if "ready" not in answer:
            await link.close()
            raise InfrastructureError(f"a sandbox could not be made: {answer.get('refused', answer)}")
        box.is_grouped = True  # there are no control groups here
        return link

    def _spawner_ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def _on_death(self, name: str) -> None:
        box = self._boxes.get(name)
        if box is not None and box.shard is not None:  # else it only sleeps
            self._forget(box, "its first process was killed")

    def _forget(self, box: LandlockSandbox, why: str) -> None:
        if self._boxes.pop(box.id, None) is not None:
            box.gone = why
            for shell in list(box.shells):
                shell.drop()
            if (timer := self._timers.pop(box.id, None)) is not None:
                timer.cancel()
            self._later(asyncio.to_thread(delete, str(box.folder)))

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def destroy(self, box: LandlockSandbox, why: str) -> None:
        """End a sandbox."""
        if box.shard is not None and not box.shard.dead:
            await box.quiet()
        self._forget(box, why)

    async def group(self, box: LandlockSandbox, shard: Shard) -> None:
        """There are no control groups here."""

    def warm_python(self, spec: SandboxSpec) -> dict:
        """No Python stands ready."""
        return {}

    async def close(self) -> None:
        for box in list(self._boxes.values()):
            with contextlib.suppress(InfrastructureError):
                await self.destroy(box, "its pool is closed")
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._process is not None:
            self._control.close()
            await asyncio.to_thread(self._process.wait, 60)
            (self._state / "landlock.log").unlink(missing_ok=True)


def refuse_what_is_not_possible(spec: SandboxSpec) -> None:
    """Raises UserError: without namespaces there is no other network and no other place for a folder."""
    if spec.network != "none":
        raise UserError("the landlock backend has no network but none: use the namespace backend")
    for bind in spec.binds:
        if os.path.normpath(bind.source) != os.path.normpath(bind.path):
            raise UserError(
                f"the landlock backend can't show {bind.source} at {bind.path}, only at its own path"
            )


def refuse_other_places(layer: Path, spec: SandboxSpec) -> None:
    """Raises UserError for an image that has files outside of the working folder."""
    here = layer
    for part in spec.workdir.strip("/").split("/"):
        if others := [each.name for each in here.iterdir() if each.name != part]:
            raise UserError(
                f"image {spec.image} has {here.relative_to(layer) / others[0]} outside of {spec.workdir}: "
                "the landlock backend can only use what lies in the working folder"
            )
        here = here / part
        if not here.is_dir():
            return


def drop_whiteouts(folder: Path) -> None:
    """Remove the marks by which a layer says that a lower one's file is not there: in a copy, it isn't."""
    for _, _, files, fd in os.fwalk(folder):
        for name in files:
            if stat.S_ISCHR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
                os.unlink(name, dir_fd=fd)


def give(folder: Path, uid: int) -> None:
    """Make all of a tree somebody's, by descriptors: no link leads out of it."""
    for _, folders, files, fd in os.fwalk(folder):
        os.fchown(fd, uid, uid)
        for name in [*folders, *files]:
            os.chown(name, uid, uid, dir_fd=fd, follow_symlinks=False)


def num_processes(uid: int) -> int:
    """How many processes and threads a user has, who shares the limit with the sandbox."""
    total = 0
    for path in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if path.name.isdigit() and path.stat().st_uid == uid:
                total += sum(1 for _ in (path / "task").iterdir())
    return total
