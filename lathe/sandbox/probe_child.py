"""The part of the probe that runs in a process of its own: each attempt in a fork of that."""

from __future__ import annotations

import ctypes
import json
import os
import sys
from functools import partial
from pathlib import Path

from lathe.sandbox.namespace import syscalls as sys_
from lathe.sandbox.namespace.view import write_maps

NAMESPACES = {
    "user": 0,
    "pid": sys_.CLONE_NEWPID,
    "mount": sys_.CLONE_NEWNS,
    "ipc": sys_.CLONE_NEWIPC,
    "uts": sys_.CLONE_NEWUTS,
    "net": sys_.CLONE_NEWNET,
}
SECCOMP_GET_ACTION_AVAIL = 2
SECCOMP_RET_ERRNO = 0x00050000
LANDLOCK_CREATE_RULESET_VERSION = 1


def main() -> None:
    """Writes rows of name, works, detail as JSON."""
    from lathe.sandbox.probe import tried

    folder = Path(sys.argv[2])
    found = [tried(f"{name} namespace", partial(namespace, kind)) for name, kind in NAMESPACES.items()]
    found += [
        tried("overlay", lambda: overlay(folder, "userxattr")),
        tried("pivot_root", lambda: pivot_root(folder)),
        tried("seccomp", seccomp),
        tried("landlock", landlock),
    ]
    sys.stdout.write(json.dumps([[each.name, each.works, each.detail] for each in found]))


def unshare(kinds: int) -> None:
    uid, gid = os.getuid(), os.getgid()
    sys_.call("unshare", sys_.CLONE_NEWUSER | kinds)
    write_maps("self", [(0, uid, 1)], [(0, gid, 1)])


def namespace(kind: int) -> str:
    unshare(kind)
    return "as root" if not kind and os.getuid() == 0 else ""


def tmpfs(folder: Path) -> None:
    unshare(sys_.CLONE_NEWNS)
    sys_.mount(None, "/", None, sys_.MS_REC | sys_.MS_PRIVATE)
    sys_.mount("tmpfs", str(folder), "tmpfs")


def overlay(folder: Path, option: str) -> str:
    tmpfs(folder)
    for name in ("lower", "upper", "work", "all"):
        (folder / name).mkdir()
    (folder / "lower" / "below").mkdir()
    parts = ",".join(
        f"{name}={folder / name.removesuffix('dir')}" for name in ("lowerdir", "upperdir", "workdir")
    )
    sys_.mount("overlay", str(folder / "all"), "overlay", 0, f"{option},{parts}")
    (folder / "all" / "below").rmdir()
    if (folder / "all" / "below").exists():
        raise OSError(5, "what was removed from an overlay is still there")
    return f"in a user namespace, with {option}"


def pivot_root(folder: Path) -> str:
    tmpfs(folder)
    (folder / "old").mkdir()
    os.chdir(folder)
    sys_.call("pivot_root", b".", b"old")
    os.chdir("/")
    sys_.umount("/old")
    return ""


def seccomp() -> str:
    # Asked for, not installed: each filter that was is a compiled program that the kernel must free.
    action = (ctypes.c_uint32 * 1)(SECCOMP_RET_ERRNO)
    sys_.call("seccomp", SECCOMP_GET_ACTION_AVAIL, 0, action)
    return ""


def landlock() -> str:
    version = sys_.call("landlock_create_ruleset", None, 0, LANDLOCK_CREATE_RULESET_VERSION)
    return f"ABI {version}"
