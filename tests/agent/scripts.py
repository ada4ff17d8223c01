"""Replies for scripted models, written as Qwen3-Coder writes them."""

from lathe.text.tool_calls import render
from lathe.types import ToolCall


def call(name: str, /, **arguments) -> str:
    """One call, without words."""
    return render([ToolCall(name, arguments)])


def calls(*each: str) -> str:
    return "\n".join(each)
