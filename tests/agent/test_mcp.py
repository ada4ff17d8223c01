"""MCP servers that are real: written with the package, started and called as a user's would be."""

import json
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvicorn
from mcp_server import server as sums
from scripts import call, calls
from serving import wait_until

from lathe.agent import mcp
from lathe.agent.loop import run
from lathe.agent.mcp import McpServer, open_servers, read_servers
from lathe.agent.tools import NATIVE_TOOLS
from lathe.errors import MissingExtra, UserError
from lathe.testing import ScriptedModel

HERE = Path(__file__).parent
STDIO = McpServer("my sums", sys.executable, (str(HERE / "mcp_server.py"),), env={"COLOUR": "green"})


@contextmanager
def served(app) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as bound:
        server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        thread = threading.Thread(target=server.run, args=([bound],), daemon=True)
        thread.start()
        try:
            assert wait_until(lambda: server.started, 20)
            yield f"http://127.0.0.1:{bound.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(20)


def results(attempt) -> list[str]:
    return [message.content for message in attempt.trajectory.messages if message.role == "tool"]


async def test_an_agent_uses_a_server_over_stdio(box):
    model = ScriptedModel(
        calls(
            call("mcp__my_sums__add", a=2, b=3),
            call("mcp__my_sums__fail", reason="of the weather"),
            call("mcp__my_sums__draw"),
            call("mcp__my_sums__env", name="COLOUR"),
            call("mcp__my_sums__add", a="two"),
            call("mcp__my_sums__long"),
        ),
        call("mcp__my_sums__die"),
        call("mcp__my_sums__add", a=1, b=1),
        call("bash", command="echo the rest lives"),
        "Done.",
    )
    asked = []

    async def approve(proposal):
        asked.append((proposal.call.name, proposal.kind))

    async with open_servers([STDIO]) as found:
        assert found.problems == ()
        names = [tool.name for tool in found.tools]
        assert names == [f"mcp__my_sums__{name}" for name in ("add", "fail", "draw", "env", "long", "die")]
        assert found.tools[0].spec.description == "Adds two numbers."
        attempt = await run(model, box, "Add.", tools=(*NATIVE_TOOLS, *found.tools), approve=approve)
    added, failed, drawn, colour, wrong, long, died, gone, alive = results(attempt)
    assert (attempt.stop_reason, added, colour, alive) == ("done", "5", "green", "the rest lives")
    assert "Error executing tool fail" in failed and "[image: image/png, " in drawn
    assert "b is missing" in wrong and "a must be integer" in wrong
    assert len(long) < 10_300 and "all of it is in" in long
    assert all("MCP server my sums" in each for each in (died, gone))
    assert asked[0] == ("mcp__my_sums__add", "run")


async def test_an_agent_uses_a_server_over_http(box):
    app = sums.streamable_http_app(stateless_http=True)
    with served(app) as url:
        async with open_servers([McpServer("far", url=f"{url}/mcp", headers={"X-Key": "k"})]) as found:
            assert found.problems == ()
            model = ScriptedModel(call("mcp__far__add", a=20, b=22), "Done.")
            attempt = await run(model, box, "Add.", tools=found.tools)
    assert results(attempt) == ["42"]


async def test_servers_that_do_not_start_are_named_and_survived():
    angry = "import sys; sys.exit('no licence found')"
    servers = [
        McpServer("missing", "/nowhere/server"),
        McpServer("angry", sys.executable, ("-c", angry)),
        McpServer("closed", url="http://127.0.0.1:9/mcp"),
    ]
    async with open_servers(servers) as found:
        problems = dict(zip(("missing", "angry", "closed"), found.problems, strict=True))
        assert found.tools == ()
    assert all(f"MCP server {name}" in problem for name, problem in problems.items())
    assert "/nowhere/server" in problems["missing"] or "No such file" in problems["missing"]
    assert "no licence found" in problems["angry"]
    async with open_servers([McpServer("silent", "sleep", ("60",))], start_timeout_s=0.2) as found:
        assert found.problems == ("MCP server silent did not start within 0.2 s.",) and not found.tools


async def test_the_package_is_asked_for_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "mcp", None)
    async with open_servers([]) as found:
        assert found.tools == ()
    with pytest.raises(MissingExtra, match="mcp"):
        async with open_servers([STDIO]):
            pass


def test_configuration(tmp_path):
    path = tmp_path / ".lathe" / "mcp.json"
    path.parent.mkdir()
    entries = {
        "local": {
            "command": "${HOME}/bin/server",
            "args": ["-p", 7],
            "env": {"KEY": "${KEY:-none}"},
            "cwd": "/x",
        },
        "far": {"httpUrl": "https://example.org/mcp", "headers": {"A": "Bearer ${TOKEN}"}, "timeout": 5000},
        "off": {"command": "x", "disabled": True},
    }
    path.write_text(json.dumps({"mcpServers": entries, "theme": "dark"}))
    assert read_servers(path, {"HOME": "/home/me", "TOKEN": "t"}) == [
        McpServer("local", "/home/me/bin/server", ("-p", "7"), {"KEY": "none"}, "/x"),
        McpServer("far", url="https://example.org/mcp", headers={"A": "Bearer t"}, call_timeout_s=5.0),
    ]
    assert mcp.find_files(tmp_path, mcp.PROJECT_PLACES) == [path]
    path.write_text("{}")
    assert read_servers(path) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is no JSON"),
        ("[]", "must hold"),
        ('{"mcpServers": {"a": 3}}', "mcpServers.a must be an object"),
        ('{"mcpServers": {"a": {}}}', "mcpServers.a needs a command, or a url"),
        ('{"mcpServers": {"a": {"command": "x", "url": "y"}}}', "exactly one"),
        ('{"mcpServers": {"a": {"command": "x", "args": "y"}}}', "mcpServers.a.args must be a list"),
        ('{"mcpServers": {"a": {"url": "x", "type": "sse"}}}', "sse is out of date"),
    ],
)
def test_wrong_configuration_is_named(tmp_path, text, words):
    path = tmp_path / "mcp.json"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_servers(path)
    assert words in str(caught.value) and str(path) in str(caught.value)
    with pytest.raises(UserError, match="can't be read"):
        read_servers(tmp_path / "nope.json")
