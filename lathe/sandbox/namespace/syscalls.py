"""The system calls that the standard library lacks, for x86-64 and aarch64. Every failure is an OSError.

Numbers: arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h of Linux. Calls whose
flags or order of arguments differ between the two machines are not used in the differing form.
"""

from __future__ import annotations

import ctypes
import os
import platform
from functools import cache

# name: (x86-64, aarch64)
NUMBERS = {
    "clone": (56, 220),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "setns": (308, 268),
    "unshare": (272, 97),
    "sethostname": (170, 161),
    "prctl": (157, 167),
    "capset": (126, 91),
    "setresuid": (117, 147),
    "setresgid": (119, 149),
    "setgroups": (116, 159),
    "seccomp": (317, 277),
    "execveat": (322, 281),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "pidfd_open": (434, 434),
    "clone3": (435, 435),
    "close_range": (436, 436),
    "openat2": (437, 437),
    "mount_setattr": (442, 442),
    "landlock_create_ruleset": (444, 444),
    "landlock_add_rule": (445, 445),
    "landlock_restrict_self": (446, 446),
}
ARCHITECTURES = {"x86_64": 0, "aarch64": 1}

CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
CLONE_PARENT = 0x8000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_BIND, MS_REC, MS_PRIVATE, MS_SLAVE = 0x1000, 0x4000, 1 << 18, 1 << 19
MNT_DETACH = 2

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 4, 24, 38

AT_EMPTY_PATH, AT_RECURSIVE, AT_FDCWD = 0x1000, 0x8000, -100
OPEN_TREE_CLONE, MOVE_MOUNT_F_EMPTY_PATH = 1, 4
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV, MOUNT_ATTR_IDMAP = 1, 2, 4, 0x100000
RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_IN_ROOT = 0x02, 0x04, 0x10
O_PATH = 0o10000000

Argument = int | bytes | None | ctypes.Array | ctypes.Structure


@cache
def _machine() -> int:
    try:
        return ARCHITECTURES[platform.machine()]
    except KeyError:
        raise OSError(38, f"no table of system calls for {platform.machine()}") from None


@cache
def _syscall() -> ctypes._CFuncPtr:  # type: ignore[name-defined]
    function = ctypes.CDLL(None, use_errno=True).syscall
    function.restype = ctypes.c_long
    return function


def call(name: str, *arguments: Argument) -> int:
    """Make a system call. Structures and arrays go by reference. Raises OSError with the call's name."""
    converted = [
        ctypes.c_long(each)
        if isinstance(each, int)
        else ctypes.byref(each)
        if isinstance(each, ctypes.Structure | ctypes.Array)
        else each
        for each in arguments
    ]
    result = _syscall()(ctypes.c_long(NUMBERS[name][_machine()]), *converted)
    if result < 0:
        errno = ctypes.get_errno()
        raise OSError(errno, f"{name}: {os.strerror(errno)}")
    return result


def clone(flags: int) -> int:
    """Fork into new namespaces: 0 in the child, which must end by exec or os._exit."""
    return call("clone", flags | 17, None, None, None, None)  # 17: SIGCHLD


def mount(
    source: str | None, target: str, kind: str | None, flags: int = 0, options: str | None = None
) -> None:
    try:
        call("mount", _text(source), _text(target), _text(kind), flags, _text(options))
    except OSError as error:
        what = f"mount {source or kind} on {target}"
        raise OSError(error.errno, f"{what}: {os.strerror(error.errno or 0)}") from None


def umount(target: str, flags: int = MNT_DETACH) -> None:
    call("umount2", _text(target), flags)


@cache
def _prctl() -> ctypes._CFuncPtr:  # type: ignore[name-defined]
    return ctypes.CDLL(None, use_errno=True).prctl


def prctl(option: int, value: int = 0, other: int = 0) -> None:
    # By its own name: dozens of these stand between a fork and its exec, and `call` takes ten times as long.
    if _prctl()(option, value, other, 0, 0) < 0:
        errno = ctypes.get_errno()
        raise OSError(errno, f"prctl: {os.strerror(errno)}")


def setns(fd: int, kinds: int) -> None:
    call("setns", fd, kinds)


def pidfd_open(pid: int) -> int:
    return call("pidfd_open", pid, 0)


def close_range(first: int, last: int = 0x7FFFFFFF) -> None:
    call("close_range", first, last, 0)


def become(uid: int, gid: int) -> None:
    """Take on a user and a group, with no others, all of real, effective and saved."""
    call("setgroups", 0, None)
    call("setresgid", gid, gid, gid)
    call("setresuid", uid, uid, uid)


class _OpenHow(ctypes.Structure):
    _fields_ = [("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64)]


def open_inside(root: int, path: str, flags: int, mode: int = 0) -> int:
    """Open a path as if the folder `root` were `/`: no link and no `..` leads out of it."""
    how = _OpenHow(flags | os.O_CLOEXEC, mode, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
    try:
        return call("openat2", root, os.fsencode(path), how, ctypes.sizeof(how))
    except OSError as error:
        raise OSError(error.errno, os.strerror(error.errno or 0), path) from None


class _MountAttr(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd")]


def clone_mount(path: str, attributes: int, userns: int | None = None, below: bool = False) -> int:
    """A detached mount of `path`, with attributes and, given a user namespace, with its owners mapped.

    `below`: with what is mounted below it, as a user namespace must have it.
    """
    depth = AT_RECURSIVE if below else 0
    tree = call("open_tree", AT_FDCWD, os.fsencode(path), OPEN_TREE_CLONE | os.O_CLOEXEC | depth)
    attr = _MountAttr(attributes | (MOUNT_ATTR_IDMAP if userns is not None else 0), 0, 0, userns or 0)
    try:
        call("mount_setattr", tree, b"", AT_EMPTY_PATH | depth, attr, ctypes.sizeof(attr))
    except OSError:
        os.close(tree)
        raise
    return tree


def attach_mount(tree: int, target: str) -> None:
    call("move_mount", tree, b"", AT_FDCWD, os.fsencode(target), MOVE_MOUNT_F_EMPTY_PATH)


def _text(value: str | None) -> bytes | None:
    return None if value is None else os.fsencode(value)
