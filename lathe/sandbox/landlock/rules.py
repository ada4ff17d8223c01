"""What a process may reach: paths by Landlock, system calls by seccomp.

Source: landlock(7), include/uapi/linux/landlock.h. What each version of Landlock adds is asked for where the
kernel has it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import stat
from collections.abc import Iterable

from lathe.sandbox.namespace import syscalls as sys_
from lathe.sandbox.namespace.privileges import AUDIT_ARCH, DENIED, SOCKET, X32_BIT, _instruction, _Program

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
REFER, TRUNCATE, IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
FIRST_VERSION = (1 << 13) - 1  # and removing and making entries of every kind
OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
READ = EXECUTE | READ_FILE | READ_DIR
TCP = 1 | 2  # bind, connect
SCOPES = 1 | 2  # abstract Unix sockets, signals
PATH_BENEATH = 1
VERSION = 1

# name: (x86-64, aarch64): what a namespace would make harmless, or what reaches into other processes
NEVER = {
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "unshare": (272, 97),
    "setns": (308, 268),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "mount_setattr": (442, 442),
}
CLONE, CLONE3 = (56, 220), (435, 435)
NEW_NAMESPACES = (
    sys_.CLONE_NEWNS
    | sys_.CLONE_NEWCGROUP
    | sys_.CLONE_NEWUTS
    | sys_.CLONE_NEWIPC
    | sys_.CLONE_NEWUSER
    | sys_.CLONE_NEWPID
    | sys_.CLONE_NEWNET
)


class _Ruleset(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("fs", "net", "scoped")]


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32)]


def version() -> int:
    """Landlock's ABI. Raises OSError where there is none."""
    return sys_.call("landlock_create_ruleset", None, 0, VERSION)


def restrict(readable: Iterable[str], writable: Iterable[str]) -> None:
    """From now on this process and all that it starts reach files below these paths only.

    With ABI 4, no TCP; with 6, no signal to and no abstract socket of processes that stand outside. Needs
    no_new_privs. Paths that are not there are left out.
    """
    abi = version()
    handled = FIRST_VERSION
    for since, right in ((2, REFER), (3, TRUNCATE), (5, IOCTL_DEV)):
        handled |= right if abi >= since else 0
    attributes = _Ruleset(handled, TCP, SCOPES)
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    ruleset = sys_.call("landlock_create_ruleset", attributes, size, 0)
    try:
        for paths, rights in ((readable, READ), (writable, handled)):
            for path in paths:
                _allow(ruleset, path, rights & handled)
        sys_.call("landlock_restrict_self", ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        fd = os.open(path, sys_.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            rights &= OF_FILES
        sys_.call("landlock_add_rule", ruleset, PATH_BENEATH, _PathBeneath(rights, fd), 0)
    finally:
        os.close(fd)


def filter_program() -> bytes:
    """EPERM for what is denied, for new namespaces and for every socket but a pair."""
    machine = platform.machine()
    column = 0 if machine == "x86_64" else 1
    load, equal, at_least, any_bit, answer = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, refuse, unknown = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
    head = [
        _instruction(load, 4),  # seccomp_data.arch
        _instruction(equal, AUDIT_ARCH[machine], 1, 0),
        _instruction(answer, refuse),
        _instruction(load, 0),  # seccomp_data.nr
    ]
    if machine == "x86_64":
        head += [_instruction(at_least, X32_BIT, 0, 1), _instruction(answer, refuse)]
    # Its flags lie in memory, where no filter sees them: without it, libraries use clone.
    head += [_instruction(equal, CLONE3[column], 0, 1), _instruction(answer, unknown)]
    numbers = sorted({each[column] for each in [*DENIED.values(), *NEVER.values(), SOCKET]})
    checks = [_instruction(equal, number, len(numbers) + 3 - place) for place, number in enumerate(numbers)]
    tail = [
        _instruction(equal, CLONE[column], 0, 2),
        _instruction(load, 16),  # seccomp_data.args[0]
        _instruction(any_bit, NEW_NAMESPACES, 1, 0),
        _instruction(answer, allow),
        _instruction(answer, refuse),
    ]
    return b"".join([*head, *checks, *tail])


def install_filter() -> None:
    """Bind this process and all that it starts. Sets no_new_privs, too."""
    sys_.prctl(sys_.PR_SET_NO_NEW_PRIVS, 1)
    code = filter_program()
    sys_.call("seccomp", 1, 0, _Program(len(code) // 8, code))
