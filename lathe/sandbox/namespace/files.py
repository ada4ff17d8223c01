"""Reading and writing a sandbox's files, by a process that has gone into it.

It sees what the sandbox sees, with the rights that the sandbox has: a link that leads to this machine's
secrets leads nowhere. One request, one connection: a header in JSON, its length before it, then raw bytes.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable
from typing import Any

from lathe.sandbox.namespace.layers import lay_over
from lathe.sandbox.namespace.tree import pull_tree, push_tree, send_frame

CHUNK = 1 << 20
KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFLNK: "link"}


def serve(request: dict[str, Any], end: socket.socket) -> None:
    """Answer one request in this process's file system. Errors of the system travel as their numbers."""
    operations: dict[str, Callable[[dict[str, Any], socket.socket], None]] = {
        "read": _read,
        "write": _write,
        "list": _list,
        "push": _push,
        "pull": _pull,
        "listen": _listen,
    }
    try:
        os.chdir(request["cwd"])
        operations[request["what"]](request, end)
    except OSError as error:
        report_error(end, error, request["path"])
    except ValueError as error:
        send_frame(end, {"refused": str(error)})


def _listen(request: dict[str, Any], end: socket.socket) -> None:
    """Listen at ports of the sandbox's own network, and hand the sockets out: no process of it has them."""
    for port in request["ports"]:
        for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            try:
                with socket.create_server((address, port), family=family, backlog=128) as listener:
                    socket.send_fds(end, [str(port).encode()], [listener.fileno()])
            except OSError:
                if family == socket.AF_INET:
                    raise
                socket.send_fds(end, [b"-"], [])  # a kernel without IPv6
            end.recv(1)  # one message at a time


def _read(request: dict[str, Any], end: socket.socket) -> None:
    path, limit = request["path"], request["max_bytes"]
    fd = os.open(
        path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY
    )  # a pipe without a writer must not hang this
    try:
        status = os.fstat(fd)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(21, os.strerror(21), path)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path} is no regular file")
        parts, left = [], limit + 1  # one more than allowed: files of /proc say that they are empty
        while left and (part := os.read(fd, min(left, CHUNK))):
            parts.append(part)
            left -= len(part)
    finally:
        os.close(fd)
    if not left:
        size = max(status.st_size, limit + 1)
        raise ValueError(f"{path} has {size} bytes, more than the {limit} that were asked for")
    send_frame(end, {"num_bytes": limit + 1 - left})
    for part in parts:
        end.sendall(part)


def _write(request: dict[str, Any], end: socket.socket) -> None:
    path = os.path.realpath(request["path"])
    if os.path.isdir(path):  # noqa: PTH112
        raise IsADirectoryError(21, os.strerror(21), path)
    os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120
    mode = request["mode"]
    if mode is None:
        try:
            mode = stat.S_IMODE(os.stat(path).st_mode)  # noqa: PTH116
        except FileNotFoundError:
            mode = 0o644
    beside = f"{path}.{os.urandom(6).hex()}"
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        left = request["num_bytes"]
        while left:
            part = end.recv(min(left, CHUNK))
            if not part:
                raise OSError(103, os.strerror(103))
            left -= len(part)
            view = memoryview(part)
            while view:
                view = view[os.write(fd, view) :]
        os.fchmod(fd, mode)
        os.rename(beside, path)  # noqa: PTH104
    except BaseException:
        os.unlink(beside)  # noqa: PTH108
        raise
    finally:
        os.close(fd)
    send_frame(end, {})


def _list(request: dict[str, Any], end: socket.socket) -> None:
    entries = []
    with os.scandir(request["path"]) as found:
        for each in found:
            status = each.stat(follow_symlinks=False)
            kind = KINDS.get(stat.S_IFMT(status.st_mode), "other")
            entries.append((each.name, kind, status.st_size, stat.S_IMODE(status.st_mode)))
    send_frame(end, {"entries": sorted(entries)})


def report_copy(sources: list[str], into: str, end: socket.socket) -> None:
    """Lay layers over the one at `into`, lowest first, and say how much that was."""
    copies = [lay_over(source, into) for source in sources]
    totals = {name: sum(getattr(each, name) for each in copies) for name in ("num_bytes", "num_entries")}
    send_frame(end, totals)


def report_error(end: socket.socket, error: OSError, path: str) -> None:
    send_frame(end, {"errno": error.errno or 5, "path": str(error.filename or path)})


def _push(request: dict[str, Any], end: socket.socket) -> None:
    push_path = os.path.realpath(request["path"])
    os.makedirs(os.path.dirname(push_path), exist_ok=True)  # noqa: PTH103, PTH120
    pull_tree(end, push_path)
    send_frame(end, {})


def _pull(request: dict[str, Any], end: socket.socket) -> None:
    os.lstat(request["path"])
    send_frame(end, {})
    push_tree(end, request["path"])
