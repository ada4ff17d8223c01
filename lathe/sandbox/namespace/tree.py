"""A file or a folder over a socket, both directions: a frame of JSON for each entry, its bytes behind it.

Who receives trusts nothing: a name is one plain part, every folder is entered by descriptor, no link is
followed, and only files, folders and links are made.
"""

from __future__ import annotations

import json
import os
import socket
import stat
import struct
from collections.abc import Callable
from typing import Any

CHUNK = 1 << 20
MAX_FRAME = 64 << 20

Frame = dict[str, Any]


def send_frame(end: socket.socket, frame: Frame) -> None:
    data = json.dumps(frame).encode()
    end.sendall(struct.pack("<I", len(data)) + data)


def receive_frame(end: socket.socket) -> Frame:
    """The next frame. Raises ConnectionAbortedError when the other side has gone."""
    (size,) = struct.unpack("<I", receive_exactly(end, 4))
    if size > MAX_FRAME:
        raise ValueError(f"a frame of {size} bytes")
    return json.loads(receive_exactly(end, size))


def receive_exactly(end: socket.socket, num_bytes: int) -> bytes:
    parts = []
    while num_bytes:
        part = end.recv(min(num_bytes, CHUNK))
        if not part:
            raise ConnectionAbortedError(103, "the other side has gone")
        parts.append(part)
        num_bytes -= len(part)
    return b"".join(parts)


def push_tree(end: socket.socket, path: str) -> None:
    """Send what stands at `path`, then a last frame. Devices, pipes and sockets are left out.

    Links are sent as links, except that `path` itself may be one: then what it names is sent.
    """
    path = os.path.realpath(path)
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        _push(end, fd, "")
    finally:
        os.close(fd)
    send_frame(end, {"kind": "end"})


def _push(end: socket.socket, fd: int, name: str) -> None:
    status = os.fstat(fd)
    mode = stat.S_IMODE(status.st_mode) & 0o777
    if stat.S_ISDIR(status.st_mode):
        send_frame(end, {"kind": "folder", "name": name, "mode": mode})
        for each in sorted(os.listdir(fd)):
            child = os.stat(each, dir_fd=fd, follow_symlinks=False)
            if stat.S_ISLNK(child.st_mode):
                send_frame(end, {"kind": "link", "name": each, "target": os.readlink(each, dir_fd=fd)})
            elif stat.S_ISREG(child.st_mode) or stat.S_ISDIR(child.st_mode):
                inner = os.open(each, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=fd)
                try:
                    _push(end, inner, each)
                finally:
                    os.close(inner)
        send_frame(end, {"kind": "up"})
    elif stat.S_ISREG(status.st_mode):
        send_frame(end, {"kind": "file", "name": name, "mode": mode, "num_bytes": status.st_size})
        left = status.st_size
        while left:
            part = os.read(fd, min(left, CHUNK)) or bytes(min(left, CHUNK))  # it shrank meanwhile: zeros
            end.sendall(part)
            left -= len(part)


def pull_tree(end: socket.socket, path: str, max_bytes: int | None = None) -> None:
    """Receive what `push_tree` sent, and put it at `path`. A folder is laid over the one that is there.

    Raises ValueError when the sender breaks the rules, or sends more than `max_bytes`.
    """
    folders: list[int] = []
    total = 0
    try:
        while (frame := receive_frame(end))["kind"] != "end":
            kind = frame["kind"]
            if kind == "up":
                if not folders:
                    raise ValueError("a tree that climbs out of itself")
                os.close(folders.pop())
                continue
            where, name = (folders[-1], _plain(frame["name"])) if folders else (None, path)
            if kind == "folder":
                folders.append(_folder(where, name, frame["mode"]))
            elif kind == "link" and folders:
                _clear(where, name)
                os.symlink(frame["target"], name, dir_fd=where)
            elif kind == "file":
                total += frame["num_bytes"]
                if max_bytes is not None and total > max_bytes:
                    raise ValueError(f"the tree holds more than {max_bytes} bytes")
                _file(end, where, name, frame["mode"] & 0o777, frame["num_bytes"])
            else:
                raise ValueError(f"a tree with an entry of kind {kind!r}")
    finally:
        for fd in folders:
            os.close(fd)


def _plain(name: str) -> str:
    if not name or name in (".", "..") or "/" in name or "\0" in name:
        raise ValueError(f"{name!r} is no plain name")
    return name


def _folder(where: int | None, name: str, mode: int) -> int:
    try:
        os.mkdir(name, mode & 0o777 | 0o700, dir_fd=where)
    except FileExistsError:
        status = os.stat(name, dir_fd=where, follow_symlinks=False)
        if not stat.S_ISDIR(status.st_mode):
            _clear(where, name)
            os.mkdir(name, mode & 0o777 | 0o700, dir_fd=where)
    return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=where)


def _file(end: socket.socket, where: int | None, name: str, mode: int, num_bytes: int) -> None:
    _clear(where, name)
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode | 0o200, dir_fd=where)
    try:
        while num_bytes:
            part = end.recv(min(num_bytes, CHUNK))
            if not part:
                raise ConnectionAbortedError(103, "the other side has gone")
            num_bytes -= len(part)
            view = memoryview(part)
            while view:
                view = view[os.write(fd, view) :]
        os.fchmod(fd, mode)
    finally:
        os.close(fd)


def _clear(where: int | None, name: str) -> None:
    try:
        os.unlink(name, dir_fd=where)
    except FileNotFoundError:
        pass
    except IsADirectoryError:
        raise IsADirectoryError(21, "a folder stands where a file should go", name) from None


def receive_answer(end: socket.socket) -> Frame:
    """The other side's next frame. Raises the OSError or ValueError that it met instead."""
    frame = receive_frame(end)
    if "errno" in frame:
        raise OSError(frame["errno"], os.strerror(frame["errno"]), frame["path"])
    if "refused" in frame:
        raise ValueError(frame["refused"])
    return frame


def send_then_hear(end: socket.socket, send: Callable[[], None]) -> None:
    """Send, then hear how it went: what the other side says counts more than that it stopped listening."""
    try:
        send()
        end.shutdown(socket.SHUT_WR)
    except BrokenPipeError:
        pass
    receive_answer(end)
