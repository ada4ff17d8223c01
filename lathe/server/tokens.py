"""The tokenizer over HTTP: /tokenize and /detokenize, as llama.cpp's clients ask and as vLLM's do."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import FastAPI, Response
from pydantic import BaseModel, Field

from lathe.engine.llm import LLM
from lathe.server.chat import read_trajectory
from lathe.server.chat_schema import ChatRequest, RequestMessage, RequestTool
from lathe.server.errors import BadRequest, encode_json, json_response
from lathe.server.sampling import TokenId
from lathe.server.service import Service, check_token_ids
from lathe.server.streaming import refusals
from lathe.server.wire import Wire
from lathe.text.tokenizer import Tokenizer

# Tokens that are written as JSON at once.
SLICE = 10_000


class TokenizeRequest(Wire):
    """One of content (llama.cpp), prompt and messages (vLLM).

    Nothing is added at the beginning or the end, whatever add_special says: prompts are served as they are.
    """

    content: str | None = None
    prompt: str | None = None
    messages: list[RequestMessage] | None = Field(None, min_length=1)
    parse_special: bool | None = Field(None, description="false reads control tokens as plain text")
    with_pieces: bool | None = Field(None, description="give each token as {id, piece}")
    tools: list[RequestTool] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = Field(None, description="not supported yet: must be false")
    chat_template_kwargs: dict[str, Any] | None = None
    enable_thinking: bool | None = None
    reasoning_effort: str | None = None


class Piece(BaseModel):
    id: int
    piece: str | list[int] = Field(description="the token's text, or its bytes where they are no whole text")


class Tokenized(BaseModel):
    tokens: list[int] | list[Piece]
    count: int
    max_model_len: int = Field(description="the longest prompt and reply together, in tokens")


class DetokenizeRequest(Wire):
    tokens: list[TokenId]


class Detokenized(BaseModel):
    """The same text by both servers' names."""

    content: str
    prompt: str


def install(app: FastAPI, service: Service) -> None:
    """Add the two routes."""
    llm = service.llm

    @app.post("/tokenize", response_model=Tokenized, responses=refusals())
    async def tokenize(body: TokenizeRequest) -> Response:
        """The ids of a text or of a conversation, and how many they are. The model is not asked."""
        ids = await asyncio.to_thread(encode, body, llm)
        return await asyncio.to_thread(tokenized, ids, body.with_pieces is True, llm)

    @app.post("/detokenize", response_model=Detokenized, responses=refusals())
    async def detokenize(body: DetokenizeRequest) -> Response:
        """The text of ids, control tokens included."""
        check_token_ids(llm, body.tokens, "tokens")
        text = await asyncio.to_thread(llm.tokenizer.decode, body.tokens)
        return json_response({"content": text, "prompt": text})


def encode(request: TokenizeRequest, llm: LLM) -> list[int]:
    """What the request gives as ids, as long as it is. Raises BadRequest or TemplateError."""
    given = [name for name in ("content", "prompt", "messages") if getattr(request, name) is not None]
    if len(given) != 1:
        raise BadRequest("Give one of content, prompt and messages.", param=given[1] if given else "prompt")
    if request.messages is None:
        text = request.content if request.prompt is None else request.prompt
        return llm.tokenizer.encode(text or "", allow_special=request.parse_special is not False)
    if request.continue_final_message:
        message = "continue_final_message is not supported yet: leave it out."
        raise BadRequest(message, param="continue_final_message", code="unsupported_parameter")
    trajectory = read_trajectory(
        ChatRequest.model_construct(
            messages=request.messages,
            tools=request.tools,
            chat_template_kwargs=request.chat_template_kwargs,
            enable_thinking=request.enable_thinking,
            reasoning_effort=request.reasoning_effort,
        )
    )
    return llm.template.encode(
        llm.tokenizer,
        trajectory.messages,
        trajectory.tools,
        add_generation_prompt=request.add_generation_prompt is not False,
        **trajectory.template_kwargs,
    )


def tokenized(ids: list[int], with_pieces: bool, llm: LLM) -> Response:
    """The reply, written slice by slice: the JSON encoder lets no other thread run, and millions of pieces
    take it seconds."""
    slices = []
    for start in range(0, len(ids), SLICE):
        some = ids[start : start + SLICE]
        pieces = [piece_json(llm.tokenizer, token_id) for token_id in some] if with_pieces else some
        slices.append(encode_json(pieces)[1:-1])
    rest = encode_json({"count": len(ids), "max_model_len": llm.max_context})[1:-1]
    return Response(b'{"tokens":[' + b",".join(slices) + b"]," + rest + b"}", media_type="application/json")


def piece_json(tokenizer: Tokenizer, token_id: int) -> dict[str, Any]:
    raw = tokenizer.token_bytes(token_id)
    try:
        return {"id": token_id, "piece": raw.decode("utf-8")}
    except UnicodeDecodeError:
        return {"id": token_id, "piece": list(raw)}
