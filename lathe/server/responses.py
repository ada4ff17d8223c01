"""OpenAI's responses dialect, which Codex speaks: a conversation of items goes in, items come out.

responses_items.py reads the conversation, responses_events.py writes the reply. Nothing is stored: a reply
can't be asked for again, and each request brings all that was said.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from fastapi import FastAPI, Request, Response
from pydantic import BaseModel

from lathe.errors import PromptTooLong
from lathe.server.constraints import ANY_OBJECT, Wish, constrain
from lathe.server.errors import BadRequest, describe_late
from lathe.server.responses_events import ResponseWriter
from lathe.server.responses_items import read_items
from lathe.server.responses_schema import FunctionTool, ResponseObject, ResponsesRequest, ToolChoice
from lathe.server.sampling import read_sampling
from lathe.server.service import Service, Turn
from lathe.server.sessions import session_of
from lathe.server.streaming import EventStream, answer, reply_or_events, sse
from lathe.server.thinking import template_options
from lathe.types import Message, SamplingParams, Tool, Trajectory

EVENTS = (
    "one of OpenAI's response events, from response.created to response.completed, .incomplete or .failed"
)


def install(app: FastAPI, service: Service) -> None:
    """Add the dialect's route."""

    @app.post(
        "/v1/responses",
        response_model=ResponseObject,
        responses=reply_or_events(ResponseObject, EVENTS),
    )
    async def responses(body: ResponsesRequest, request: Request) -> Response:
        """A reply to a conversation of items: whole, or as events when stream is true. Nothing is stored."""
        turn = await read(body, service, await session_of(request))
        writer = ResponseWriter(
            response_json(body, turn, service.answers_to(body.model)),
            turn,
            service.llm.tokenizer,
            seal_reasoning="reasoning.encrypted_content" in (body.include or ()),
        )
        if body.stream:
            return EventStream(stream_reply(writer, turn, service))
        return await answer(request, whole_reply(writer, turn, service))


# From JSON to nouns


async def read(request: ResponsesRequest, service: Service, session: str | None = None) -> Turn:
    """Raises BadRequest or TemplateError: what is wrong with a request, before any work."""
    refuse_what_is_not_served(request)
    trajectory = Trajectory(
        messages=read_input(request),
        tools=read_tools(request),
        template_kwargs=template_options(
            request.chat_template_kwargs,
            request.reasoning.effort if request.reasoning else None,
            request.enable_thinking,
        ),
    )
    sampling = await constrain(
        read_responses_sampling(request, service.llm.default_sampling),
        read_wish(request),
        trajectory.tools,
        service.llm.template.dialect,
        choice="tool_choice",
        format="text.format",
    )
    try:
        return await service.prepare("responses", trajectory, sampling, session=session)
    except PromptTooLong as error:
        raise BadRequest(str(error), param="input", code="context_length_exceeded") from error


def refuse_what_is_not_served(request: ResponsesRequest) -> None:
    """What would change the reply's meaning is refused rather than ignored."""
    for name in ("previous_response_id", "conversation", "prompt"):
        if getattr(request, name) is not None:
            message = f"{name} is not supported: this server stores nothing. Send the whole conversation."
            raise BadRequest(message, param=name, code="unsupported_parameter")
    if request.background:
        message = "background is not supported: this server stores nothing that could be asked for later."
        raise BadRequest(message, param="background", code="unsupported_parameter")


def read_input(request: ResponsesRequest) -> tuple[Message, ...]:
    first = (Message("system", request.instructions),) if request.instructions else ()
    if isinstance(request.input, str):
        return (*first, Message("user", request.input))
    messages = (*first, *read_items(request.input))
    if not messages:
        raise BadRequest("input: there is nothing in it that this model can read.", param="input")
    return messages


def read_tools(request: ResponsesRequest) -> tuple[Tool, ...]:
    """The functions to offer: none at all when tool_choice is none, so that nothing is read as a call."""
    if request.tool_choice == "none":
        return ()
    given = enumerate(request.tools or ())
    tools = tuple(read_tool(tool, f"tools.{i}") for i, tool in given if tool.type == "function")
    choice = request.tool_choice
    if isinstance(choice, ToolChoice) and choice.type == "allowed_tools":
        allowed = {tool.name for tool in choice.tools or ()}
        return tuple(tool for tool in tools if tool.name in allowed)
    return tools


def read_tool(tool: FunctionTool, where: str) -> Tool:
    if not tool.name:
        raise BadRequest(f"{where}.name: a tool of type function needs a name.", param=f"{where}.name")
    return Tool(tool.name, tool.description or "", tool.parameters, tool.strict is True)


def read_wish(request: ResponsesRequest) -> Wish:
    """What the reply shall be: calls, JSON, or whatever the model likes."""
    choice = request.tool_choice
    calls, name = choice == "required", None
    if isinstance(choice, ToolChoice):
        calls = choice.type == "function" or choice.mode == "required"
        name = choice.name if choice.type == "function" else None
        if choice.type == "function" and name is None:
            raise BadRequest("tool_choice.name is missing: it says which tool.", param="tool_choice.name")
    schema, strict = read_format(request)
    return Wish(
        calls=calls,
        name=name,
        parallel=request.parallel_tool_calls is not False,
        schema=schema,
        strict=strict,
    )


def read_format(request: ResponsesRequest) -> tuple[Mapping[str, Any] | None, bool]:
    """The schema of the text, None where it is free, and whether all of it must be imposed."""
    format = request.text.format if request.text else None
    if format is None or format.type == "text":
        return None, False
    if format.type == "json_object":
        return ANY_OBJECT, True
    if format.schema_ is None:
        where = "text.format.schema"
        raise BadRequest(f"{where} is missing: it says what the JSON shall be.", param=where)
    return format.schema_, format.strict is True


def read_responses_sampling(request: ResponsesRequest, default: SamplingParams) -> SamplingParams:
    asked = bool(request.top_logprobs) or "message.output_text.logprobs" in (request.include or ())
    return read_sampling(
        request,
        default,
        max_tokens=request.max_output_tokens,
        logprobs=(request.top_logprobs or 0) if asked else None,
    )


# From the engine's chunks to JSON


def response_json(request: ResponsesRequest, turn: Turn, model_id: str) -> dict[str, Any]:
    """The response before its first token. It repeats what was asked, where that was followed."""
    sampling = turn.sampling
    tools = [tool.model_dump(exclude_unset=True) for tool in request.tools or ()]
    choice = request.tool_choice
    return {
        "id": f"resp_{uuid.uuid4().hex}",
        "object": "response",
        "created_at": turn.created,
        "completed_at": None,
        "status": "in_progress",
        "model": model_id,
        "output": [],
        "usage": None,
        "error": None,
        "incomplete_details": None,
        "instructions": request.instructions,
        "tools": [
            complete_tool(tool, imposed=sampling.grammar is not None) if tool["type"] == "function" else tool
            for tool in tools
        ],
        "tool_choice": choice.model_dump(exclude_unset=True)
        if isinstance(choice, ToolChoice)
        else choice or "auto",
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "max_output_tokens": request.max_output_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_logprobs": request.top_logprobs or 0,
        "text": {
            "format": {"type": "text"},
            **(
                request.text.model_dump(exclude_unset=True, exclude_none=True, by_alias=True)
                if request.text
                else {}
            ),
        },
        "reasoning": {"effort": request.reasoning.effort if request.reasoning else None, "summary": None},
        "metadata": request.metadata or {},
        "prompt_cache_key": request.prompt_cache_key,
        "safety_identifier": request.safety_identifier,
        "previous_response_id": None,
        "store": False,
        "background": False,
        "truncation": "disabled",
    }


def as_sent(field: BaseModel) -> dict[str, Any]:
    """A field of the request as it came, but for what was null."""
    return field.model_dump(exclude_unset=True, exclude_none=True, by_alias=True)


def complete_tool(tool: dict[str, Any], *, imposed: bool) -> dict[str, Any]:
    """A function with the keys that OpenAI's client looks for. It is strict where calls are imposed."""
    return {"description": None, "parameters": None, **tool, "strict": imposed and tool.get("strict") is True}


async def whole_reply(writer: ResponseWriter, turn: Turn, service: Service) -> dict[str, Any]:
    """The response object. Cancelling it closes the engine's stream."""
    async with aclosing(service.stream(turn)) as chunks:
        async for chunk in chunks:
            for _ in writer.feed(chunk):
                pass
    return writer.response


async def stream_reply(writer: ResponseWriter, turn: Turn, service: Service) -> AsyncGenerator[bytes, None]:
    """Server-sent events. An error ends the stream with response.failed."""
    for event in writer.begin():
        yield sse(event, event["type"])
    try:
        async with aclosing(service.stream(turn)) as chunks:
            async for chunk in chunks:
                for event in writer.feed(chunk):
                    yield sse(event, event["type"])
    except Exception as error:
        described = describe_late(error)["error"]
        is_ours = described["type"] == "server_error"
        code = "server_error" if is_ours else described["code"] or "invalid_prompt"
        event = writer.fail(code, described["message"])
        yield sse(event, event["type"])
