"""What a folder holds, as one number: names, kinds, rights, owners and contents, no times."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

CHUNK = 1 << 20


def folder_digest(folder: Path) -> str:
    """Equal for folders that a sandbox could not tell apart (but by times)."""
    total = hashlib.sha256()
    for here, folders, files, fd in os.fwalk(folder):
        folders.sort()
        where = os.path.relpath(here, folder)
        for name in sorted([*folders, *files]):
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            head = [os.path.join(where, name), status.st_mode, status.st_uid, status.st_gid, status.st_rdev]  # noqa: PTH118
            total.update(repr(head).encode(errors="surrogateescape"))
            if stat.S_ISLNK(status.st_mode):
                total.update(os.readlink(name, dir_fd=fd).encode(errors="surrogateescape") + b"\0")
            elif stat.S_ISREG(status.st_mode):
                total.update(_content(fd, name))
    return total.hexdigest()[:16]


def _content(folder: int, name: str) -> bytes:
    content = hashlib.sha256()
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        while data := os.read(fd, CHUNK):
            content.update(data)
    finally:
        os.close(fd)
    return content.digest()


def folder_bytes(folder: Path) -> int:
    """The sizes of its regular files, added up."""
    total = 0
    for _, _, files, fd in os.fwalk(folder):
        for name in files:
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            total += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return total
