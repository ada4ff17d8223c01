"""Anthropic's messages dialect: a client's JSON becomes a prompt and SamplingParams, and chunks become JSON.

`read` goes in; `whole_reply` and `stream_reply` come out, both from the same events (message_blocks.py).
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

from fastapi import FastAPI, Request, Response

from lathe.engine.engine import EngineClosed
from lathe.server.constraints import Wish, constrain
from lathe.server.content import UNSEEN
from lathe.server.errors import BadRequest, describe_late, json_response
from lathe.server.message_blocks import BlockWriter, whole_blocks
from lathe.server.messages_schema import (
    ContentBlock,
    CountRequest,
    MessageParam,
    MessagesErrorReply,
    MessagesReply,
    MessagesRequest,
    MessagesTool,
    Prompt,
    TextBlock,
    TokenCount,
)
from lathe.server.sampling import read_sampling
from lathe.server.service import Service, Turn
from lathe.server.sessions import session_of
from lathe.server.streaming import EventStream, answer, refusals, reply_or_events, sse
from lathe.server.thinking import template_options
from lathe.text.tool_call_events import Event
from lathe.types import Completion, Message, SamplingParams, Tool, ToolCall, Trajectory

PATH = "/v1/messages"

# Claude Code's first system block. A hash in it changed with each request in some versions, so that no
# prompt began like the one before and nothing could be cached.
BILLING_HEADER = "x-anthropic-billing-header"

STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


@dataclass(frozen=True)
class MessageReply:
    """What a reply's envelope needs beside the turn."""

    turn: Turn
    model_id: str
    id: str = field(default_factory=lambda: f"msg_{uuid.uuid4().hex}")


def install(app: FastAPI, service: Service) -> None:
    """Add the dialect's routes."""

    @app.post(
        PATH,
        response_model=MessagesReply,
        responses=reply_or_events(
            MessagesReply, "message_start, its blocks, message_stop; or an error", MessagesErrorReply
        ),
    )
    async def messages(body: MessagesRequest, request: Request) -> Response:
        """A reply to a conversation: whole, or streamed when stream is true."""
        reply = await read(body, service, await session_of(request))
        if body.stream:
            return EventStream(stream_reply(reply, service))
        return await answer(request, whole_reply(reply, service))

    @app.post(f"{PATH}/count_tokens", response_model=TokenCount, responses=refusals(MessagesErrorReply))
    async def count_tokens(body: CountRequest) -> Response:
        """How long the same prompt would be, also where it is longer than the context."""
        return json_response({"input_tokens": await service.count_tokens(read_prompt(body))})


# From JSON to nouns


async def read(request: MessagesRequest, service: Service, session: str | None = None) -> MessageReply:
    """Raises BadRequest, TemplateError or PromptTooLong: what is wrong with a request, before any work."""
    refuse_what_is_not_served(request)
    prompt = read_prompt(request)
    sampling = await constrain(
        read_messages_sampling(request, service.llm.default_sampling),
        read_wish(request),
        prompt.tools,
        service.llm.template.dialect,
        choice="tool_choice",
        format="output_config.format",
    )
    turn = await service.prepare("messages", prompt, sampling, session=session)
    return MessageReply(turn, service.answers_to(request.model))


def refuse_what_is_not_served(request: MessagesRequest) -> None:
    """What would change the reply's meaning is refused rather than ignored."""
    if request.messages[-1].role == "assistant":
        message = "messages: the last one is the assistant's, and continuing it is not supported."
        raise BadRequest(message, param="messages", code="unsupported_value")


def read_prompt(request: Prompt) -> Trajectory:
    """Raises BadRequest for a block that the model can't read."""
    system = read_system(request.system or "", "system")
    messages = [Message("system", system)] if system else []
    for i, message in enumerate(request.messages):
        messages += read_message(message, f"messages.{i}.content")
    enabled = None if request.thinking is None else request.thinking.type != "disabled"
    options = template_options(request.chat_template_kwargs, enabled=enabled)
    return Trajectory(tuple(messages), read_tools(request), template_kwargs=options)


def read_system(content: str | Sequence[TextBlock], where: str) -> str:
    texts = [content] if isinstance(content, str) else read_texts(content, where)
    return "\n".join(text for text in map(without_billing, texts) if text)


def without_billing(text: str) -> str:
    return text.partition("\n")[2] if text.startswith(BILLING_HEADER) else text


def read_message(message: MessageParam, where: str) -> list[Message]:
    """A user's message that holds tools' results is several, in the order of its blocks."""
    if message.role == "system":
        text = read_system(message.content, where)
        return [Message("system", text)] if text else []
    if isinstance(message.content, str):
        return [Message(message.role, message.content)]
    if message.role == "assistant":
        return [read_assistant(message.content, where)]
    return list(read_user(message.content, where)) or [Message("user")]


def read_user(blocks: Sequence[ContentBlock], where: str) -> Iterator[Message]:
    placed = [(block, f"{where}.{i}") for i, block in enumerate(blocks)]
    for is_result, group in groupby(placed, lambda each: each[0].type == "tool_result"):
        if is_result:
            yield from (read_result(*each) for each in group)
        else:
            yield Message("user", "\n".join(read_text(*each) for each in group))


def read_result(block: ContentBlock, where: str) -> Message:
    if isinstance(block.content, dict):
        place = f"{where}.content"
        raise BadRequest(f"{place}: a tool's result is a text or a list of blocks.", param=place)
    text = block.content or ""
    if not isinstance(text, str):
        text = "\n".join(read_result_part(part, f"{where}.content.{i}") for i, part in enumerate(text))
    if block.is_error and not text.lower().startswith("error:"):
        text = f"Error: {text}"  # templates have no place for the flag, and the model has to know
    return Message("tool", text, tool_call_id=needed(block, "tool_use_id", where))


def read_result_part(block: TextBlock, where: str) -> str:
    if block.type == "tool_reference":  # every tool is offered from the beginning; this says which was found
        return needed(block, "tool_name", where)
    return read_text(block, where) if block.type == "text" else UNSEEN.format(kind=block.type)


def read_assistant(blocks: Sequence[ContentBlock], where: str) -> Message:
    texts, thoughts, calls = [], [], []
    for i, block in enumerate(blocks):
        place = f"{where}.{i}"
        if block.type == "thinking":
            thoughts.append(needed(block, "thinking", place))
        elif block.type == "tool_use":
            name, id = needed(block, "name", place), needed(block, "id", place)
            calls.append(ToolCall(name, block.input or {}, id))
        elif not is_anthropics_own(block.type):
            texts.append(read_text(block, place))
    return Message("assistant", "\n".join(texts), tuple(calls), reasoning="\n".join(thoughts) or None)


def is_anthropics_own(kind: str) -> bool:
    """Blocks that Anthropic's servers made and only they can read. What they led to stands in the text."""
    return kind in ("redacted_thinking", "server_tool_use", "mcp_tool_use") or kind.endswith("_tool_result")


def read_texts(blocks: Sequence[TextBlock], where: str) -> list[str]:
    return [read_text(block, f"{where}.{i}") for i, block in enumerate(blocks)]


def read_text(block: TextBlock, where: str) -> str:
    if block.type == "text":
        return needed(block, "text", where)
    message = f"{where}: this model reads text, and can't read a block of type {block.type!a}."
    raise BadRequest(message, param=where, code="unsupported_content")


def needed(block: TextBlock, name: str, where: str) -> str:
    value = getattr(block, name)
    if value is None:
        raise BadRequest(f"{where}: a block of type {block.type} needs {name}.", param=f"{where}.{name}")
    return value


def read_tools(request: Prompt) -> tuple[Tool, ...]:
    """The tools to offer: none at all when tool_choice is none, so that nothing is read as a call."""
    if request.tool_choice and request.tool_choice.type == "none":
        return ()
    return tuple(
        read_tool(tool, f"tools.{i}")
        for i, tool in enumerate(request.tools or ())
        if tool.type in (None, "custom")
    )


def read_tool(tool: MessagesTool, where: str) -> Tool:
    if tool.name is None:
        raise BadRequest(f"{where}: a tool needs a name.", param=f"{where}.name")
    return Tool(tool.name, tool.description or "", tool.input_schema, tool.strict is True)


def read_wish(request: MessagesRequest) -> Wish:
    """What the reply shall be: calls, JSON, or whatever the model likes."""
    choice = request.tool_choice
    format = request.output_config.format if request.output_config else None
    wish = Wish(schema=format.schema_ if format else None, strict=True)
    if choice is None:
        return wish
    if choice.type == "tool" and choice.name is None:
        raise BadRequest("tool_choice.name is missing: it says which tool.", param="tool_choice.name")
    return replace(
        wish,
        calls=choice.type in ("any", "tool"),
        name=choice.name if choice.type == "tool" else None,
        parallel=choice.disable_parallel_tool_use is not True,
    )


def read_messages_sampling(request: MessagesRequest, default: SamplingParams) -> SamplingParams:
    stop = None if request.stop_sequences is None else tuple(request.stop_sequences)
    return read_sampling(request, default, max_tokens=request.max_tokens, stop=stop)


# From the engine's chunks to JSON


async def whole_reply(reply: MessageReply, service: Service) -> dict[str, Any]:
    """The message object. Cancelling it closes the engine's stream."""
    events: list[Event] = []
    completion = None
    async with aclosing(service.stream(reply.turn)) as chunks:
        async for chunk in chunks:
            events += chunk.events
            completion = chunk.completion
    assert completion is not None, "a stream ends with its completion"
    return {
        **envelope(reply),
        "content": whole_blocks(events),
        **ending(completion),
        "usage": final_usage(reply, completion),
    }


async def stream_reply(reply: MessageReply, service: Service) -> AsyncGenerator[bytes, None]:
    """Server-sent events, each named by its type. An error ends the stream with its own event."""
    try:
        async with aclosing(stream_payloads(reply, service)) as payloads:
            async for payload in payloads:
                yield sse(payload, payload["type"])
    except Exception as error:
        yield sse(describe_late(error, PATH), "error")


async def stream_payloads(reply: MessageReply, service: Service) -> AsyncGenerator[dict[str, Any], None]:
    """message_start waits for the first token: until then nobody knows how much of the prompt was cached."""
    blocks = BlockWriter()
    completion = None
    has_started = False
    async with aclosing(service.stream(reply.turn)) as chunks:
        async for chunk in chunks:
            if not has_started:
                yield message_start(reply, chunk.num_cached_tokens)
                has_started = True
            for event in chunk.events:
                for payload in blocks.write(event):
                    yield payload
            completion = chunk.completion
    assert completion is not None, "a stream ends with its completion"
    for payload in blocks.close():
        yield payload
    yield {"type": "message_delta", "delta": ending(completion), "usage": final_usage(reply, completion)}
    yield {"type": "message_stop"}


def message_start(reply: MessageReply, num_cached_tokens: int) -> dict[str, Any]:
    message = {
        **envelope(reply),
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage(reply, num_cached_tokens),
    }
    return {"type": "message_start", "message": message}


def envelope(reply: MessageReply) -> dict[str, Any]:
    return {"id": reply.id, "type": "message", "role": "assistant", "model": reply.model_id}


def ending(completion: Completion) -> dict[str, Any]:
    """Why the reply ended. The dialect has no word for one that the server cut: that is an error, which
    clients answer by asking again. Raises EngineClosed."""
    if completion.finish_reason == "abort":
        raise EngineClosed("the reply was cut")
    if completion.finish_reason == "stop" and completion.stop_string is not None:
        return {"stop_reason": "stop_sequence", "stop_sequence": completion.stop_string}
    return {"stop_reason": STOP_REASONS[completion.finish_reason], "stop_sequence": None}


def final_usage(reply: MessageReply, completion: Completion) -> dict[str, Any]:
    return usage(
        reply, completion.num_cached_tokens, len(completion.token_ids), completion.num_reasoning_tokens
    )


def usage(
    reply: MessageReply, num_cached_tokens: int, num_sampled: int = 0, num_reasoning: int = 0
) -> dict[str, Any]:
    """The prompt's tokens that were in the cache are not counted a second time as input."""
    return {
        "input_tokens": len(reply.turn.prompt_token_ids) - num_cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": num_cached_tokens,
        "output_tokens": num_sampled,
        "output_tokens_details": {"thinking_tokens": num_reasoning},
    }
