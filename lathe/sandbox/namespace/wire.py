"""Messages between a pool and its spawners: JSON in one packet each, with file descriptors beside it.

The socket keeps the borders of packets, so nothing has to be parsed to find a message's end.
"""

from __future__ import annotations

import json
import socket
from array import array
from collections.abc import Sequence
from typing import Any

MAX_BYTES = 192 << 10  # a packet must fit the socket's send buffer, 208 KiB where nobody changed it
MAX_FDS = 8

Message = dict[str, Any]


def pack(message: Message) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode()


def send(end: socket.socket, data: bytes, fds: Sequence[int] = ()) -> None:
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
    end.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)


def receive(end: socket.socket) -> tuple[Message | None, list[int]]:
    """The next message and its descriptors (close-on-exec); None when the other side has gone."""
    space = socket.CMSG_SPACE(MAX_FDS * 4)
    data, ancillary, _, _ = end.recvmsg(MAX_BYTES + 1, space, socket.MSG_CMSG_CLOEXEC)
    fds = array("i")
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    return (json.loads(data) if data else None), list(fds)
