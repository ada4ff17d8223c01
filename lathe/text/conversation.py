"""A conversation as chat templates want it: Lathe's nouns as Hugging Face's dicts, fitted to what a template
can do.

Templates differ. Some insist that a system message comes first, or that turns alternate; most small ones know
no tools. `Traits` says what a template does, found out by rendering small conversations; `fit` rewrites a
conversation so that nothing in it is lost.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol

from lathe.text import reasoning, tool_calls
from lathe.text.tool_calls import Dialect
from lathe.types import Message, Tool, ToolCall

Turn = dict[str, Any]
ToolDict = dict[str, Any]
Supply = Callable[[Any], Any]


class Render(Protocol):
    """The prompt to these turns, with the template's options. None if the template fails."""

    def __call__(self, turns: list[Turn], tools: list[ToolDict], **options: Any) -> str | None: ...


def to_turn(message: Message, supply: Supply) -> Turn:
    """A message as a dict. `supply` is applied to all that came from outside; what is absent has no key."""
    turn: Turn = {"role": supply(message.role), "content": supply(message.content)}
    if message.reasoning is not None:
        turn["reasoning_content"] = supply(message.reasoning)
    if message.tool_calls:
        turn["tool_calls"] = [_call(call, supply) for call in message.tool_calls]
    if message.tool_call_id is not None:
        turn["tool_call_id"] = supply(message.tool_call_id)
    if message.name is not None:
        turn["name"] = supply(message.name)
    return turn


def _call(call: ToolCall, supply: Supply) -> dict[str, Any]:
    function = {"name": supply(call.name), "arguments": supply(call.arguments)}
    return {"type": "function", "id": supply(call.id), "function": function}


def to_tool_dict(tool: Tool, supply: Supply) -> ToolDict:
    """A tool as a dict, always with a schema of type object: templates reach into it."""
    schema = {"type": "object", "properties": {}} if tool.parameters is None else dict(tool.parameters)
    properties = schema.get("properties")
    if isinstance(properties, Mapping):
        # In JSON schema `true` allows anything, as {} does; templates ask each property for its keys.
        schema["properties"] = {name: {} if value is True else value for name, value in properties.items()}
    function = {"name": tool.name, "description": tool.description, "parameters": schema}
    return {"type": "function", "function": {key: supply(value) for key, value in function.items()}}


@dataclass(frozen=True)
class Traits:
    """What a template does with a conversation.

    `dialect` is the syntax in which it writes tool calls, None when it knows no tools, or none that Lathe
    could read back. `system_first`: a system message at the beginning is shown. `system_later`: one in the
    middle is shown in its place. `adjacent`: two turns of one role may follow each other. `thinks`: its model
    thinks between <think> and </think>.
    """

    dialect: Dialect | None
    system_first: bool
    system_later: bool
    adjacent: bool
    thinks: bool


def find_traits(render: Render) -> Traits:
    """Renders small conversations and looks whether their words come out."""
    tools = [to_tool_dict(Tool("probetool", "Probedescription."), _as_is)]

    def shows(turns: list[Turn]) -> bool:
        text = render(turns, [])
        if text is None:  # some templates serve conversations with tools only
            text = render(turns, tools)
        place = 0
        for word in (turn["content"] for turn in turns):
            place = -1 if text is None else text.find(word, place)
            if place < 0:
                return False
        return True

    def turn(role: str, word: str) -> Turn:
        return {"role": role, "content": word}

    user, answer, system = turn("user", "Probeuser."), turn("assistant", "Probeanswer."), "system"
    return Traits(
        dialect=_find_dialect(render, tools),
        system_first=shows([turn(system, "Probefirst."), user]),
        system_later=shows([turn(system, "Probefirst."), user, answer, turn(system, "Probelater."), user]),
        adjacent=shows([user, turn("user", "Probenext."), answer]),
        thinks=_thinks(render, user, answer),
    )


def _thinks(render: Render, user: Turn, answer: Turn) -> bool:
    """Does the template write a thought in its tags, or a prompt that ends with such a tag?"""
    shown = render([user, answer | {"reasoning_content": "Probethought."}], []) or ""
    if re.search(rf"{reasoning.OPEN}\s*Probethought\.\s*{reasoning.CLOSE}", shown):
        return True
    prompts = [render([user], []), render([user], [], enable_thinking=False)]
    return any(prompt and prompt.rstrip().endswith((reasoning.OPEN, reasoning.CLOSE)) for prompt in prompts)


def _find_dialect(render: Render, tools: list[ToolDict]) -> Dialect | None:
    call = ToolCall("probecall", {"probeargument": "probevalue"}, id="probe0001")
    conversation = (
        Message("user", "Probeuser."),
        Message("assistant", tool_calls=(call,)),
        Message("tool", "Proberesult.", tool_call_id=call.id, name=call.name),
        Message("assistant", "Probeanswer."),
        Message("user", "Probenext."),
    )
    text = render([to_turn(message, _as_is) for message in conversation], tools)
    words = ("probetool", "Probedescription.", "probecall", "probeargument", "probevalue", "Proberesult.")
    if text is None or not all(word in text for word in words):
        return None
    if "<function=probecall>" in text:
        return "qwen3_coder"
    return "qwen3" if "<tool_call>" in text else None


def _as_is(value: Any) -> Any:
    return value


def fit(
    turns: list[Turn],
    tools: list[ToolDict],
    traits: Traits,
    describe_tools: Callable[[list[ToolDict]], str],
) -> tuple[list[Turn], list[ToolDict]]:
    """The conversation and the tools that a template with these traits shows completely.

    A developer is the system. System messages at the beginning become one. A later one that the template
    would refuse, drop or move becomes a user's turn; so does the first where a template has no place for it.
    Tools and calls that the template doesn't know become text in Qwen3-Coder's syntax. Turns of one role
    become one where they must alternate.
    """
    turns = [turn | {"role": "system"} if turn["role"] == "developer" else turn for turn in turns]
    turns = _merge_leading_systems(turns)
    if traits.dialect is None:
        turns = [_with_calls_as_text(turn) for turn in _merge_results(turns)]
        if tools:
            described = {"role": "system", "content": describe_tools(tools)}
            place = 1 if turns[0]["role"] == "system" else 0
            turns = _merge_leading_systems([*turns[:place], described, *turns[place:]])
        tools = []
    turns = [
        turn | {"role": "user"} if turn["role"] == "system" and not _has_place(place, traits) else turn
        for place, turn in enumerate(turns)
    ]
    return (turns if traits.adjacent else list(_merge_adjacent(turns))), tools


def _has_place(place: int, traits: Traits) -> bool:
    return traits.system_first if place == 0 else traits.system_later


def _merge_leading_systems(turns: list[Turn]) -> list[Turn]:
    count = next((place for place, turn in enumerate(turns) if turn["role"] != "system"), len(turns))
    return turns if count < 2 else [_joined(turns[:count]), *turns[count:]]


def _merge_adjacent(turns: list[Turn]) -> Iterator[Turn]:
    def role_of_text(turn: Turn) -> object:
        return id(turn) if turn["role"] == "tool" or "tool_calls" in turn else turn["role"]

    for _, group in groupby(turns, role_of_text):
        yield _joined(list(group))


def _joined(turns: Sequence[Turn]) -> Turn:
    if len(turns) == 1:
        return turns[0]
    return turns[0] | {"content": "\n\n".join(turn["content"] for turn in turns if turn["content"])}


def _merge_results(turns: list[Turn]) -> Iterator[Turn]:
    """Neighbouring results of tools as one turn of the user's."""
    for is_result, group in groupby(turns, lambda turn: turn["role"] == "tool"):
        if is_result:
            results = [f"<tool_response>\n{turn['content']}\n</tool_response>" for turn in group]
            yield {"role": "user", "content": "\n".join(results)}
        else:
            yield from group


def _with_calls_as_text(turn: Turn) -> Turn:
    if "tool_calls" not in turn:
        return turn
    functions = [call["function"] for call in turn["tool_calls"]]
    calls = tool_calls.render(ToolCall(each["name"], each["arguments"]) for each in functions)
    content = turn["content"].strip()
    rest = {key: value for key, value in turn.items() if key != "tool_calls"}
    return rest | {"content": f"{content}\n\n{calls}" if content else calls}
