"""Tools of MCP servers, by the official `mcp` package (extra `mcp`): over stdio, or streamable HTTP.

Servers run on this machine with the user's rights, not in the sandbox. A project's own configuration can name
any command: whoever reads one must know that its user trusts it.
"""

from __future__ import annotations

import asyncio
import json
import re
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from lathe.agent.tools.tool import AgentTool, Output, ToolError, Workspace
from lathe.errors import MissingExtra, UserError
from lathe.types import Tool

START_TIMEOUT_S = 30.0
CALL_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 10.0
MAX_NAME = 128  # no longer name can be read back from a model's text

PROJECT_PLACES = (".lathe/mcp.json", ".mcp.json")
USER_PLACES = (".config/lathe/mcp.json", ".qwen/settings.json")


@dataclass(frozen=True)
class McpServer:
    """How a server is reached: a `command` to run with its arguments, or a `url`."""

    name: str
    command: str | None = None
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str | None = None
    url: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    call_timeout_s: float = CALL_TIMEOUT_S


@dataclass(frozen=True)
class McpTools:
    """The tools of the servers that started, and for each that did not, why."""

    tools: tuple[AgentTool, ...] = ()
    problems: tuple[str, ...] = ()


# What is configured


def read_servers(path: Path, env: Mapping[str, str] | None = None) -> list[McpServer]:
    """The servers of a file with `mcpServers`, but for the disabled ones. `${NAME}` and `${NAME:-default}`
    in values are taken from `env`. Raises UserError, which names the file and the place."""
    try:
        data = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}.") from error
    except ValueError as error:
        raise UserError(f"{path} is no JSON: {error}.") from error
    servers = data.get("mcpServers", {}) if isinstance(data, dict) else None
    if not isinstance(servers, dict):
        raise UserError(f'{path} must hold {{"mcpServers": {{"name": {{"command": …}}}}}}.')
    return [
        _server(str(name), _expanded(entry, env or {}), path)
        for name, entry in servers.items()
        if not (isinstance(entry, dict) and entry.get("disabled"))
    ]


def _server(name: str, entry: Any, path: Path) -> McpServer:
    where = f"{path}, mcpServers.{name}"
    if not isinstance(entry, dict):
        raise UserError(f"{where} must be an object with a command or a url.")
    kinds = {
        "command": str, "args": list, "env": dict, "cwd": str, "url": str, "httpUrl": str, "headers": dict,
        "timeout": int, "type": str,
    }  # fmt: skip
    for key, kind in kinds.items():
        if key in entry and not isinstance(entry[key], kind):
            raise UserError(f"{where}.{key} must be {'text' if kind is str else f'a {kind.__name__}'}.")
    url = entry.get("httpUrl") or entry.get("url")
    if (url is None) == ("command" not in entry):
        raise UserError(f"{where} needs a command, or a url; exactly one of them.")
    if entry.get("type") == "sse":
        raise UserError(f"{where}: the transport sse is out of date. Use the server's streamable HTTP url.")
    return McpServer(
        name=name,
        command=entry.get("command"),
        args=tuple(map(str, entry.get("args", ()))),
        env={key: str(value) for key, value in entry.get("env", {}).items()},
        cwd=entry.get("cwd"),
        url=url,
        headers={key: str(value) for key, value in entry.get("headers", {}).items()},
        call_timeout_s=entry["timeout"] / 1000 if "timeout" in entry else CALL_TIMEOUT_S,
    )


def _expanded(value: Any, env: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return re.sub(
            r"\$\{(\w+)(?::-([^}]*))?\}",
            lambda found: env.get(found.group(1), found.group(2) or ""),
            value,
        )
    if isinstance(value, dict):
        return {key: _expanded(item, env) for key, item in value.items()}
    return [_expanded(item, env) for item in value] if isinstance(value, list) else value


def find_files(folder: Path, places: Sequence[str]) -> list[Path]:
    """Those of the usual places below a folder that have a file."""
    return [folder / place for place in places if (folder / place).is_file()]


# Servers that run


@asynccontextmanager
async def open_servers(
    servers: Sequence[McpServer], *, start_timeout_s: float = START_TIMEOUT_S
) -> AsyncIterator[McpTools]:
    """Starts the servers, all at once, and ends them with the block. One that can't be started is a problem
    that is told, no error. Raises MissingExtra when there are servers and no package `mcp`."""
    if not servers:
        yield McpTools()
        return
    try:
        import mcp  # noqa: F401
    except ImportError as error:
        raise MissingExtra("mcp") from error
    running = [_Running(server) for server in servers]
    try:
        await asyncio.gather(*(each.start(start_timeout_s) for each in running))
        yield _joined(running)
    finally:
        await asyncio.gather(*(each.stop() for each in running))


def _joined(running: Sequence[_Running]) -> McpTools:
    """All tools in the order of configuration, so that the prompt's beginning is always the same."""
    tools: dict[str, AgentTool] = {}
    problems = []
    for each in running:
        if each.problem:
            problems.append(each.problem)
        for tool in each.tools:
            if len(tool.name) > MAX_NAME or tool.name in tools:
                why = "is too long" if len(tool.name) > MAX_NAME else "is there twice"
                problems.append(f"MCP server {each.server.name}: the tool's name {tool.name} {why}.")
            else:
                tools[tool.name] = tool
    return McpTools(tuple(tools.values()), tuple(problems))


class _Running:
    """A server in a task of its own: what breaks in it can't cancel the agent's."""

    def __init__(self, server: McpServer):
        self.server = server
        self.tools: list[AgentTool] = []
        self.problem = ""
        self._ready = asyncio.Event()
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._client: Any = None

    async def start(self, timeout_s: float) -> None:
        self._task = asyncio.create_task(self._serve())
        waiting = asyncio.ensure_future(self._ready.wait())
        try:
            await asyncio.wait({self._task, waiting}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        if not self._ready.is_set() and not self.problem:
            self.problem = f"MCP server {self.server.name} did not start within {timeout_s:g} s."
            self._task.cancel()

    async def stop(self) -> None:
        self._stopping.set()
        if self._task is not None:
            _, pending = await asyncio.wait({self._task}, timeout=STOP_TIMEOUT_S)
            for task in pending:
                task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _serve(self) -> None:
        """The boundary: whatever goes wrong with a server is its problem, told once."""
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
            try:
                async with _client_of(self.server, said) as client:
                    self._client = client
                    self.tools = [self._tool(each) for each in await _list_tools(client)]
                    self._ready.set()
                    await self._stopping.wait()
            except Exception as error:
                said.seek(0)
                words = " ".join(said.read()[-1000:].split())
                reason = _first_of(error)
                self.problem = f"MCP server {self.server.name} failed: {reason}" + (
                    f" ({words})" if words else ""
                )
            finally:
                self._client = None

    def _tool(self, tool: Any) -> AgentTool:
        name = f"mcp__{_plain(self.server.name)}__{_plain(tool.name)}"

        async def run(workspace: Workspace, arguments: Mapping[str, Any]) -> Output:
            if self._client is None:
                raise ToolError(f"The MCP server {self.server.name} is gone. {self.problem}")
            try:
                result = await self._client.call_tool(
                    tool.name, dict(arguments), read_timeout_seconds=self.server.call_timeout_s
                )
            except Exception as error:  # the boundary again: a server's errors are the model's to read
                raise ToolError(f"The MCP server {self.server.name} failed: {_first_of(error)}") from error
            return Output(await workspace.cap(text_of(result)), is_error=bool(result.is_error))

        # What a server says of its tool's harmlessness is no proof of it: each is taken to change things.
        return AgentTool(Tool(name, tool.description or "", tool.input_schema), "run", run)


async def _list_tools(client: Any) -> list[Any]:
    tools: list[Any] = []
    cursor = None
    while True:
        page = await client.list_tools(cursor=cursor)
        tools += page.tools
        cursor = page.next_cursor
        if cursor is None:
            return tools


@asynccontextmanager
async def _client_of(server: McpServer, said: IO[str]) -> AsyncIterator[Any]:
    """The package's client, connected. What a server writes to stderr goes to `said`."""
    from mcp import Client, StdioServerParameters, stdio_client
    from mcp.client.streamable_http import create_mcp_http_client, streamable_http_client

    async with AsyncExitStack() as stack:
        if server.url is None:
            parameters = StdioServerParameters(
                command=server.command or "", args=list(server.args), env=dict(server.env), cwd=server.cwd
            )
            transport = stdio_client(parameters, errlog=said)  # type: ignore[arg-type]
        else:
            http = await stack.enter_async_context(create_mcp_http_client(headers=dict(server.headers)))
            transport = streamable_http_client(server.url, http_client=http)
        yield await stack.enter_async_context(Client(transport))


def text_of(result: Any) -> str:
    """What a model can read of a result: its texts; of anything else, what it is."""
    parts = [_text_of_block(block) for block in result.content]
    if not parts and result.structured_content is not None:
        parts = [json.dumps(result.structured_content, ensure_ascii=False)]
    return "\n".join(parts) or "[no output]"


def _text_of_block(block: Any) -> str:
    match block.type:
        case "text":
            return str(block.text)
        case "image" | "audio":
            return (
                f"[{block.type}: {block.mime_type}, {len(block.data) * 3 // 4} bytes; only text can be read]"
            )
        case "resource" if hasattr(block.resource, "text"):
            return str(block.resource.text)
        case "resource":
            return f"[resource: {block.resource.uri}; only text can be read]"
        case "resource_link":
            return f"[resource: {block.uri}]"
    return f"[{block.type}]"


def _plain(name: str) -> str:
    """A name that a model's calls can carry."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name)


def _first_of(error: BaseException) -> str:
    """The error itself, out of the groups in which task groups wrap it."""
    while isinstance(error, BaseExceptionGroup) and error.exceptions:
        error = error.exceptions[0]
    return str(error) or type(error).__name__
