"""todo: the agent's plan for a longer task. It helps the model, and shows people where it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lathe.agent.tools.tool import AgentTool, Output, Workspace, schema
from lathe.types import Tool

STATES = ("pending", "in_progress", "completed")
MARKS = dict(zip(STATES, " >x", strict=True))


async def run(workspace: Workspace, arguments: Mapping[str, Any]) -> Output:
    workspace.todos = [each for each in arguments["todos"] if isinstance(each, Mapping)]
    lines = [
        f"[{MARKS.get(each.get('status', 'pending'), ' ')}] {each.get('content', '')}"
        for each in workspace.todos
    ]
    return Output("\n".join(lines) or "[the list is empty]")


TODO = AgentTool(
    Tool(
        "todo",
        "Plan a task of several steps: gives the whole list anew. Keep one step in_progress, "
        "and mark steps completed as you finish them.",
        schema(
            ("todos",),
            todos={
                "type": "array",
                "items": schema(
                    ("content", "status"),
                    content="string",
                    status={"type": "string", "enum": list(STATES)},
                ),
            },
        ),
    ),
    "read",
    run,
)
