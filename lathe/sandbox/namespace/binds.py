"""Folders of this machine in a sandbox, with their owner shown as the sandbox's root.

A spawner has left the mounts that give these folders their names: a child goes back there, takes a detached
copy of the mount and hands it over. It stands under `/binds` only until the new sandbox has its own copy of
the tree.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lathe.sandbox.namespace import syscalls as sys_
from lathe.sandbox.namespace.view import FIRST_UID, NUM_UIDS, user_namespace


@contextmanager
def attached(binds: list[dict[str, Any]], outside: int, mapped: bool) -> Iterator[list[tuple[str, str]]]:
    """Mount each bind in the spawner's view for as long as the block lasts: (place there, path in the
    sandbox).

    Raises OSError, also where a writable folder's file system can't show another owner.
    """
    places: list[tuple[str, str]] = []
    try:
        for number, bind in enumerate(binds):
            tree, is_folder = _fetch(bind, outside, mapped)
            place = f"/binds/{number}-{'folder' if is_folder else 'file'}"
            try:
                # They stay: removing a mount point here would unmount it in the sandbox that is being made.
                if is_folder:
                    os.makedirs(place, exist_ok=True)  # noqa: PTH103
                else:
                    os.close(os.open(place, os.O_CREAT | os.O_WRONLY))
                places.append((place, bind["path"]))
                sys_.attach_mount(tree, place)
            finally:
                os.close(tree)
        yield places
    finally:
        for place, _ in places:
            with contextlib.suppress(OSError):
                sys_.umount(place)


def _fetch(bind: dict[str, Any], outside: int, mapped: bool) -> tuple[int, bool]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        pid = sys_.clone(0)
        if pid == 0:
            try:
                sys_.setns(outside, sys_.CLONE_NEWNS)
                tree, is_folder = _take(bind, mapped)
                socket.send_fds(theirs, [b"folder" if is_folder else b"file"], [tree])
                os._exit(0)
            except OSError as error:
                theirs.send(f"{error.errno or 5} {error}".encode())
            finally:
                os._exit(1)
        theirs.close()
        said, fds, _, _ = socket.recv_fds(ours, 4096, 1)
        os.waitpid(pid, 0)
    if not fds:
        number, _, text = said.decode(errors="replace").partition(" ")
        raise OSError(int(number or 5), f"{bind['source']} can't be shown in a sandbox: {text}")
    return fds[0], said == b"folder"


def _take(bind: dict[str, Any], mapped: bool) -> tuple[int, bool]:
    source = bind["source"]
    status = os.stat(source)  # noqa: PTH116
    is_folder = stat.S_ISDIR(status.st_mode)
    attributes = sys_.MOUNT_ATTR_NOSUID | sys_.MOUNT_ATTR_NODEV
    if not bind["writable"]:
        attributes |= sys_.MOUNT_ATTR_RDONLY
    if not mapped:
        return sys_.clone_mount(source, attributes, below=True), is_folder
    if FIRST_UID <= status.st_uid < FIRST_UID + NUM_UIDS:
        return sys_.clone_mount(source, attributes), is_folder
    try:
        with user_namespace([(status.st_uid, FIRST_UID, 1)], [(status.st_gid, FIRST_UID, 1)]) as userns:
            return sys_.clone_mount(source, attributes, userns), is_folder
    except OSError as error:
        if error.errno != errno.EINVAL or bind["writable"]:
            raise
        return sys_.clone_mount(source, attributes), is_folder  # what everybody may read, it may read
