"""Binding a port and running the app on it until a signal says stop."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import json
import shlex
import socket
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

import uvicorn
from fastapi import FastAPI

from lathe.errors import UserError

# Replies in the making when the server is told to stop get this long; an agent's may need minutes.
GRACE_S = 3.0


def bind(host: str, port: int) -> socket.socket:
    """A socket on that address; port 0 takes a free one. Bound before a model loads, so that a port in use
    is known at once and not after minutes. Raises UserError."""
    if not 0 <= port <= 65535:
        raise UserError(f"{port} is no port: choose one from 0 to 65535 with --port.")
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, proto)
        # A port whose last server was just stopped may be taken again at once; one in use may not.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        # Two bound sockets may share an address until one of them listens.
        bound.listen(128)
    except socket.gaierror as error:
        raise UserError(
            f"{host} is no address of this machine ({error.strerror}). Choose one with --host."
        ) from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(f"Port {port} on {host} is in use. Choose another with --port.") from error
        if error.errno == errno.EACCES:
            raise UserError(
                f"Port {port} needs more rights than you have. Choose another with --port."
            ) from error
        raise UserError(f"Can't listen on {host}, port {port}: {error.strerror}.") from error
    return bound


class Server(uvicorn.Server):
    """uvicorn's server, with a call when it answers, and one that drains it before it stops.

    While it drains it goes on listening, so that a client who comes late is told why (503).
    """

    def __init__(self, app: FastAPI, on_ready: Callable[[], None], grace_s: float = GRACE_S):
        super().__init__(uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=1))
        self.on_ready = on_ready
        self.grace_s = grace_s
        self._service = app.state.service
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self._loop = asyncio.get_running_loop()
        self.on_ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal lets replies end; a second one stops at once."""
        if self._service.is_draining or not self.started:
            super().handle_exit(sig, frame)
        else:
            self._service.is_draining = True
            self._captured_signals.append(sig)
            self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        async def drain() -> None:
            await self._service.drain(self.grace_s)
            self.should_exit = True

        self._draining = asyncio.ensure_future(drain())


def run(
    app: FastAPI, bound: socket.socket, on_ready: Callable[[], None] = lambda: None, grace_s: float = GRACE_S
) -> None:
    """Serve until SIGINT or SIGTERM. Then new requests get a 503, and replies in the making `grace_s` to end
    before they end with what they have."""
    with suppress(KeyboardInterrupt):  # uvicorn raises it again once it has stopped
        Server(app, on_ready, grace_s).run(sockets=[bound])


def base_url(bound: socket.socket) -> str:
    """Where a client on this machine reaches the socket."""
    host, port = bound.getsockname()[:2]
    if host in ("0.0.0.0", "::", "127.0.0.1"):
        host = "localhost"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_loopback(bound: socket.socket) -> bool:
    """Whether only this machine can reach the socket."""
    return ipaddress.ip_address(bound.getsockname()[0].partition("%")[0]).is_loopback


def curl_line(url: str, api_key: str | None) -> str:
    """One line for a shell that asks the model something."""
    turn = {"role": "user", "content": "Write a Python function that reverses a string."}
    body = {"messages": [turn], "max_tokens": 100}
    words = ["curl", f"{url}/v1/chat/completions", "-H", "Content-Type: application/json"]
    if api_key is not None:
        words += ["-H", f"Authorization: Bearer {api_key}"]
    return shlex.join([*words, "-d", json.dumps(body)])
