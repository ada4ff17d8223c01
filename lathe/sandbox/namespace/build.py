"""How a sandbox comes to be, seen from the process that becomes its PID 1.

A fresh clone of the spawner runs `build`: from then on it holds its own user, pid, mount, ipc and uts
namespaces. It mounts its overlay over the layers, pivots into it, gives up what it no longer needs and
becomes the tiny init. Its working folder stays on the file system that holds what the sandbox writes: through
`/proc/PID/cwd` the spawner finds that again, where no path leads to it any more.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import socket
import struct
from typing import Any

from lathe.sandbox.namespace import syscalls as sys_
from lathe.sandbox.namespace.privileges import drop_capabilities, set_limits

Box = dict[str, Any]
QUIET = sys_.MS_NOSUID | sys_.MS_NODEV


def namespaces(box: Box) -> int:
    kinds = sys_.CLONE_NEWUSER | sys_.CLONE_NEWPID | sys_.CLONE_NEWNS | sys_.CLONE_NEWIPC | sys_.CLONE_NEWUTS
    return kinds | (sys_.CLONE_NEWNET if box["network"] == "loopback" else 0)


def build(box: Box, end: socket.socket, mapped: bool) -> None:
    """Never returns. Says on `end` what went wrong; closing it by exec means that nothing did."""
    try:
        if end.recv(1) != b"m":  # the maps are written
            os._exit(1)
        if mapped:
            sys_.become(0, 0)
        upper = _mount_overlay(box)
        root = os.open("/new", os.O_PATH | os.O_CLOEXEC)
        _mount_inside(box, root)
        init = os.open("/init", os.O_PATH | os.O_CLOEXEC)
        os.fchdir(root)
        sys_.call("pivot_root", b".", b".")
        sys_.umount(".")
        _settle(box)
        os.fchdir(upper)
        _surrender(box, end)
        sys_.call("execveat", init, b"", _strings("init"), _strings(), sys_.AT_EMPTY_PATH)
    except BaseException as error:
        end.send(f"{type(error).__name__}: {error}".encode()[:4000])
    finally:
        os._exit(1)


def _mount_overlay(box: Box) -> int:
    limits = box["limits"]
    options = ["mode=755"]
    if limits.get("disk_bytes") is not None:
        options.append(f"size={limits['disk_bytes']}")
    if limits.get("num_files") is not None:
        options.append(f"nr_inodes={limits['num_files'] + 16}")
    sys_.mount("tmpfs", "/mnt", "tmpfs", QUIET, ",".join(options))
    os.umask(0)
    for name, mode in (("upper", 0o755), ("work", 0o700), ("shm", 0o1777)):
        os.mkdir(f"/mnt/{name}", mode)  # noqa: PTH102
    os.umask(0o022)
    lower = ":".join([*reversed(box["layers"]), "/skel"])
    sys_.mount(
        "overlay",
        "/new",
        "overlay",
        QUIET,
        f"lowerdir={lower},upperdir=/mnt/upper,workdir=/mnt/work,userxattr",
    )
    return os.open("/mnt", os.O_PATH | os.O_CLOEXEC)


def _mount_inside(box: Box, root: int) -> None:
    """Everything that is mounted over the overlay. The sandbox's own files, which may be links that lead
    anywhere, name the targets: each is looked up inside, and mounted on by its descriptor."""
    for source, path in box["host"]:
        sys_.mount(source, _target(root, path, source), None, sys_.MS_BIND | sys_.MS_REC)
    sys_.mount("/device", _target(root, "dev", "/device"), None, sys_.MS_BIND | sys_.MS_REC)
    sys_.mount("/mnt/shm", _target(root, "dev/shm", "/mnt/shm"), None, sys_.MS_BIND)
    sys_.mount(
        "devpts",
        _target(root, "dev/pts"),
        "devpts",
        sys_.MS_NOSUID | sys_.MS_NOEXEC,
        "newinstance,ptmxmode=666",
    )
    sys_.mount("proc", _target(root, "proc"), "proc", QUIET | sys_.MS_NOEXEC)
    for source, path in box["binds"]:
        sys_.mount(source, _target(root, path, source), None, sys_.MS_BIND | sys_.MS_REC)


def _target(root: int, path: str, source: str | None = None) -> str:
    """A name for a place in the sandbox; it is made if it is not there."""
    try:
        fd = sys_.open_inside(root, path, sys_.O_PATH)
    except FileNotFoundError:
        folder, name = root, path
        parts = [part for part in path.split("/") if part]
        for depth in range(1, len(parts) + 1):
            name = "/".join(parts[:depth])
            try:
                here = sys_.open_inside(root, name, sys_.O_PATH)
            except FileNotFoundError:
                if depth == len(parts) and source is not None and not os.path.isdir(source):  # noqa: PTH112
                    os.close(os.open(parts[depth - 1], os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=folder))
                else:
                    os.mkdir(parts[depth - 1], 0o755, dir_fd=folder)
                here = sys_.open_inside(root, name, sys_.O_PATH)
            if folder != root:
                os.close(folder)
            folder = here
        fd = folder
    return f"/proc/self/fd/{fd}"


def _settle(box: Box) -> None:
    with open("/proc/sys/user/max_user_namespaces", "w") as file:  # noqa: PTH123
        file.write("0")
    name = box["hostname"].encode()
    sys_.call("sethostname", name, len(name))
    if box["network"] == "loopback":
        raise_loopback()
    os.makedirs(box["workdir"], exist_ok=True)  # noqa: PTH103


def raise_loopback() -> None:
    """Switch on the `lo` of this process's network."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
        up = struct.pack("16sH14x", b"lo", 0x1 | 0x40)  # IFF_UP | IFF_RUNNING
        fcntl.ioctl(end, 0x8914, up)  # SIOCSIFFLAGS


def _surrender(box: Box, end: socket.socket) -> None:
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)
    set_limits(box["bounds"])
    drop_capabilities()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps what falls to this process
    sys_.prctl(sys_.PR_SET_PDEATHSIG, signal.SIGKILL)  # last: a change of user clears it
    try:
        if end.recv(1, socket.MSG_DONTWAIT) == b"":  # the spawner died before that
            os._exit(1)
    except BlockingIOError:
        pass


def _strings(*values: str) -> Any:
    return (ctypes.c_char_p * (len(values) + 1))(*[each.encode() for each in values], None)
