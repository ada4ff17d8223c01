"""Freezing: what a sandbox wrote becomes a layer that other sandboxes can stand on.

The source is an overlay's upper folder on the sandbox's own file system, possibly still in use; the target an
empty folder, or an older layer that the source lies over: then one layer says what both said. Everything goes
by the descriptors of folders, and no link is followed: what a sandbox may turn into a link meanwhile leads
nowhere.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat

OPAQUE = "user.overlay.opaque"
# The overlay's notes on where a file came from: they name files by numbers of this machine's.
PASSING = tuple(f"user.overlay.{name}" for name in ("origin", "impure", "uuid", "nlink", "upper"))
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class Copied:
    """What a layer took over: regular files' bytes, and entries of every kind."""

    # Plain, as `dataclasses` would bring a megabyte of modules along into every fork of a spawner.
    def __init__(self) -> None:
        self.num_bytes = 0
        self.num_entries = 0
        self.links: dict[int, str] = {}  # a file with several names: where its first copy is


def lay_over(source: str, target: str) -> Copied:
    """Copy the layer `source` into the layer `target`: whiteouts, opaque folders, hard links, owners, times.

    Sockets are left out. A file that vanishes meanwhile is left out, too.
    """
    copied = Copied()
    above = os.open(source, READ | os.O_DIRECTORY)
    below = os.open(target, READ | os.O_DIRECTORY)
    try:
        _folder(above, below, "", below, copied)
    finally:
        os.close(above)
        os.close(below)
    return copied


def _folder(above: int, below: int, path: str, root: int, copied: Copied) -> None:
    for name in os.listdir(above):
        with contextlib.suppress(FileNotFoundError):
            status = os.stat(name, dir_fd=above, follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                _subfolder(above, below, name, f"{path}{name}/", root, copied)
            elif not stat.S_ISSOCK(status.st_mode):
                _other(above, below, name, status, f"{path}{name}", root, copied)
            copied.num_entries += 1
    _attributes(above, below)
    status = os.fstat(above)
    os.fchown(below, status.st_uid, status.st_gid)
    os.fchmod(below, stat.S_IMODE(status.st_mode))
    os.utime(below, ns=(status.st_atime_ns, status.st_mtime_ns))


def _subfolder(above: int, below: int, name: str, path: str, root: int, copied: Copied) -> None:
    inner = os.open(name, READ | os.O_DIRECTORY, dir_fd=above)
    try:
        try:
            hides = os.getxattr(inner, OPAQUE) == b"y"
        except OSError:
            hides = False
        try:
            there = os.stat(name, dir_fd=below, follow_symlinks=False)
            if hides or not stat.S_ISDIR(there.st_mode):
                remove(below, name)
                os.mkdir(name, 0o700, dir_fd=below)
        except FileNotFoundError:
            os.mkdir(name, 0o700, dir_fd=below)
        place = os.open(name, READ | os.O_DIRECTORY, dir_fd=below)
        try:
            _folder(inner, place, path, root, copied)
        finally:
            os.close(place)
    finally:
        os.close(inner)


def _other(
    above: int, below: int, name: str, status: os.stat_result, path: str, root: int, copied: Copied
) -> None:
    with contextlib.suppress(FileNotFoundError):
        remove(below, name)
    kind = stat.S_IFMT(status.st_mode)
    if kind == stat.S_IFLNK:
        os.symlink(os.readlink(name, dir_fd=above), name, dir_fd=below)
    elif kind == stat.S_IFREG:
        first = copied.links.get(status.st_ino)
        if first is not None:
            os.link(first, name, src_dir_fd=root, dst_dir_fd=below, follow_symlinks=False)
            return
        _file(above, below, name)
        copied.num_bytes += status.st_size
        if status.st_nlink > 1:
            copied.links[status.st_ino] = path
    else:  # a pipe, or a whiteout: the device 0:0 says that nothing is here
        os.mknod(name, kind | 0o600, status.st_rdev, dir_fd=below)
        if status.st_rdev == 0 and kind == stat.S_IFCHR:
            return
    os.chown(name, status.st_uid, status.st_gid, dir_fd=below, follow_symlinks=False)
    if kind != stat.S_IFLNK:
        os.chmod(name, stat.S_IMODE(status.st_mode), dir_fd=below)
    os.utime(name, ns=(status.st_atime_ns, status.st_mtime_ns), dir_fd=below, follow_symlinks=False)


def _file(above: int, below: int, name: str) -> None:
    source = os.open(name, READ, dir_fd=above)
    try:
        target = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=below)
        try:
            while os.sendfile(target, source, None, 1 << 24):
                pass
            _attributes(source, target)
        finally:
            os.close(target)
    finally:
        os.close(source)


def _attributes(source: int, target: int) -> None:
    try:
        names = os.listxattr(source)
    except OSError as error:
        if error.errno in (errno.ENOTSUP, errno.EPERM):
            return
        raise
    for name in names:
        if name.startswith("user.") and name not in PASSING:
            os.setxattr(target, name, os.getxattr(source, name))


def remove(folder: int, name: str) -> None:
    """Remove an entry with all below it, also where its owner took its own rights away."""
    if not stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
        os.unlink(name, dir_fd=folder)
        return
    try:
        inner = os.open(name, READ | os.O_DIRECTORY, dir_fd=folder)
    except PermissionError:
        os.chmod(name, 0o700, dir_fd=folder)
        inner = os.open(name, READ | os.O_DIRECTORY, dir_fd=folder)
    try:
        os.fchmod(inner, 0o700)
        for each in os.listdir(inner):  # noqa: PTH208
            remove(inner, each)
    finally:
        os.close(inner)
    os.rmdir(name, dir_fd=folder)


def delete(folder: str) -> None:
    """Remove a layer. One that is not there is no error."""
    parent, _, name = folder.rpartition("/")
    with contextlib.suppress(FileNotFoundError):
        fd = os.open(parent, READ | os.O_DIRECTORY)
        try:
            remove(fd, name)
        finally:
            os.close(fd)
