"""A reply's calls, checked and carried out: those that only read side by side, the others in their order."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from itertools import groupby
from typing import Any

from lathe.agent.events import Event, ToolEnded, ToolStarted
from lathe.agent.guard import has_leaked_call
from lathe.agent.tools.tool import AgentTool, Kind, Output, ToolError, Workspace
from lathe.text.tool_arguments import Schema
from lathe.types import Message, ToolCall


@dataclass(frozen=True)
class Proposal:
    """A call that waits for leave. `diff` is what it would change, as far as its tool can say before."""

    call: ToolCall
    kind: Kind
    diff: str = ""


# None lets a call go on; a text denies it, and is what the model reads.
Approve = Callable[[Proposal], Awaitable[str | None]]


class DamagedCall(ToolError):
    """A call of no tool that is there, or with arguments that don't fit."""


@dataclass(frozen=True)
class Answered:
    """A call's result."""

    message: Message
    is_error: bool = False


async def answer_calls(
    calls: Sequence[ToolCall],
    tools: Sequence[AgentTool],
    workspace: Workspace | None,
    results: dict[int, Answered],
    *,
    approve: Approve | None,
    on_event: Callable[[Event], None],
) -> None:
    """Puts each call's result into `results`, by the call's place, as soon as it is there.

    What can be wrong with a call is its result. Errors of the sandbox fly, and so does cancellation: what had
    been done by then is in `results`.
    """
    known = {tool.name: tool for tool in tools}

    async def answer(place: int) -> None:
        results[place] = await _answer(calls[place], known, workspace, approve, on_event)

    def reads(place: int) -> bool:
        tool = known.get(calls[place].name)
        return tool is not None and tool.kind == "read"

    for is_reading, group in groupby(range(len(calls)), reads):
        if is_reading and approve is None:
            await _together([answer(place) for place in group])
        else:
            for place in group:
                await answer(place)


async def _together(work: Sequence[Any]) -> None:
    """All of it at once. The first error ends the others, and flies as itself, not as a group."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _answer(
    call: ToolCall,
    known: Mapping[str, AgentTool],
    workspace: Workspace | None,
    approve: Approve | None,
    on_event: Callable[[Event], None],
) -> Answered:
    started = time.monotonic()
    on_event(ToolStarted(call))
    output, denied = await _carry_out(call, known, workspace, approve)
    message = Message("tool", output.text, tool_call_id=call.id, name=call.name)
    duration_s = time.monotonic() - started
    on_event(ToolEnded(call, message, duration_s, output.is_error, denied, output.diff))
    return Answered(message, output.is_error)


async def _carry_out(
    call: ToolCall, known: Mapping[str, AgentTool], workspace: Workspace | None, approve: Approve | None
) -> tuple[Output, bool]:
    """The result, and whether the call was denied."""
    try:
        tool, arguments = check(call, known)
        assert workspace is not None, "where there are tools, there is a sandbox"
        if approve is not None:
            refusal = await approve(Proposal(call, tool.kind, await _preview(tool, workspace, arguments)))
            if refusal is not None:
                return Output(refusal or "The user did not allow this call.", is_error=True), True
        return await tool.run(workspace, arguments), False
    except ToolError as error:
        return Output(str(error), is_error=True), False


async def _preview(tool: AgentTool, workspace: Workspace, arguments: Mapping[str, Any]) -> str:
    try:
        return await tool.preview(workspace, arguments) if tool.preview is not None else ""
    except ToolError:  # the call itself will say so
        return ""


# What a call must be


def check(call: ToolCall, known: Mapping[str, AgentTool]) -> tuple[AgentTool, dict[str, Any]]:
    """The tool and its arguments, typed as declared. Raises DamagedCall, which says what is right.

    Arguments that the tool doesn't have are ignored: models know other tools of the same name.
    """
    tool = known.get(call.name)
    if not known:
        raise DamagedCall("There are no tools here. Answer in words.")
    if tool is None:
        close = get_close_matches(call.name, known, n=1, cutoff=0.4)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise DamagedCall(f"There is no tool {call.name!r}.{hint} The tools are: {', '.join(known)}.")
    schema = Schema(tool.spec.parameters)
    if [*call.arguments] == ["arguments"] and "arguments" not in schema.properties:
        raise DamagedCall(
            f"{call.name} was not run: its arguments are no JSON object. {_usage(tool, schema)}"
        )
    given = {
        name: value for name, value in call.arguments.items() if value is not None or name in schema.required
    }
    arguments = {name: schema.property(name).fit(value) for name, value in given.items()}
    wrong = list(_problems(schema, arguments))
    if wrong:
        raise DamagedCall(f"{call.name} was not run: {'; '.join(wrong)}. {_usage(tool, schema)}")
    return tool, arguments


def num_damaged(messages: Sequence[Message], tools: Sequence[AgentTool]) -> int:
    """How many of the latest replies, one after the other, had calls of which none could be run."""
    known = {tool.name: tool for tool in tools}
    count = 0
    for message in reversed(messages):
        if message.role != "assistant":
            continue
        if any(map(partial(_is_whole, known=known), message.tool_calls)):
            break
        if not message.tool_calls and not has_leaked_call(message.content):
            break
        count += 1
    return count


def _is_whole(call: ToolCall, known: Mapping[str, AgentTool]) -> bool:
    try:
        check(call, known)
    except DamagedCall:
        return False
    return True


def _problems(schema: Schema, arguments: Mapping[str, Any]) -> Iterator[str]:
    for name in sorted(schema.required - arguments.keys()):
        unknown = [given for given in arguments if given not in schema.properties]
        close = get_close_matches(name, unknown, n=1, cutoff=0.4) or unknown[:1]
        yield f"{name} is missing" + (f" (there is no {close[0]})" if close else "")
    for name, value in arguments.items():
        wanted = schema.property(name)
        if name in schema.properties and wanted.types and not _is_of(value, wanted.types):
            if not (value is None and wanted.nullable):
                yield f"{name} must be {' or '.join(wanted.types)}, and is {_type_of(value)}"
        elif wanted.enum and value not in wanted.enum:
            yield f"{name} must be one of {', '.join(map(str, wanted.enum))}"


TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "object": (dict,),
    "array": (list,),
}


def _is_of(value: Any, names: Sequence[str]) -> bool:
    return any(
        name not in TYPES
        or (isinstance(value, TYPES[name]) and (name == "boolean" or not isinstance(value, bool)))
        for name in names
    )


def _type_of(value: Any) -> str:
    names = {bool: "boolean", str: "string", int: "integer", float: "number", dict: "object", list: "array"}
    return names.get(type(value), "null")


def _usage(tool: AgentTool, schema: Schema) -> str:
    """One line: the tool's arguments, the optional ones in brackets."""
    arguments = [f"{name}: {' or '.join(schema.property(name).types) or 'any'}" for name in schema.properties]
    shown = [
        text if name in schema.required else f"[{text}]"
        for name, text in zip(schema.properties, arguments, strict=True)
    ]
    return f"Its arguments are {', '.join(shown)}." if shown else "It has no arguments."
