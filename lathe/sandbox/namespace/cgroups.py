"""Limits on all processes of a sandbox together, by control groups of either version, where this process may
make them.

Only commands are in the group, not the sandbox's first process: what runs out of memory is a command. A group
costs memory of the kernel's and, in version 1, milliseconds to join; so a sandbox gets one at its first
command.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from lathe.types import Limits

CPU_PERIOD_US = 100_000
WANTED = ("memory", "pids", "cpu")


@dataclass
class Hierarchy:
    """A mounted tree of groups, the pool's own group in it, and the controllers that can be set there."""

    folder: Path
    controllers: tuple[str, ...]
    version: int


class Cgroups:
    """The groups of a pool's sandboxes."""

    def __init__(self, hierarchies: list[Hierarchy]):
        self._hierarchies = hierarchies

    @property
    def controllers(self) -> tuple[str, ...]:
        """Which of memory, pids and cpu can be limited for a whole sandbox."""
        return tuple(each for hierarchy in self._hierarchies for each in hierarchy.controllers)

    def create(self, name: str, limits: Limits) -> list[int]:
        """Make a sandbox's groups. Descriptors of the files into which a process writes itself to join.

        Empty when the limits ask for nothing. Raises OSError.
        """
        descriptors: list[int] = []
        try:
            for hierarchy in self._hierarchies:
                settings = [
                    setting
                    for controller in hierarchy.controllers
                    for setting in _settings(controller, hierarchy.version, limits)
                ]
                if settings:
                    folder = hierarchy.folder / name
                    folder.mkdir()
                    for file, value in settings:
                        (folder / file).write_text(value)
                    descriptors.append(os.open(folder / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC))
        except BaseException:
            for fd in descriptors:
                os.close(fd)
            self.delete(name)
            raise
        return descriptors

    def delete(self, name: str) -> None:
        """Remove a sandbox's groups, whose processes are ending. Blocks until they have."""
        for hierarchy in self._hierarchies:
            _remove(hierarchy.folder / name)

    def close(self) -> None:
        for hierarchy in self._hierarchies:
            with contextlib.suppress(OSError):
                for child in hierarchy.folder.iterdir():
                    if child.is_dir():
                        _remove(child)
            _remove(hierarchy.folder)


def _settings(controller: str, version: int, limits: Limits) -> list[tuple[str, str]]:
    """The files to write for a limit, and what."""
    if controller == "memory" and limits.memory_bytes is not None:
        name = "memory.max" if version == 2 else "memory.limit_in_bytes"
        return [(name, str(limits.memory_bytes))]
    if controller == "pids" and limits.num_processes is not None:
        return [("pids.max", str(limits.num_processes + 1))]  # and the one that starts them
    if controller == "cpu" and limits.num_cpus is not None:
        quota = max(1000, round(limits.num_cpus * CPU_PERIOD_US))
        if version == 2:
            return [("cpu.max", f"{quota} {CPU_PERIOD_US}")]
        return [("cpu.cfs_period_us", str(CPU_PERIOD_US)), ("cpu.cfs_quota_us", str(quota))]
    return []


def _remove(folder: Path, limit_s: float = 10.0) -> None:
    deadline = time.monotonic() + limit_s
    while True:
        try:
            folder.rmdir()
            return
        except FileNotFoundError:
            return
        except OSError:  # busy: its last process is on its way out
            if time.monotonic() > deadline:
                return
            time.sleep(0.002)


def find_cgroups() -> tuple[Cgroups, str]:
    """A pool's groups, made in every hierarchy in which that is allowed; and in words why what is missing is
    so."""
    name = f"lathe-{os.getpid()}-{uuid.uuid4().hex[:6]}"
    found, missing, taken = [], [], set()
    for folder, controllers, version in _mounted():
        fresh = tuple(each for each in controllers if each not in taken)
        if not fresh:
            continue
        _remove_orphans(folder)
        try:
            (folder / name).mkdir()
        except OSError as error:
            missing.append(f"{'+'.join(fresh)}: {error.strerror}")
            continue
        found.append(Hierarchy(folder / name, fresh, version))
        taken |= set(fresh)
    unknown = [each for each in WANTED if each not in taken and not any(each in text for text in missing)]
    missing += [f"{each}: not mounted or not delegated" for each in unknown]
    return Cgroups(found), "; ".join(missing)


def _remove_orphans(folder: Path) -> None:
    """Remove empty groups of pools whose process was killed. (A group with processes can't be removed.)"""
    for orphan in folder.glob("lathe-*-*"):
        owner = orphan.name.split("-")[1]
        if owner.isdigit() and not Path("/proc", owner).exists():
            for group in [*orphan.glob("*/"), orphan]:
                with contextlib.suppress(OSError):
                    group.rmdir()


def _mounted() -> list[tuple[Path, tuple[str, ...], int]]:
    """This process's own group in each mounted hierarchy, with the controllers of interest that it offers."""
    own = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        own[names] = path
    result = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        root, mount_point = fields.split()[3:5]
        kind, _, options = rest.split(" ", 2)
        if kind == "cgroup":
            controllers = tuple(each for each in WANTED if each in options.split(","))
            for names, path in own.items():
                if set(names.split(",")) & set(controllers):
                    result.append((_below(mount_point, root, path), controllers, 1))
        elif kind == "cgroup2":
            folder = _below(mount_point, root, own.get("", "/"))
            with contextlib.suppress(OSError):
                result.append((folder, _delegated(folder), 2))
    return result


def _below(mount_point: str, root: str, path: str) -> Path:
    inside = path.removeprefix(root.rstrip("/")) if root != "/" else path
    return Path(mount_point) / inside.lstrip("/")


def _delegated(folder: Path) -> tuple[str, ...]:
    """The controllers of a version 2 group that its children get; those that aren't passed on are asked
    for."""
    offered = (folder / "cgroup.controllers").read_text().split()
    for each in WANTED:
        if each in offered:
            with contextlib.suppress(OSError):  # refused where the group itself has processes
                (folder / "cgroup.subtree_control").write_text(f"+{each}")
    passed_on = (folder / "cgroup.subtree_control").read_text().split()
    return tuple(each for each in WANTED if each in passed_on)
