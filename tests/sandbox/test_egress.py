"""A network that reaches named hosts alone: what gets through, and what does not."""

import asyncio
import socket
from contextlib import asynccontextmanager

import pytest

from lathe.errors import UserError
from lathe.sandbox.egress import EgressProxy, environment, may_lead_to, parse, ports
from lathe.sandbox.spec import Egress, SandboxSpec

GET = "import urllib.request as r; print(r.urlopen({url!r}, timeout=30).read().decode())"
PAGE = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello"


@asynccontextmanager
async def site(answer=PAGE):
    """A server of this machine's; the port, and the heads of the requests that came."""
    heard = []

    async def handle(reader, writer):
        heard.append((await reader.readuntil(b"\r\n\r\n")).decode())
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], heard


@asynccontextmanager
async def proxy(*allow, addresses=None):
    """A proxy on this machine's loopback; a function that sends it bytes and gives what it answers."""
    egress = Egress(allow)
    port = ports(egress)[0]
    asked = []

    async def resolve(host, _):
        asked.append(host)
        return addresses or ["127.0.0.1"]

    listener = socket.create_server(("127.0.0.1", 0))
    made = EgressProxy(egress, resolve)
    await made.serve([(port, listener)], port)
    where = listener.getsockname()

    async def ask(text):
        reader, writer = await asyncio.open_connection(*where[:2])
        writer.write(text.encode())
        try:
            return (await asyncio.wait_for(reader.read(), 60)).decode()
        finally:
            writer.close()

    try:
        yield ask, asked
    finally:
        made.close()


async def test_a_port_of_this_machine_is_at_the_same_port_inside_without_a_proxy(pool):
    async with site() as (port, heard):
        box = await pool.create(SandboxSpec(network=Egress((f"localhost:{port}",))))
        for name in ("127.0.0.1", "localhost"):
            result = await box.exec(["python3", "-c", GET.format(url=f"http://{name}:{port}/v1/models")])
            assert (result.stdout.strip(), result.stderr) == ("hello", "")
        assert [each.split("\r\n")[0] for each in heard] == ["GET /v1/models HTTP/1.1"] * 2


async def test_through_the_proxy_goes_what_is_allowed_and_nothing_else(pool):
    async with site() as (port, heard), site() as (other, refused):
        box = await pool.create(SandboxSpec(network=Egress((f"localhost:{port}",))))
        ask = (
            "import socket, sys\n"
            "end = socket.create_connection(('127.0.0.1', 3128)); end.settimeout(60)\n"
            "end.sendall(sys.argv[1].encode().decode('unicode_escape').encode())\n"
            "print(end.makefile().read())"
        )
        through = f"CONNECT 127.0.0.1:{port} HTTP/1.1\\r\\n\\r\\nGET /in HTTP/1.1\\r\\n\\r\\n"
        assert "hello" in (await box.exec(["python3", "-c", ask, through])).stdout
        not_allowed = f"CONNECT 127.0.0.1:{other} HTTP/1.1\\r\\n\\r\\n"
        assert "403 Forbidden" in (await box.exec(["python3", "-c", ask, not_allowed])).stdout
        direct = await box.exec(
            ["python3", "-c", f"import socket; socket.create_connection(('127.0.0.1', {other}))"]
        )
        assert "ConnectionRefusedError" in direct.stderr
        away = await box.exec(
            ["python3", "-c", "import socket; socket.create_connection(('192.0.2.1', 80), 5)"]
        )
        assert "Network is unreachable" in away.stderr
        assert heard and not refused


async def test_a_redirect_is_judged_again(pool):
    async with site() as (other, refused):
        moved = (
            f"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:{other}/\r\nContent-Length: 0\r\n\r\n".encode()
        )
        async with site(moved) as (port, heard):
            box = await pool.create(SandboxSpec(network=Egress((f"localhost:{port}",))))
            result = await box.exec(["python3", "-c", GET.format(url=f"http://127.0.0.1:{port}/")])
            assert result.exit_code == 1 and "refused" in result.stderr
            assert heard and not refused


async def test_it_is_there_again_after_sleep_and_in_a_fork_and_gone_with_its_sandbox(pool):
    async with site() as (port, _):
        box = await pool.create(SandboxSpec(network=Egress((f"localhost:{port}",))))
        await box.hibernate()
        fork = await box.fork()
        for each in (box, fork):
            told = await each.python(GET.format(url=f"http://127.0.0.1:{port}/"))
            assert told.stdout.strip() == "hello", told.stderr
        await box.close()
        await fork.close()


async def test_programs_are_told_of_the_proxy(pool):
    box = await pool.create(SandboxSpec(network=Egress(("pypi.org:443", "localhost:3128"))))
    told = (await box.exec("echo $HTTPS_PROXY $http_proxy $NO_PROXY")).stdout.split()
    assert told == ["http://127.0.0.1:3129", "http://127.0.0.1:3129", "localhost,127.0.0.1,::1"]
    assert environment(Egress(()))["HTTP_PROXY"] == "http://127.0.0.1:3128"


async def test_a_plain_request_is_passed_on_with_the_host_of_its_url():
    async with site() as (port, heard), proxy(f"127.0.0.1:{port}") as (ask, _):
        line = f"GET http://127.0.0.1:{port}/a?b=c HTTP/1.1"
        head = f"{line}\r\nHost: evil.example\r\nProxy-Authorization: x\r\n\r\n"
        assert "hello" in await ask(head)
        assert heard == [f"GET /a?b=c HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n"]


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "example.org.evil.example",
        "notexample.org",
        "example.org",
        "2130706433",
        "0x7f.1",
        "[::1]",
    ],
)
async def test_names_that_look_like_an_allowed_one_are_not_even_looked_up(host):
    async with proxy("*.example.org:443") as (ask, asked):
        assert (await ask(f"CONNECT {host}:443 HTTP/1.1\r\n\r\n")).startswith("HTTP/1.1 403")
        assert not asked


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "169.254.169.254", "0.0.0.0", "::ffff:127.0.0.1"])
async def test_an_allowed_name_does_not_lead_to_this_machine(address):
    async with proxy("host.example.org:443", addresses=[address]) as (ask, asked):
        answer = await ask("CONNECT Host.Example.ORG.:443 HTTP/1.1\r\n\r\n")
        assert answer.startswith("HTTP/1.1 403") and "leads to an address of this machine" in answer
        assert asked == ["host.example.org"]


def test_a_private_network_is_reached_by_whole_names_only():
    assert may_lead_to("git.corp.example", "10.1.2.3", is_named=True)
    assert not may_lead_to("any.corp.example", "10.1.2.3", is_named=False)
    assert may_lead_to("any.corp.example", "93.184.216.34", is_named=False)


@pytest.mark.parametrize(
    "text", ["GET / HTTP/1.1", "CONNECT x HTTP/1.1", "GET ftp://a/ HTTP/1.1", "nonsense"]
)
async def test_what_is_no_request_to_a_proxy_is_told_so(text):
    async with proxy("example.org:443") as (ask, _):
        assert (await ask(f"{text}\r\n\r\n")).startswith("HTTP/1.1 400")


async def test_a_head_without_end_is_cut():
    async with proxy("example.org:443") as (ask, _):
        assert (await ask("GET " + "x" * 200_000)).startswith("HTTP/1.1 431")


async def test_a_site_that_is_down_is_no_refusal():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    async with proxy(f"localhost:{port}") as (ask, _):
        assert (await ask(f"CONNECT localhost:{port} HTTP/1.1\r\n\r\n")).startswith("HTTP/1.1 502")


@pytest.mark.parametrize(
    "text", ["pypi.org", "pypi.org:", "http://pypi.org:443", "*:443", ":443", "a:99999", "a b:1"]
)
async def test_an_entry_without_host_and_port_is_named(pool, text):
    with pytest.raises(UserError, match="allow-list holds host:port"):
        await pool.create(SandboxSpec(network=Egress((text,))))


def test_entries_are_compared_in_one_way():
    assert parse(Egress(("PyPI.org.:443",)))[0].matches("pypi.org", 443)
    assert parse(Egress(("[::1]:8000",)))[0].is_local
