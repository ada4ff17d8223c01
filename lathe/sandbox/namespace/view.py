"""What a spawner sees: a private root that holds only what sandboxes are made of.

/proc    this machine's, for writing maps and finding processes
/device  null, zero, random, urandom, full, tty
/host/N  read-only views of this machine's programs
/skel    the lowest layer of every sandbox: mount points, a synthesized /etc
/store   the layers of images, as they are
/owned   the same, with what belongs to root shown as the sandbox's root's
/boxes   the layers of sandboxes that sleep or were forked
/binds   folders of this machine on their way into the sandbox that is being made
/init    the program of every first process
/mnt, /new   mount points; each sandbox has its own copy of this tree when it mounts there
"""

from __future__ import annotations

import os
import platform
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lathe.sandbox.namespace import syscalls as sys_
from lathe.sandbox.namespace.init import init_program

# As root, a sandbox's users 0 to 65535 are these ones outside: nobody's, the last block that systemd leaves
# to containers (uids 0x80000 to 0x6FFFFFFF).
FIRST_UID = 0x6FFF0000
NUM_UIDS = 65536

DEVICES = ("null", "zero", "random", "urandom", "full", "tty")
ETC_FILES = (
    "alternatives",
    "debian_version",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
    "login.defs",
    "magic",
    "mime.types",
    "os-release",
    "pam.d",
    "protocols",
    "security",
    "services",
    "shells",
    "ssl/certs",
    "ca-certificates",
    "pki",
)
ETC_TEXTS = {
    "passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    "group": "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n",
    "hosts": "127.0.0.1 localhost sandbox\n::1 localhost\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    "resolv.conf": "",
    "profile": "",
}
FOLDERS = (
    "dev",
    "etc",
    "home",
    "mnt",
    "opt",
    "proc",
    "root",
    "run",
    "srv",
    "sys",
    "tmp",
    "usr",
    "var/tmp",
    "work",
)


def enter(root: Path, store: Path, boxes: Path, host: list[str], mapped: bool) -> int:
    """Move this process into a private root of its own, and into a network that reaches nothing.

    Returns a descriptor of the mount namespace that it leaves, in which this machine's folders have their
    names. `mapped`: it is root, and sandboxes map to other users; else it becomes root of a user namespace
    first.
    """
    kinds = sys_.CLONE_NEWNS | sys_.CLONE_NEWNET | sys_.CLONE_NEWIPC
    uid, gid = os.getuid(), os.getgid()
    sys_.call("unshare", kinds if mapped else kinds | sys_.CLONE_NEWUSER)
    if not mapped:
        write_maps("self", [(0, uid, 1)], [(0, gid, 1)])
    sys_.mount(None, "/", None, sys_.MS_REC | sys_.MS_SLAVE)  # what is mounted out there later is seen, too
    outside = os.open("/proc/self/ns/mnt", os.O_RDONLY)
    sys_.call("unshare", sys_.CLONE_NEWNS)
    sys_.mount(None, "/", None, sys_.MS_REC | sys_.MS_PRIVATE)
    sys_.mount("tmpfs", str(root), "tmpfs", sys_.MS_NOSUID, "mode=755")
    for name in ("proc", "device", "host", "skel", "store", "owned", "boxes", "binds", "mnt", "new", "old"):
        (root / name).mkdir()
    sys_.mount("/proc", str(root / "proc"), None, sys_.MS_BIND | sys_.MS_REC)
    _devices(root / "device")
    for place, path in enumerate(host):
        attributes = sys_.MOUNT_ATTR_RDONLY | sys_.MOUNT_ATTR_NOSUID | sys_.MOUNT_ATTR_NODEV
        _bind(path, root / "host" / str(place), attributes, below=not mapped)
    _bind(str(store), root / "store", sys_.MOUNT_ATTR_RDONLY | sys_.MOUNT_ATTR_NOSUID | sys_.MOUNT_ATTR_NODEV)
    if mapped:
        rows = [(0, FIRST_UID, NUM_UIDS)]
        with user_namespace(rows, rows) as fd:
            attributes = sys_.MOUNT_ATTR_RDONLY | sys_.MOUNT_ATTR_NOSUID | sys_.MOUNT_ATTR_NODEV
            _bind(str(store), root / "owned", attributes, fd)
    _bind(str(boxes), root / "boxes", sys_.MOUNT_ATTR_NOSUID | sys_.MOUNT_ATTR_NODEV)
    skeleton(root / "skel")
    if mapped:
        _give(root / "skel", FIRST_UID)
    init = root / "init"
    init.write_bytes(init_program(platform.machine()))
    init.chmod(0o555)
    os.chdir(root)
    sys_.call("pivot_root", b".", b"old")
    os.chdir("/")
    sys_.umount("/old")
    return outside


def write_maps(pid: int | str, uids: list[tuple[int, int, int]], gids: list[tuple[int, int, int]]) -> None:
    """Say who the users of a new user namespace are outside: (first inside, first outside, how many)."""
    if pid == "self":
        Path("/proc/self/setgroups").write_text("deny")
    for name, rows in (("uid_map", uids), ("gid_map", gids)):
        fd = os.open(f"/proc/{pid}/{name}", os.O_WRONLY)
        try:
            os.write(fd, "\n".join(" ".join(map(str, row)) for row in rows).encode())
        finally:
            os.close(fd)


@contextmanager
def user_namespace(uids: list[tuple[int, int, int]], gids: list[tuple[int, int, int]]) -> Iterator[int]:
    """A descriptor of a user namespace with these maps, for mounts that show other owners."""
    pid = sys_.clone(sys_.CLONE_NEWUSER)
    if pid == 0:
        while True:
            signal.pause()
    try:
        write_maps(pid, uids, gids)
        fd = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    try:
        yield fd
    finally:
        os.close(fd)


def _bind(source: str, target: Path, attributes: int, userns: int | None = None, below: bool = False) -> None:
    if Path(source).is_dir():
        target.mkdir(exist_ok=True)
    else:
        target.touch()
    tree = sys_.clone_mount(source, attributes, userns, below)
    sys_.attach_mount(tree, str(target))
    os.close(tree)


def _devices(folder: Path) -> None:
    for name in DEVICES:
        (folder / name).touch()
        sys_.mount(f"/dev/{name}", str(folder / name), None, sys_.MS_BIND)
    for name, target in (
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
    ):
        (folder / name).symlink_to(target)
    (folder / "shm").mkdir()
    (folder / "pts").mkdir()
    # All sandboxes of a shard see this folder, and an ordinary user's would own it.
    tree = sys_.clone_mount(str(folder), sys_.MOUNT_ATTR_RDONLY | sys_.MOUNT_ATTR_NOSUID, below=True)
    sys_.attach_mount(tree, str(folder))
    os.close(tree)


def skeleton(root: Path) -> None:
    """The folders that every sandbox has, and an /etc that names nobody of this machine."""
    for name in FOLDERS:
        (root / name).mkdir(parents=True, exist_ok=True)
    for name in ("tmp", "var/tmp"):
        (root / name).chmod(0o1777)
    (root / "root").chmod(0o700)
    for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        if Path("/", name).is_symlink():
            (root / name).symlink_to(Path("/", name).readlink())
    for name in ETC_FILES:
        source = Path("/etc", name)
        target = root / "etc" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.exists():
            _copy(source, target)
    for name, text in ETC_TEXTS.items():
        (root / "etc" / name).write_text(text)


def _copy(source: Path, target: Path) -> None:
    """Copy what everybody may read."""
    if source.is_symlink() and not source.is_dir():
        target.symlink_to(source.readlink())
    elif not source.stat().st_mode & 0o004:
        return
    elif source.is_dir():
        target.mkdir(exist_ok=True)
        for each in source.iterdir():
            _copy(each, target / each.name)
    elif source.is_file():
        target.write_bytes(source.read_bytes())


def _give(folder: Path, uid: int) -> None:
    os.chown(folder, uid, uid)
    for here, folders, files in os.walk(folder):
        for name in folders + files:
            os.chown(Path(here, name), uid, uid, follow_symlinks=False)
