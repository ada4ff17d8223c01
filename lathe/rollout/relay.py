"""How an agent without a network reaches its model: a port inside its sandbox, a Unix socket behind it.

The socket lies in a folder of this machine that the sandbox sees. Who serves it knows which attempt speaks,
whatever the agent sends.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import uvicorn

from lathe.errors import InfrastructureError
from lathe.sandbox.spec import Bind
from lathe.types import Process, Sandbox

FOLDER = "/run/lathe-model"
PORT = 17_171
READY_TIMEOUT_S = 30.0
DRAIN_TIMEOUT_S = 5

App = Callable[..., Awaitable[None]]

# Runs in the sandbox: bytes from its loopback port to the socket, and back.
RELAY = """
import socket, sys, threading
def pump(one, other):
    try:
        while data := one.recv(65536):
            other.sendall(data)
    except OSError:
        pass
    finally:
        try:
            other.shutdown(socket.SHUT_WR)
        except OSError:
            pass
def serve(client):
    with client, socket.socket(socket.AF_UNIX) as model:
        model.connect(sys.argv[1])
        back = threading.Thread(target=pump, args=(model, client))
        back.start()
        pump(client, model)
        back.join()
server = socket.create_server(("127.0.0.1", int(sys.argv[2])), backlog=64)
print("ready", flush=True)
while True:
    threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()
"""


@asynccontextmanager
async def model_door(app: App, session: str) -> AsyncIterator[Bind]:
    """Serves an app on a Unix socket of its own, as long as the block runs. Every request there belongs to
    `session`. What a sandbox must be given to see the socket."""
    folder = Path(tempfile.mkdtemp(prefix="lathe-model-"))
    try:
        with bound_socket(folder) as bound:
            options: Any = dict(lifespan="off", log_config=None, access_log=False)
            app = _named(app, session)
            server = _Server(uvicorn.Config(app, timeout_graceful_shutdown=DRAIN_TIMEOUT_S, **options))
            serving = asyncio.ensure_future(server.serve(sockets=[bound]))
            try:
                yield Bind(str(folder), FOLDER)
            finally:
                server.should_exit = True  # what is being said is recorded before
                await asyncio.wait([serving])
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


def bound_socket(folder: Path) -> socket.socket:
    """A listening socket in a folder. In the sandbox, both are another user's."""
    bound = socket.socket(socket.AF_UNIX)
    bound.bind(str(folder / "socket"))
    bound.listen(128)
    folder.chmod(0o755)
    (folder / "socket").chmod(0o666)
    return bound


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Any:
        """Signals are the business of whoever runs the attempts."""
        yield


def _named(app: App, session: str) -> App:
    async def named(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        others = [(name, value) for name, value in scope.get("headers", ()) if name != b"x-session-id"]
        await app({**scope, "headers": [(b"x-session-id", session.encode()), *others]}, receive, send)

    return named


@asynccontextmanager
async def relayed(box: Sandbox) -> AsyncIterator[str]:
    """The model's address inside the sandbox, without /v1. Raises InfrastructureError where it can't be
    reached: the sandbox needs Python, and a loopback network."""
    relay = await box.start(["python3", "-I", "-c", RELAY, f"{FOLDER}/socket", str(PORT)])
    try:
        await _ready(relay)
        yield f"http://127.0.0.1:{PORT}"
    finally:
        with suppress(Exception):  # with its sandbox, it has ended, too
            await relay.kill()


async def _ready(relay: Process) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(READY_TIMEOUT_S):
            while "ready" not in relay.output()[0]:
                try:
                    ended = await relay.wait(0.02)
                except TimeoutError:
                    continue
                raise InfrastructureError(f"the way to the model can't be opened: {ended.stderr[-500:]}")
            return
    raise InfrastructureError(f"the way to the model was not open after {READY_TIMEOUT_S:g} s")
