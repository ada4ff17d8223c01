"""What a client wants its reply to be (a call, or JSON) as a grammar: one translation for all dialects."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lathe.errors import GrammarError
from lathe.server.errors import BadRequest
from lathe.text.schema_grammar import json_grammar
from lathe.text.tool_calls import Dialect
from lathe.text.tool_grammar import tool_grammar
from lathe.types import Grammar, SamplingParams, Tool

ANY_OBJECT = {"type": "object"}  # what OpenAI's format json_object asks for


@dataclass(frozen=True)
class Wish:
    """What a reply shall be, in the words of no dialect. The default asks for nothing.

    `calls`: it shall be calls of tools; of the tool `name`, if that is given; one only unless `parallel`.
    `schema`: its text shall be JSON that satisfies this schema. What can't be imposed of it is left out, or
    the request is refused if `strict`.
    """

    calls: bool = False
    name: str | None = None
    parallel: bool = True
    schema: Mapping[str, Any] | None = None
    strict: bool = False


async def constrain(
    sampling: SamplingParams, wish: Wish, tools: Sequence[Tool], dialect: Dialect, *, choice: str, format: str
) -> SamplingParams:
    """The same with the grammar that the reply must keep to, if it is not free. In a thread: large schemas
    take a second.

    With a schema and tools that the model may call but need not, the reply is either calls or such JSON.
    Raises BadRequest, which names the client's field: `choice`, `format`, or tools.
    """
    if wish.calls:
        check_choice(wish, tools, choice)
    elif wish.schema is None:
        return sampling
    return replace(sampling, grammar=await asyncio.to_thread(_write, wish, tools, dialect, format))


def check_choice(wish: Wish, tools: Sequence[Tool], param: str) -> None:
    """A call can be imposed where there is something to call."""
    if not tools:
        raise BadRequest(f"{param} asks for a call, but there are no tools.", param=param)
    if wish.name is not None and wish.name not in [tool.name for tool in tools]:
        raise BadRequest(f"{param} names {wish.name!a}, which is none of the tools.", param=param)


def _write(wish: Wish, tools: Sequence[Tool], dialect: Dialect, format: str) -> Grammar:
    answer = None
    if not wish.calls:
        try:
            answer = json_grammar(wish.schema, strict=wish.strict)
        except GrammarError as error:
            raise BadRequest(f"{format}: {error}", param=format) from error
        if not tools:
            return answer
    try:
        return tool_grammar(tools, dialect, name=wish.name, parallel=wish.parallel, answer=answer)
    except GrammarError as error:
        raise BadRequest(str(error), param="tools") from error
