"""The place in which the agent's commands run: a sandbox around a person's project, or knowingly none."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from lathe.agent.host import Host
from lathe.agent.project import common_folder_of, git_folder_of, top_of
from lathe.errors import InfrastructureError, SandboxError, UserError
from lathe.sandbox.spec import Bind, Egress, Network, SandboxSpec
from lathe.types import Limits, Sandbox

# A person waits for their build: the limits only keep a mistake from taking the machine.
MEMORY_SHARE = 0.75
NUM_PROCESSES = 4096
DISK_BYTES = 16 << 30
# They name the Python environment that a person is in.
ACTIVE = ("VIRTUAL_ENV", "CONDA_PREFIX")


@dataclass(frozen=True)
class PlaceConfig:
    """What the sandbox sees and reaches. `folder` is where commands start; the repository around it is
    writable (see `project.top_of`). `allow` are further folders, writable; those in `show` can be read."""

    folder: Path
    network: Network | Egress = "none"
    backend: str = "auto"
    allow: tuple[Path, ...] = ()
    show: tuple[Path, ...] = ()
    is_sandboxed: bool = True


class Workplace:
    """Sandboxes over one project, made when they are needed. Use it in `async with`.

    Raises InfrastructureError, with what can be done about it, when this machine can't make one.
    """

    def __init__(self, config: PlaceConfig):
        self.config = config
        self._stack = AsyncExitStack()
        self._pool: Any = None
        self._boxes: dict[bool, Sandbox] = {}

    async def __aenter__(self) -> Workplace:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.forget()
        await self._stack.aclose()

    @property
    def description(self) -> str:
        """In a few words, for people."""
        if not self.config.is_sandboxed:
            return "no sandbox"
        backend = getattr(self._pool, "backend", None) or self.config.backend
        network = self.config.network
        reach = f"reaches {', '.join(network.allow)}" if isinstance(network, Egress) else f"network {network}"
        return f"sandbox {backend}, {reach}"

    async def sandbox(self, *, read_only: bool = False) -> Sandbox:
        """The sandbox of this project. `read_only`: another one, in which nothing of the project changes."""
        if not self.config.is_sandboxed:
            read_only = False  # nothing could keep it
            if False not in self._boxes:
                self._boxes[False] = Host(self.config.folder)
        if read_only not in self._boxes:
            try:
                pool = await self._open_pool()
                make_hooks_folder(top_of(self.config.folder))
                self._boxes[read_only] = await pool.create(spec_of(self.config, read_only=read_only))
            except SandboxError as error:
                raise InfrastructureError(f"{str(error).rstrip('.')}. {HOW_TO_GO_ON}") from error
        return self._boxes[read_only]

    async def forget(self) -> None:
        """Make new sandboxes the next time: these are gone."""
        boxes, self._boxes = self._boxes, {}
        for box in boxes.values():
            try:
                await box.close()
            except SandboxError:
                continue  # it is what we wanted

    async def _open_pool(self) -> Any:
        if self._pool is None:
            from lathe.sandbox.pool import open_pool

            backend: Any = self.config.backend  # the pool says what it doesn't know
            opened = open_pool(backend=backend, num_shards=1)
            self._pool = await self._stack.enter_async_context(opened)
        return self._pool


HOW_TO_GO_ON = (
    "lathe doctor says what this machine can do, and why not. To go on without a sandbox, knowing that "
    "commands then run as you, with all that you may do: --no-sandbox."
)


def spec_of(config: PlaceConfig, *, read_only: bool = False) -> SandboxSpec:
    """The project at its own path over this machine's programs; nothing else of the person's home."""
    top = top_of(config.folder)
    writable = not read_only
    binds = [Bind(str(top), str(top), writable)]
    binds += [Bind(str(path), str(path), writable) for path in config.allow]
    binds += [Bind(str(path), str(path), False) for path in config.show]
    binds += program_binds(os.environ, top)
    if writable:
        binds += git_binds(top)
    return SandboxSpec(
        workdir=str(config.folder),
        binds=tuple(binds),
        env=environment_of(os.environ),
        limits=Limits(
            memory_bytes=round(psutil.virtual_memory().total * MEMORY_SHARE),
            num_processes=NUM_PROCESSES,
            disk_bytes=DISK_BYTES,
            num_files=None,
            file_bytes=None,
        ),
        network=config.network,
        hostname="lathe",
    )


def git_binds(top: Path) -> list[Bind]:
    """The repository's git directory, with what git runs by itself out of reach: a hook or a setting that is
    written in the sandbox would be obeyed outside of it, the next time that the person calls git.

    The directory is mounted by itself, so that it can't be moved away and made anew.
    """
    git_folder = git_folder_of(top)
    if git_folder is None:
        return []
    common = common_folder_of(git_folder)
    binds = [Bind(str(common), str(common), True)]
    for place in (common, *(head.parent for head in common.glob("modules/*/HEAD"))):
        for name in ("hooks", "config"):
            guarded = place / name
            if guarded.exists() and not guarded.is_symlink():
                binds.append(Bind(str(guarded), str(guarded), False))
    return binds


def make_hooks_folder(top: Path) -> None:
    """What is not there can't be mounted, and could be made in the sandbox."""
    git_folder = git_folder_of(top)
    if git_folder is not None and (common_folder_of(git_folder) / "HEAD").is_file():
        (common_folder_of(git_folder) / "hooks").mkdir(exist_ok=True)


def environment_of(environment: Mapping[str, str]) -> dict[str, str]:
    """The person's PATH, so that a name means the same program, and behind it where this Python is. What is
    not visible in the sandbox is not found there."""
    path = environment.get("PATH", "")
    found = {"PATH": f"{path}:{sys.prefix}/bin" if path else f"{sys.prefix}/bin:{os.defpath}"}
    for name in ACTIVE:
        if environment.get(name):
            found[name] = environment[name]
    return found


def program_binds(environment: Mapping[str, str], top: Path) -> list[Bind]:
    """The Python environment that the person is in, wherever it lies: programs, and no secrets. With it the
    Python that it was made from, which often lies in a home."""
    folders: list[Path] = []
    for name in ACTIVE:
        place = Path(environment.get(name) or "/")
        if (place / "bin" / "python").exists():
            base = (place / "bin" / "python").resolve().parent.parent
            folders += [place.resolve(), base]
    seen = ("/usr", "/bin", "/lib", "/opt", str(top))
    wanted = [folder for folder in folders if not any(folder.is_relative_to(each) for each in seen)]
    home = Path.home().resolve()
    return [
        Bind(str(each), str(each), False) for each in dict.fromkeys(wanted) if not home.is_relative_to(each)
    ]


def parse_network(text: str) -> Network | Egress:
    """none, loopback, or egress:HOST[:PORT],… Raises UserError."""
    if text == "none":
        return "none"
    if text == "loopback":
        return "loopback"
    kind, _, hosts = text.partition(":")
    names = tuple(name.strip() for name in hosts.split(",") if name.strip())
    if kind == "egress" and names:
        return Egress(tuple(name if ":" in name else f"{name}:443" for name in names))
    raise UserError(f"{text} is no network: write none, loopback, or egress:HOST,... as in egress:pypi.org.")


def parse_folders(texts: Sequence[str]) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """PATH is writable, PATH:ro is not: the first and the second. Raises UserError."""
    writable: list[Path] = []
    readable: list[Path] = []
    for text in texts:
        name = text.removesuffix(":ro")
        path = Path(name).expanduser()
        try:
            path = path.resolve(strict=True)
        except OSError as error:
            raise UserError(f"--allow {text}: {name} can't be found: {error.strerror}.") from error
        (readable if text.endswith(":ro") else writable).append(path)
    return tuple(writable), tuple(readable)
