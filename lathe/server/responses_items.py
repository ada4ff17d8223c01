"""The input of OpenAI's responses: items of a conversation become messages.

One reply of a model comes back as several items (its reasoning, its text, each of its calls); `join_turns`
makes one assistant's turn of them again, so that the model reads what it wrote.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from lathe.server.content import TEXT_PARTS, UNSEEN, ContentPart, read_content
from lathe.server.errors import BadRequest
from lathe.server.responses_schema import InputItem
from lathe.text.tool_calls import parse_arguments
from lathe.types import Message, ToolCall

SEALED = "lathe:"


def read_items(items: Sequence[InputItem]) -> tuple[Message, ...]:
    """The conversation's messages. Raises BadRequest for an item that can't be read, by its place."""
    read = (read_item(item, f"input.{position}") for position, item in enumerate(items))
    messages = join_turns(message for message in read if message is not None)
    names = {call.id: call.name for message in messages for call in message.tool_calls}
    return tuple(
        replace(message, name=names.get(message.tool_call_id or "")) if message.role == "tool" else message
        for message in messages
    )


def read_item(item: InputItem, where: str) -> Message | None:
    """One item as a message of its own. None when it says nothing that this model could read."""
    kind = item.type or ("message" if item.role else "item_reference" if item.id else "")
    if kind in READERS:
        return READERS[kind](item, where)
    if kind == "item_reference":
        message = f"{where}: this server stores nothing that item_reference could name: send the item itself."
    elif not kind:
        message = f"{where}: an item needs a type, or a role."
    else:
        message = f"{where}: an item of type {kind!a} is not supported. There are {', '.join(READERS)}."
    raise BadRequest(message, param=where, code="unsupported_value")


def read_message(item: InputItem, where: str) -> Message:
    if item.role is None:
        raise BadRequest(f"{where}.role: a message needs a role.", param=f"{where}.role")
    return Message(item.role, read_content(item.content, f"{where}.content"))


def read_reasoning(item: InputItem, where: str) -> Message | None:
    """Reasoning that only another server could decrypt says nothing here."""
    parts = item.content or item.summary
    text = read_content(parts, where) if parts else unseal(item.encrypted_content or "")
    return Message("assistant", reasoning=text) if text else None


def seal(text: str) -> str:
    """Reasoning as `encrypted_content`: not secret, but opaque. Codex sends back nothing else of it."""
    return SEALED + base64.b64encode(text.encode("utf-8", "replace")).decode()


def unseal(sealed: str) -> str | None:
    """What `seal` was given; None for what another server sealed."""
    if not sealed.startswith(SEALED):
        return None
    try:
        return base64.b64decode(sealed.removeprefix(SEALED), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return None


def read_function_call(item: InputItem, where: str) -> Message:
    given = item.arguments
    arguments = given if isinstance(given, dict) else parse_arguments(given or "")
    return assistant_call(item, where, needed(item.name, f"{where}.name"), arguments)


def read_custom_tool_call(item: InputItem, where: str) -> Message:
    return assistant_call(item, where, needed(item.name, f"{where}.name"), {"input": item.input or ""})


def read_local_shell_call(item: InputItem, where: str) -> Message:
    arguments = {key: value for key, value in (item.action or {}).items() if key != "type"}
    return assistant_call(item, where, "local_shell", arguments)


def assistant_call(item: InputItem, where: str, name: str, arguments: Mapping[str, object]) -> Message:
    call = ToolCall(name, arguments, needed(item.call_id, f"{where}.call_id"))
    return Message("assistant", tool_calls=(call,))


def read_output(item: InputItem, where: str) -> Message:
    # OpenAI names a local shell's call by the output's own id; Codex by call_id, as everywhere else.
    call_id = item.call_id or (item.id if item.type == "local_shell_call_output" else None)
    output = item.output
    if isinstance(output, list):
        output = "\n".join(read_output_part(part, f"{where}.output.{i}") for i, part in enumerate(output))
    return Message("tool", output or "", tool_call_id=needed(call_id, f"{where}.call_id"))


def read_output_part(part: ContentPart, where: str) -> str:
    return read_content([part], where) if part.type in TEXT_PARTS else UNSEEN.format(kind=part.type)


def needed(value: str | None, where: str) -> str:
    if not value:
        raise BadRequest(f"{where}: this item needs a text that is not empty here.", param=where)
    return value


READERS: Mapping[str, Callable[[InputItem, str], Message | None]] = {
    "message": read_message,
    "reasoning": read_reasoning,
    "function_call": read_function_call,
    "function_call_output": read_output,
    "custom_tool_call": read_custom_tool_call,
    "custom_tool_call_output": read_output,
    "local_shell_call": read_local_shell_call,
    "local_shell_call_output": read_output,
}


def join_turns(messages: Iterable[Message]) -> list[Message]:
    """The same conversation with the pieces of one assistant's turn in one message.

    Reasoning that no answer followed is dropped: an empty turn would only confuse the model.
    """
    joined: list[Message] = []
    for message in messages:
        if joined and is_one_turn(joined[-1], message):
            joined[-1] = join(joined[-1], message)
        else:
            joined.append(message)
    return [message for message in joined if not is_thought_only(message)]


def is_one_turn(first: Message, second: Message) -> bool:
    if first.role != "assistant" or second.role != "assistant":
        return False
    if is_thought_only(second):  # a turn begins with its reasoning
        return is_thought_only(first)
    return is_thought_only(first) or bool(first.tool_calls or second.tool_calls)


def is_thought_only(message: Message) -> bool:
    return message.reasoning is not None and not message.content and not message.tool_calls


def join(first: Message, second: Message) -> Message:
    thoughts = [thought for thought in (first.reasoning, second.reasoning) if thought is not None]
    return replace(
        first,
        content=first.content + second.content,
        tool_calls=first.tool_calls + second.tool_calls,
        reasoning="\n\n".join(thoughts) if thoughts else None,
    )
