"""A trajectory as a request's JSON. What a server doesn't know is not sent: some refuse unknown fields."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from lathe.errors import InvalidRequest
from lathe.text.tool_arguments import json_text
from lathe.types import Message, SamplingParams, Tool, Trajectory

# "lathe" gives ids and takes them, "vllm" gives them, "openai" is any other that speaks the dialect.
Kind = Literal["lathe", "vllm", "openai"]

STANDARD = ("temperature", "top_p", "presence_penalty", "frequency_penalty", "seed")
EXTENDED = ("min_p", "repetition_penalty", "ignore_eos")


def request_json(
    trajectory: Trajectory, sampling: SamplingParams | None, model: str | None, kind: Kind
) -> dict[str, Any]:
    """The body of a streamed request. Raises InvalidRequest for what the server has no word for."""
    body: dict[str, Any] = {} if model is None else {"model": model}
    body["messages"] = [message_json(message) for message in trajectory.messages]
    if trajectory.tools:
        body["tools"] = [tool_json(tool) for tool in trajectory.tools]
    if trajectory.template_kwargs:
        body["chat_template_kwargs"] = dict(trajectory.template_kwargs)
    if sampling is not None:
        body |= sampling_json(sampling, kind)
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    if kind != "openai":
        body["return_token_ids"] = True
    if kind == "vllm":
        body["logprobs"] = True
    if kind == "lathe" and trajectory.token_ids:
        body["known_token_ids"] = list(trajectory.token_ids)
    return body


def message_json(message: Message) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        turn["content"] = message.content or None
        turn["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": json_text(call.arguments)},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        turn["tool_call_id"] = message.tool_call_id
    if message.name is not None:
        turn["name"] = message.name
    if message.reasoning is not None:
        turn["reasoning_content"] = message.reasoning
    return turn


def tool_json(tool: Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name, "description": tool.description}
    if tool.parameters is not None:
        function["parameters"] = dict(tool.parameters)
    if tool.strict:
        function["strict"] = True
    return {"type": "function", "function": function}


def sampling_json(sampling: SamplingParams, kind: Kind) -> dict[str, Any]:
    """What was asked for. The standard fields are all said, since what is left out takes the server's own
    default; the others where they are known, or change something."""
    default = SamplingParams()
    if sampling.n != 1:
        raise InvalidRequest(f"n is {sampling.n}: a conversation goes on with one reply.")
    if sampling.prompt_logprobs is not None:
        raise InvalidRequest("prompt_logprobs is not possible over chat completions.")
    fields = {name: getattr(sampling, name) for name in STANDARD}
    fields |= {
        name: value
        for name in EXTENDED
        if (value := getattr(sampling, name)) != getattr(default, name) or kind != "openai"
    }
    if sampling.top_k or kind != "openai":
        fields["top_k"] = sampling.top_k or -1
    fields["max_tokens"] = sampling.max_tokens
    fields["stop"] = list(sampling.stop) or None
    fields["stop_token_ids"] = list(sampling.stop_token_ids) or None
    if sampling.deterministic:
        if kind != "lathe":
            raise InvalidRequest("deterministic is not possible here: only Lathe's own server has it.")
        fields["deterministic"] = True
    if sampling.grammar is not None:
        fields |= grammar_json(sampling)
    if sampling.logprobs is not None:
        fields |= {"logprobs": True, "top_logprobs": sampling.logprobs}
    return {name: value for name, value in fields.items() if value is not None}


def grammar_json(sampling: SamplingParams) -> Mapping[str, Any]:
    assert sampling.grammar is not None
    if sampling.grammar.kind != "json_schema":
        raise InvalidRequest(
            f"A grammar of kind {sampling.grammar.kind} can't be sent over chat completions."
        )
    schema = {"name": "reply", "schema": json.loads(sampling.grammar.source), "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}
