"""A network that reaches named hosts alone: a proxy that runs outside, and is all that the inside can reach.

A sandbox with Egress has a network of its own, with nothing in it but `lo`. The sockets that listen there
were made inside and handed out, so no process of the sandbox serves them: what connects to 127.0.0.1 inside
is answered by this proxy, outside. It looks names up itself, connects to the very address that it checked,
and follows no redirect; a client that follows one asks again, and is judged again.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from lathe.errors import UserError
from lathe.sandbox.spec import Egress

PROXY_PORT = 3128
SPARE_PORTS = range(PROXY_PORT, PROXY_PORT + 100)
MAX_HEAD_BYTES = 64 << 10
HEAD_TIMEOUT_S = 30.0
CONNECT_TIMEOUT_S = 30.0
CHUNK = 64 << 10
LOCAL = ("localhost", "127.0.0.1", "::1")

Resolve = Callable[[str, int], Awaitable[list[str]]]


@dataclass(frozen=True)
class Entry:
    """One line of an allow-list: a host, or with `*.` all hosts below a domain, and a port."""

    host: str
    port: int

    def matches(self, host: str, port: int) -> bool:
        if port != self.port:
            return False
        if self.host.startswith("*."):
            return host.endswith(self.host[1:]) and host != self.host[1:]
        return host == self.host

    @property
    def is_local(self) -> bool:
        """Whether it is a port of this machine."""
        return self.host in LOCAL


def parse(egress: Egress) -> list[Entry]:
    """The entries of an allow-list. Raises UserError for one that says no host and port."""
    return [_entry(text) for text in egress.allow]


def _entry(text: str) -> Entry:
    host, _, port = text.rpartition(":")
    host = canonical(host)
    inner = host.removeprefix("*.")
    if not inner or not port.isdecimal() or not 0 < int(port) < 65536 or set(inner) & set("*/@ \t\r\n"):
        raise UserError(
            f"a network's allow-list holds host:port, as pypi.org:443, *.example.org:443 or localhost:8000; "
            f"not {text!r}"
        )
    if ":" in inner and not _is_address(inner):
        raise UserError(f"{text!r} is no host and port: an IPv6 address stands in brackets, as [::1]:8000")
    return Entry(host, int(port))


def canonical(host: str) -> str:
    """A host's name as it is compared: small letters, no brackets, no dot at its end."""
    return host.strip("[]").lower().removesuffix(".")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def ports(egress: Egress) -> tuple[int, list[int]]:
    """Where the proxy listens inside, and the ports that lead to this machine's."""
    local = sorted({each.port for each in parse(egress) if each.is_local})
    return next(port for port in SPARE_PORTS if port not in local), local


def environment(egress: Egress) -> dict[str, str]:
    """What tells programs to go by the proxy. Ports of this machine are reached without."""
    url = f"http://127.0.0.1:{ports(egress)[0]}"
    names = {"HTTP_PROXY": url, "HTTPS_PROXY": url, "NO_PROXY": ",".join(LOCAL)}
    return {**names, **{name.lower(): value for name, value in names.items()}}


def receive_listeners(end: socket.socket, num_ports: int) -> list[tuple[int, socket.socket]]:
    """The sockets that a process inside made, IPv4 and where there is one IPv6, with their ports."""
    found: list[tuple[int, socket.socket]] = []
    try:
        for _ in range(2 * num_ports):
            word, fds, _, _ = socket.recv_fds(end, 4096, 1)
            found += [(int(word), socket.socket(fileno=fd)) for fd in fds]
            if not fds and word != b"-":
                raise ConnectionError(f"no socket inside the sandbox: {word.decode(errors='replace')}")
            end.sendall(b".")
    except BaseException:
        for _, listener in found:
            listener.close()
        raise
    return found


class Refused(Exception):
    """What the proxy answers instead of connecting: a status and a reason in words."""

    def __init__(self, status: str, reason: str):
        super().__init__(reason)
        self.status = status


async def look_up(host: str, port: int) -> list[str]:
    """The addresses of a host, as this machine's resolver says."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class EgressProxy:
    """Serves the listening sockets of one sandbox."""

    def __init__(self, egress: Egress, resolve: Resolve = look_up):
        self.entries = parse(egress)
        self._resolve = resolve
        self._servers: list[asyncio.Server] = []
        self._connections: set[asyncio.Task[None]] = set()

    async def serve(self, listeners: Sequence[tuple[int, socket.socket]], proxy_port: int) -> None:
        """Answer on sockets that listen: at the proxy's port as a proxy, at others as this machine."""
        for port, listener in listeners:
            listener.setblocking(False)
            handle = self._proxy if port == proxy_port else self._to_local(port)
            self._servers.append(
                await asyncio.start_server(self._guarded(handle), sock=listener, limit=MAX_HEAD_BYTES)
            )

    def close(self) -> None:
        """Close the sockets and cut what goes through them."""
        for server in self._servers:
            server.close()
        for task in self._connections:
            task.cancel()

    def _guarded(self, handle: Callable) -> Callable:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._connections.add(task)
            try:
                await handle(reader, writer)
            except (OSError, asyncio.CancelledError, asyncio.IncompleteReadError, TimeoutError):
                pass  # either side went away, or the sandbox ended: nobody is left to be told
            finally:
                self._connections.discard(task)
                writer.close()

        return serve

    def _to_local(self, port: int) -> Callable:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                upstream = await self._connect("localhost", port)
            except Refused:
                return  # as nobody listens there
            await _join(reader, writer, *upstream)

        return handle

    async def _proxy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            try:
                head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), HEAD_TIMEOUT_S)
            except asyncio.LimitOverrunError:
                raise Refused(
                    "431 Request Header Fields Too Large", "the request's head is too long"
                ) from None
            host, port, first = read_request(head)
            upstream = await self._connect(host, port)
        except Refused as refused:
            text = f"{refused}\n".encode()
            writer.write(
                f"HTTP/1.1 {refused.status}\r\nContent-Type: text/plain; charset=utf-8\r\n"
                f"Content-Length: {len(text)}\r\nConnection: close\r\n\r\n".encode()
                + text
            )
            await writer.drain()
            return
        if first is None:
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        else:
            upstream[1].write(first)
        await _join(reader, writer, *upstream)

    async def _connect(self, host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Raises Refused for what is not on the list, or can't be reached."""
        name = "localhost" if host in LOCAL else host
        matching = [each for each in self.entries if each.matches(host, port)]
        if name == "localhost":
            matching += [each for each in self.entries if each.is_local and each.port == port]
        if not matching:
            allowed = ", ".join(f"{each.host}:{each.port}" for each in self.entries) or "nothing"
            raise Refused(
                "403 Forbidden", f"{host}:{port} is not allowed here; this sandbox reaches {allowed}"
            )
        is_named = any(each.host == host for each in matching)
        try:
            if name == "localhost":
                addresses = ["127.0.0.1", "::1"]
            else:
                found = await asyncio.wait_for(self._resolve(host, port), CONNECT_TIMEOUT_S)
                addresses = [each for each in found if may_lead_to(host, each, is_named)]
        except (OSError, UnicodeError, TimeoutError) as error:
            raise Refused("502 Bad Gateway", f"{host} can't be looked up: {error}") from None
        if not addresses:
            raise Refused("403 Forbidden", f"{host} leads to an address of this machine or its own network")
        trouble: BaseException = OSError("no address")
        for address in addresses:
            try:
                opening = asyncio.open_connection(address, port, limit=CHUNK)
                return await asyncio.wait_for(opening, CONNECT_TIMEOUT_S)
            except (OSError, TimeoutError) as error:
                trouble = error
        raise Refused("502 Bad Gateway", f"{host}:{port} can't be reached: {trouble}")


def may_lead_to(host: str, address: str, is_named: bool) -> bool:
    """Whether a host's name may have this address.

    Whoever owns a domain says where it leads. To this machine, or to what only it can reach, leads none; to a
    private network only a host that the list names in full.
    """
    found = ipaddress.ip_address(address.partition("%")[0])
    if _is_address(host):
        return True  # it is on the list as it is
    mapped = getattr(found, "ipv4_mapped", None)
    found = mapped or found
    if found.is_loopback or found.is_link_local or found.is_unspecified or found.is_multicast:
        return False
    return found.is_global or is_named


def read_request(head: bytes) -> tuple[str, int, bytes | None]:
    """Whom a request to the proxy is for, and what to send there first: None where it asks for a tunnel.

    One request a connection: what comes after it on the same one can't be for another host.
    """
    try:
        lines = head.decode("latin-1").split("\r\n")
        method, target, version = lines[0].split(" ")
        if method == "CONNECT":
            host, _, port = target.rpartition(":")
            return canonical(host), int(port), None
        url = urlsplit(target)
        if url.scheme != "http" or not url.hostname or not version.startswith("HTTP/1."):
            raise ValueError
        host, number = canonical(url.hostname), url.port or 80
        path = target.split("://", 1)[1].partition("#")[0]
        place = min((at for each in "/?" if (at := path.find(each)) >= 0), default=len(path))
        path = path[place:] if path[place : place + 1] == "/" else "/" + path[place:]
    except ValueError:
        raise Refused(
            "400 Bad Request", "a proxy is asked by CONNECT host:port, or with a whole http:// URL"
        ) from None
    dropped = ("host", "connection", "keep-alive")
    kept = [
        line
        for line in lines[1:]
        if line
        and (name := line.partition(":")[0].strip().lower()) not in dropped
        and not name.startswith("proxy-")
    ]
    authority = url.netloc.rpartition("@")[2]
    new = [f"{method} {path} {version}", f"Host: {authority}", "Connection: close", *kept]
    return host, number, ("\r\n".join(new) + "\r\n\r\n").encode("latin-1")


async def _join(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    other_reader: asyncio.StreamReader,
    other_writer: asyncio.StreamWriter,
) -> None:
    """Pass on what either side says, and that it has ended, until both have."""
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(_pass_on(reader, other_writer))
            group.create_task(_pass_on(other_reader, writer))
    except* OSError:
        pass
    finally:
        other_writer.close()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(CHUNK):
        writer.write(data)
        await writer.drain()
    with contextlib.suppress(OSError):
        if writer.can_write_eof():
            writer.write_eof()
