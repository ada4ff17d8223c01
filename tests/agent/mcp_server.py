"""A real MCP server: over stdio, or with a port over streamable HTTP."""

import os

from mcp.server.mcpserver import Image, MCPServer

server = MCPServer("sums")


@server.tool()
def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


@server.tool()
def fail(reason: str) -> str:
    """Fails."""
    raise ValueError(reason)


@server.tool()
def draw() -> Image:
    """A picture."""
    return Image(data=b"12345", format="png")


@server.tool()
def env(name: str) -> str:
    """A variable of the server's environment."""
    return os.environ.get(name, "")


@server.tool()
def long() -> str:
    """Much text."""
    return "line\n" * 10_000


@server.tool()
def die() -> str:
    """Ends the server."""
    os._exit(3)


if __name__ == "__main__":
    server.run("stdio")
