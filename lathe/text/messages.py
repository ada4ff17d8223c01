"""Plain dicts, as the field writes conversations and tools, into Lathe's nouns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast, get_args

from lathe.errors import InvalidRequest
from lathe.text.tool_arguments import json_text, parse_arguments
from lathe.types import Message, Role, Tool, ToolCall

ROLES = get_args(Role)


def to_messages(messages: Sequence[Message | Mapping[str, Any]]) -> tuple[Message, ...]:
    return tuple(to_message(message) for message in messages)


def to_message(message: Message | Mapping[str, Any]) -> Message:
    """A turn from `{"role": ..., "content": ...}` with OpenAI's optional keys. Content may be text, None or a
    list of text parts. Raises InvalidRequest when the role is unknown or a part is not text."""
    if isinstance(message, Message):
        return message
    if not isinstance(message, Mapping):
        raise InvalidRequest(
            f"A message is {message!r:.40}; it must be a dict such as {{'role': 'user', 'content': 'Hello'}}."
        )
    role = message.get("role")
    if role not in ROLES:
        raise InvalidRequest(f"A message has the role {role!r}; it must be one of {', '.join(ROLES)}.")
    return Message(
        role=cast(Role, role),
        content=text_of(message.get("content")),
        tool_calls=tuple(to_tool_call(call) for call in message.get("tool_calls") or ()),
        tool_call_id=message.get("tool_call_id"),
        name=message.get("name"),
        reasoning=message.get("reasoning_content"),
    )


def text_of(content: Any) -> str:
    """The text of a message's content: a string, None, or parts of text, one a line."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise InvalidRequest(
            f"A message's content is {type(content).__name__}; it must be text or a list of parts."
        )
    texts = []
    for part in content:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, Mapping) and isinstance(part.get("text"), str):
            texts.append(part["text"])
        else:
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise InvalidRequest(f"A message has a part of type {kind!r}; this model reads text only.")
    return "\n".join(texts)


def to_tool_call(call: ToolCall | Mapping[str, Any]) -> ToolCall:
    """A call from `{"id": ..., "function": {"name": ..., "arguments": JSON text or an object}}`."""
    if isinstance(call, ToolCall):
        return call
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        raise InvalidRequest(f"A tool call is {call!r:.40}; it must be a dict with a function.")
    arguments = function.get("arguments") or {}
    if not isinstance(arguments, Mapping):
        arguments = parse_arguments(arguments if isinstance(arguments, str) else json_text(arguments))
    return ToolCall(name=str(function.get("name") or ""), arguments=arguments, id=str(call.get("id") or ""))


ToolLike = Tool | Mapping[str, Any]


def to_tools(tools: Sequence[ToolLike] | None) -> tuple[Tool, ...]:
    """Tools from `{"type": "function", "function": {...}}` or the inner part. Other kinds of tools raise."""
    return tuple(_to_tool(tool) for tool in tools or ())


def _to_tool(tool: ToolLike) -> Tool:
    if isinstance(tool, Tool):
        return tool
    function = tool.get("function", tool)
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise InvalidRequest(f"A tool needs a function with a name; this one has the keys {sorted(tool)}.")
    return Tool(function["name"], function.get("description") or "", function.get("parameters"))
