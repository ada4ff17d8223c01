"""OpenAI's chat dialect: a client's JSON becomes a prompt and SamplingParams, and chunks become JSON again.

`read` goes in; `whole_reply` and `stream_reply` come out, both from the same stream of the engine's chunks.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request, Response

from lathe.engine.llm import Chunk
from lathe.server.chat_schema import (
    ChatCompletion,
    ChatRequest,
    RequestedCall,
    RequestMessage,
    RequestTool,
    ToolChoice,
)
from lathe.server.constraints import ANY_OBJECT, Wish, constrain
from lathe.server.content import read_content
from lathe.server.errors import BadRequest, describe_late
from lathe.server.logprobs import entries_json, reply_ids, reply_origin, spoken
from lathe.server.sampling import read_sampling
from lathe.server.service import Service, Turn, check_token_ids, num_reasoning, num_sampled
from lathe.server.sessions import session_of
from lathe.server.streaming import DONE, EventStream, answer, reply_or_events, sse
from lathe.server.thinking import template_options
from lathe.text import tool_calls
from lathe.text.tokenizer import Tokenizer
from lathe.text.tool_arguments import json_text
from lathe.types import Completion, Message, SamplingParams, TokenLogprob, Tool, ToolCall, Trajectory


@dataclass(frozen=True)
class ChatReply:
    """What a reply's envelope needs beside the turn."""

    turn: Turn
    model_id: str
    include_usage: bool
    return_token_ids: bool
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")

    @property
    def sampling(self) -> SamplingParams:
        return self.turn.sampling


def install(app: FastAPI, service: Service) -> None:
    """Add the dialect's routes."""

    @app.post(
        "/v1/chat/completions",
        response_model=ChatCompletion,
        responses=reply_or_events(ChatCompletion, "a chat.completion.chunk, an error, or [DONE]"),
    )
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        """A reply to a conversation: whole, or streamed when stream is true."""
        reply = await read(body, service, await session_of(request))
        if body.stream:
            return EventStream(stream_reply(reply, service))
        return await answer(request, whole_reply(reply, service))


# From JSON to nouns


async def read(request: ChatRequest, service: Service, session: str | None = None) -> ChatReply:
    """Raises BadRequest, TemplateError or PromptTooLong: what is wrong with a request, before any work."""
    refuse_what_is_not_served(request)
    trajectory = read_trajectory(request)
    check_token_ids(service.llm, trajectory.token_ids, "known_token_ids")
    sampling = await constrain(
        read_chat_sampling(request, service.llm.default_sampling),
        read_wish(request),
        trajectory.tools,
        service.llm.template.dialect,
        choice="tool_choice",
        format="response_format",
    )
    return ChatReply(
        turn=await service.prepare("chat", trajectory, sampling, session=session),
        model_id=service.answers_to(request.model),
        include_usage=bool(request.stream_options and request.stream_options.include_usage),
        return_token_ids=bool(request.return_token_ids),
    )


def read_trajectory(request: ChatRequest) -> Trajectory:
    """The conversation. Raises BadRequest."""
    return Trajectory(
        messages=tuple(read_message(message, i) for i, message in enumerate(request.messages)),
        tools=read_tools(request),
        token_ids=tuple(request.known_token_ids or ()),
        template_kwargs=template_options(
            request.chat_template_kwargs, request.reasoning_effort, request.enable_thinking
        ),
    )


def refuse_what_is_not_served(request: ChatRequest) -> None:
    """What would change the reply's meaning is refused rather than ignored."""
    if request.logit_bias:
        raise BadRequest("logit_bias is not supported yet.", param="logit_bias", code="unsupported_parameter")
    if request.top_logprobs is not None and not request.logprobs:
        raise BadRequest("top_logprobs needs logprobs: true.", param="top_logprobs")


def read_message(message: RequestMessage, position: int) -> Message:
    where = f"messages.{position}"
    calls = [read_call(call) for call in message.tool_calls or ()]
    if message.function_call is not None:
        calls.append(read_call(RequestedCall(function=message.function_call)))
    return Message(
        role="tool" if message.role == "function" else message.role,
        content=read_content(message.content, f"{where}.content"),
        tool_calls=tuple(calls),
        tool_call_id=message.tool_call_id,
        name=message.name,
        reasoning=message.reasoning_content,
    )


def read_call(call: RequestedCall) -> ToolCall:
    given = call.function.arguments
    arguments = given if isinstance(given, dict) else tool_calls.parse_arguments(given or "")
    return ToolCall(call.function.name, arguments, call.id or "")


def read_tools(request: ChatRequest) -> tuple[Tool, ...]:
    """The tools to offer: none at all when tool_choice is none, so that nothing is read as a call."""
    choice = read_tool_choice(request)
    if choice.type == "none":
        return ()
    given = enumerate(request.tools or ())
    tools = tuple(read_tool(tool, f"tools.{i}") for i, tool in given if tool.type == "function")
    if choice.allowed_tools is None:
        return tools
    allowed = {tool.function.name for tool in choice.allowed_tools.tools if tool.function is not None}
    return tuple(tool for tool in tools if tool.name in allowed)


def read_tool(tool: RequestTool, where: str) -> Tool:
    if tool.function is None:
        raise BadRequest(f"{where}: a tool of type function needs a function.", param=f"{where}.function")
    function = tool.function
    return Tool(function.name, function.description or "", function.parameters, function.strict is True)


def read_tool_choice(request: ChatRequest) -> ToolChoice:
    choice = request.tool_choice
    if choice is None:
        return ToolChoice(type="auto")
    if isinstance(choice, str):
        return ToolChoice(type=choice)
    if choice.type in ("function", "allowed_tools") and getattr(choice, choice.type) is None:
        where = f"tool_choice.{choice.type}"
        raise BadRequest(f"{where} is missing: it says which.", param=where)
    return choice


def read_wish(request: ChatRequest) -> Wish:
    """What the reply shall be: calls, JSON, or whatever the model likes."""
    choice = read_tool_choice(request)
    mode = choice.allowed_tools.mode if choice.allowed_tools else choice.type
    schema, strict = read_format(request)
    return Wish(
        calls=mode in ("required", "function"),
        name=choice.function.name if choice.type == "function" and choice.function else None,
        parallel=request.parallel_tool_calls is not False,
        schema=schema,
        strict=strict,
    )


def read_format(request: ChatRequest) -> tuple[Mapping[str, Any] | None, bool]:
    """The schema of the answer, None for free text, and whether all of it must be imposed."""
    wanted = request.response_format
    if wanted is None or wanted.type == "text":
        return None, False
    if wanted.type == "json_object":
        return ANY_OBJECT, True
    if wanted.json_schema is None or wanted.json_schema.schema_ is None:
        where = "response_format.json_schema.schema"
        raise BadRequest(f"{where} is missing: it says what the JSON shall be.", param=where)
    return wanted.json_schema.schema_, wanted.json_schema.strict is True


def read_chat_sampling(request: ChatRequest, default: SamplingParams) -> SamplingParams:
    return read_sampling(
        request,
        default,
        max_tokens=request.max_completion_tokens or request.max_tokens,
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        n=request.n,
    )


# From the engine's chunks to JSON


async def whole_reply(reply: ChatReply, service: Service) -> dict[str, Any]:
    """The chat.completion object. Cancelling it closes the engine's stream."""
    completions = await service.complete(reply.turn)
    tokenizer = service.llm.tokenizer
    return {
        **envelope(reply, "chat.completion"),
        "choices": [
            whole_choice(reply, tokenizer, i, completion) for i, completion in enumerate(completions)
        ],
        "usage": usage(completions),
    }


def whole_choice(
    reply: ChatReply, tokenizer: Tokenizer, index: int, completion: Completion
) -> dict[str, Any]:
    calls = completion.message.tool_calls
    message: dict[str, Any] = {"role": "assistant", "content": completion.message.content}
    if completion.message.reasoning is not None:
        message["reasoning_content"] = completion.message.reasoning
    if calls:
        message["content"] = completion.message.content or None
        message["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": json_text(call.arguments)},
            }
            for call in calls
        ]
    entries = spoken(completion.logprobs, reply.sampling, tokenizer, completion)
    ids: dict[str, Any] = {}
    if reply.return_token_ids:
        ids = prompt_ids(reply) | reply_ids(completion.logprobs) | reply_origin(completion)
    return {
        "index": index,
        "message": message,
        "logprobs": {"content": entries_json(entries, tokenizer)}
        if reply.sampling.logprobs is not None
        else None,
        "finish_reason": completion.finish_reason,
        **ids,
    }


def prompt_ids(reply: ChatReply) -> dict[str, Any]:
    return {"prompt_token_ids": list(reply.turn.prompt_token_ids)}


async def stream_reply(reply: ChatReply, service: Service) -> AsyncGenerator[bytes, None]:
    """Server-sent events: deltas, perhaps the usage, [DONE]. An error ends the stream with its own event."""
    completions: list[Completion] = []
    try:
        for index in range(reply.sampling.n):
            first = delta_chunk(reply, index, {"role": "assistant", "content": ""})
            if reply.return_token_ids:
                first["choices"][0] |= prompt_ids(reply)
            yield sse(first)
        async with aclosing(service.stream(reply.turn)) as chunks:
            async for chunk in chunks:
                for payload in chunk_payloads(reply, service.llm.tokenizer, chunk):
                    yield sse(payload)
                if chunk.completion is not None:
                    completions.append(chunk.completion)
        if reply.include_usage:
            payload = {**envelope(reply, "chat.completion.chunk"), "choices": [], "usage": usage(completions)}
            yield sse(payload)
        yield DONE
    except Exception as error:
        yield sse(describe_late(error))


def chunk_payloads(reply: ChatReply, tokenizer: Tokenizer, chunk: Chunk) -> list[dict[str, Any]]:
    """A chunk's deltas, one for each event. Its ids and log-probabilities go with the first of them."""
    deltas = [delta for event in chunk.events if (delta := event_delta(event)) is not None]
    entries: Sequence[TokenLogprob] = ()
    if reply.sampling.logprobs is not None:
        entries = spoken(chunk.logprobs, reply.sampling, tokenizer, chunk.completion)
    ids = chunk.logprobs if reply.return_token_ids else ()
    if (entries or ids) and not deltas:
        deltas = [{"content": ""}]  # a token that gave no text yet: half a character, or the start of a tag
    payloads = [delta_chunk(reply, chunk.index, delta) for delta in deltas]
    if entries:
        payloads[0]["choices"][0]["logprobs"] = {"content": entries_json(entries, tokenizer)}
    if ids:
        payloads[0]["choices"][0] |= reply_ids(ids)
    if chunk.completion is not None:
        last = delta_chunk(reply, chunk.index, {}, chunk.completion.finish_reason)
        if reply.return_token_ids:
            last["choices"][0] |= reply_origin(chunk.completion)
        payloads.append(last)
    return payloads


def event_delta(event: tool_calls.Event) -> dict[str, Any] | None:
    """An event as a delta: a call's id, type and name once in its first, then pieces of its arguments."""
    match event:
        case tool_calls.Content(text):
            return {"content": text} if text else None
        case tool_calls.Reasoning(text):
            return {"reasoning_content": text}
        case tool_calls.CallStarted(index, id, name):
            function = {"name": name, "arguments": ""}
            return {"tool_calls": [{"index": index, "id": id, "type": "function", "function": function}]}
        case tool_calls.ArgumentText(index, text):
            return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}
    return None


def delta_chunk(
    reply: ChatReply, index: int, delta: dict[str, Any], finish_reason: str | None = None
) -> dict[str, Any]:
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return {**envelope(reply, "chat.completion.chunk"), "choices": [choice]}


def envelope(reply: ChatReply, kind: str) -> dict[str, Any]:
    return {"id": reply.id, "object": kind, "created": reply.turn.created, "model": reply.model_id}


def usage(completions: Sequence[Completion]) -> dict[str, Any]:
    """The prompt is counted once, however many replies it got."""
    num_prompt = len(completions[0].prompt_token_ids)
    count = num_sampled(completions)
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": count,
        "total_tokens": num_prompt + count,
        "prompt_tokens_details": {"cached_tokens": completions[0].num_cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": num_reasoning(completions)},
    }
