"""What the agent can do in its sandbox: seven tools, one file each."""

from __future__ import annotations

from lathe.agent.tools.bash import BASH
from lathe.agent.tools.edit import EDIT
from lathe.agent.tools.glob import GLOB
from lathe.agent.tools.grep import GREP
from lathe.agent.tools.read import READ
from lathe.agent.tools.todo import TODO
from lathe.agent.tools.tool import AgentTool, Output, ToolError, Workspace
from lathe.agent.tools.write import WRITE

__all__ = ["NATIVE_TOOLS", "AgentTool", "Output", "ToolError", "Workspace"]

# In a fixed order: tools stand at the prompt's beginning, and a cache knows beginnings.
NATIVE_TOOLS: tuple[AgentTool, ...] = (BASH, READ, WRITE, EDIT, GREP, GLOB, TODO)
