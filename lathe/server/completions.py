"""OpenAI's older dialect: raw prompts, continued. With a suffix, a place in a file, filled in.

`read` goes in: a request may hold several prompts, and each becomes a turn. `Choice` turns one reply's chunks
into its pieces of JSON, which a stream sends as they are and a whole reply joins.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request, Response

from lathe.engine.llm import Chunk
from lathe.server.completions_schema import (
    DEFAULT_MAX_TOKENS,
    MAX_CHOICES,
    CompletionRequest,
    TextCompletion,
)
from lathe.server.errors import BadRequest, describe_late
from lathe.server.logprobs import legacy_logprobs
from lathe.server.sampling import read_sampling
from lathe.server.service import Service, Turn
from lathe.server.sessions import session_of
from lathe.server.streaming import DONE, EventStream, answer, reply_or_events, sse
from lathe.text import fim
from lathe.text.fim import FimPrompt
from lathe.text.tokenizer import StreamDecoder, Tokenizer
from lathe.types import SamplingParams


@dataclass(frozen=True)
class CompletionReply:
    """What a reply's choices and envelope need beside the turns. `echoes` are the prompts' texts, or "".

    The choices of the first prompt come first: choice `i` is reply `i % n` of turn `i // n`.
    """

    turns: tuple[Turn, ...]
    echoes: tuple[str, ...]
    model_id: str
    return_token_ids: bool
    tokens_as_ids: bool
    include_usage: bool
    usage_so_far: bool
    id: str = field(default_factory=lambda: f"cmpl-{uuid.uuid4().hex}")

    @property
    def n(self) -> int:
        return self.turns[0].sampling.n


def install(app: FastAPI, service: Service) -> None:
    """Add the dialect's route."""

    @app.post(
        "/v1/completions",
        response_model=TextCompletion,
        responses=reply_or_events(
            TextCompletion, "a text_completion with a choice's next piece, an error, or [DONE]"
        ),
    )
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Continuations of raw prompts, or with suffix what stands between: whole, or streamed."""
        reply = await read(body, service, await session_of(request))
        if body.stream:
            return EventStream(stream_reply(reply, service))
        return await answer(request, whole_reply(reply, service))


# From JSON to nouns


async def read(request: CompletionRequest, service: Service, session: str | None = None) -> CompletionReply:
    """Raises BadRequest: what is wrong with a request, before any work."""
    started = time.monotonic()
    prompts = read_prompts(request)
    refuse_what_is_not_served(request, len(prompts))
    tokenizer = service.llm.tokenizer
    sampling = read_completion_sampling(request, service.llm.default_sampling)
    if request.suffix is not None:
        sampling = fim.ending_middles(tokenizer, sampling)
    encoded = await asyncio.to_thread(encode_all, tokenizer, prompts, request.suffix)
    return CompletionReply(
        turns=tuple(
            service.prepare_raw(
                "completions", ids, sampling, param="prompt", started=started, session=session
            )
            for ids in encoded
        ),
        echoes=tuple(read_echo(request, tokenizer, prompt) for prompt in prompts),
        model_id=service.answers_to(request.model),
        return_token_ids=bool(request.return_token_ids),
        tokens_as_ids=bool(request.return_tokens_as_token_ids),
        include_usage=bool(request.stream_options and request.stream_options.include_usage),
        usage_so_far=bool(request.stream_options and request.stream_options.continuous_usage_stats),
    )


def read_prompts(request: CompletionRequest) -> list[str | list[int]]:
    prompt: Any = request.prompt
    is_one = isinstance(prompt, str) or isinstance(prompt[0], int)
    return [prompt] if is_one else prompt


def refuse_what_is_not_served(request: CompletionRequest, num_prompts: int) -> None:
    """What would change the reply's meaning is refused rather than ignored."""
    n = request.n or 1
    if num_prompts * n > MAX_CHOICES:
        message = (
            f"{num_prompts} prompts times n = {n} are more than {MAX_CHOICES} choices: send fewer at a time."
        )
        raise BadRequest(message, param="prompt")
    if request.best_of is not None and request.best_of != n:
        message = f"best_of is {request.best_of}: it must be n, which is {n}. All replies are given."
        raise BadRequest(message, param="best_of", code="unsupported_value")
    if request.logit_bias:
        raise BadRequest("logit_bias is not supported yet.", param="logit_bias", code="unsupported_parameter")
    if request.suffix is not None and not isinstance(request.prompt, str):
        message = "suffix needs one prompt, as text: the text before the place to fill in."
        raise BadRequest(message, param="prompt")
    if request.suffix is not None and request.echo:
        raise BadRequest("echo can't be used with suffix: the prompt is two texts then.", param="echo")


def read_completion_sampling(request: CompletionRequest, default: SamplingParams) -> SamplingParams:
    return read_sampling(
        request,
        default,
        max_tokens=DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens,
        logprobs=request.logprobs,
        prompt_logprobs=request.logprobs if request.echo else None,
        n=request.n,
    )


def encode_all(
    tokenizer: Tokenizer, prompts: Sequence[str | list[int]], suffix: str | None
) -> list[Sequence[int]]:
    """Each prompt's ids. Raw text is where control tokens count as such, as in the library's `generate`;
    around a place to fill in stands a file's text, where they don't."""
    return [
        prompt
        if not isinstance(prompt, str)
        else tokenizer.encode(prompt, allow_special=True)
        if suffix is None
        else fim.encode(tokenizer, FimPrompt(prompt, suffix))
        for prompt in prompts
    ]


def read_echo(request: CompletionRequest, tokenizer: Tokenizer, prompt: str | list[int]) -> str:
    if not request.echo:
        return ""
    return prompt if isinstance(prompt, str) else tokenizer.decode(prompt)


# From the engine's chunks to JSON


class Choice:
    """One reply in the making, piece by piece. Keeps count of its characters, for the tokens' offsets."""

    def __init__(self, reply: CompletionReply, index: int, tokenizer: Tokenizer):
        self.index = index
        self._turn = reply.turns[index // reply.n]
        self._echo = reply.echoes[index // reply.n]
        self._return_token_ids = reply.return_token_ids
        self._tokens_as_ids = reply.tokens_as_ids
        self._tokenizer = tokenizer
        self._decoder = StreamDecoder(tokenizer, skip_special=True)
        self._end = len(self._echo)
        self._is_first = True

    def piece(self, chunk: Chunk) -> dict[str, Any] | None:
        """What a chunk adds to the choice. None for nothing, such as half a character."""
        is_first, self._is_first = self._is_first, False
        piece: dict[str, Any] = {
            "index": self.index,
            "text": self._echo + chunk.text if is_first else chunk.text,
            "logprobs": self._logprobs(chunk, is_first),
            "finish_reason": chunk.completion.finish_reason if chunk.completion else None,
        }
        if self._return_token_ids:
            piece["token_ids"] = [entry.token_id for entry in chunk.logprobs]
            if is_first:
                piece["prompt_token_ids"] = list(self._turn.prompt_token_ids)
        says_something = (
            piece["text"] or piece["logprobs"] or piece["finish_reason"] or piece.get("token_ids")
        )
        return piece if says_something else None

    def _logprobs(self, chunk: Chunk, is_first: bool) -> dict[str, Any] | None:
        if self._turn.sampling.logprobs is None:
            return None
        ids = [entry.token_id for entry in chunk.logprobs]
        offsets, self._end = measure(self._decoder, ids, self._end)
        as_ids = self._tokens_as_ids
        lists = legacy_logprobs(self._tokenizer, ids, chunk.logprobs, offsets, as_ids=as_ids)
        if is_first and chunk.prompt_logprobs:
            prompt = self._turn.prompt_token_ids
            offsets, _ = measure(StreamDecoder(self._tokenizer), prompt, 0)
            scores = chunk.prompt_logprobs
            of_prompt = legacy_logprobs(self._tokenizer, prompt, scores, offsets, as_ids=as_ids)
            lists = {name: of_prompt[name] + lists[name] for name in lists}
        return lists


def measure(decoder: StreamDecoder, ids: Sequence[int], start: int) -> tuple[list[int], int]:
    """Where the text of each token begins, and where the last one's ends, in whole characters."""
    offsets = []
    for token_id in ids:
        offsets.append(start)
        start += len(decoder.push(token_id))
    return offsets, start


def join(pieces: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A choice from all of its pieces."""
    whole = dict(pieces[0])
    whole["text"] = "".join(piece["text"] for piece in pieces)
    whole["finish_reason"] = pieces[-1]["finish_reason"]
    if whole["logprobs"] is not None:
        whole["logprobs"] = {
            name: [entry for piece in pieces for entry in piece["logprobs"][name]]
            for name in whole["logprobs"]
        }
    if "token_ids" in whole:
        whole["token_ids"] = [token_id for piece in pieces for token_id in piece["token_ids"]]
    return whole


@dataclass(frozen=True)
class Count:
    """The tokens of one reply so far, and how much of its prompt was cached."""

    num_tokens: int = 0
    num_cached_tokens: int = 0


async def stream_pieces(
    reply: CompletionReply, service: Service, counts: dict[int, Count]
) -> AsyncGenerator[dict[str, Any], None]:
    """The pieces of all choices as they come. Keeps `counts`, by choice."""
    num_choices = len(reply.turns) * reply.n
    choices = [Choice(reply, index, service.llm.tokenizer) for index in range(num_choices)]
    async with aclosing(service.stream_together(reply.turns)) as chunks:
        async for place, chunk in chunks:
            choice = choices[place * reply.n + chunk.index]
            num_before = counts.get(choice.index, Count()).num_tokens
            counts[choice.index] = Count(num_before + len(chunk.logprobs), chunk.num_cached_tokens)
            if (piece := choice.piece(chunk)) is not None:
                yield piece


async def whole_reply(reply: CompletionReply, service: Service) -> dict[str, Any]:
    """The text_completion object. Cancelling it closes the engine's streams."""
    counts: dict[int, Count] = {}
    pieces: dict[int, list[dict[str, Any]]] = {}
    async with aclosing(stream_pieces(reply, service, counts)) as stream:
        async for piece in stream:
            pieces.setdefault(piece["index"], []).append(piece)
    choices = [join(pieces[index]) for index in sorted(pieces)]
    return {**envelope(reply), "choices": choices, "usage": usage(reply, counts)}


async def stream_reply(reply: CompletionReply, service: Service) -> AsyncGenerator[bytes, None]:
    """Server-sent events: pieces of choices, perhaps the usage, [DONE]. An error ends the stream."""
    counts: dict[int, Count] = {}
    try:
        async with aclosing(stream_pieces(reply, service, counts)) as stream:
            async for piece in stream:
                so_far = {"usage": usage(reply, counts)} if reply.usage_so_far else {}
                yield sse({**envelope(reply), "choices": [piece], **so_far})
        if reply.include_usage:
            yield sse({**envelope(reply), "choices": [], "usage": usage(reply, counts)})
        yield DONE
    except Exception as error:
        yield sse(describe_late(error))


def envelope(reply: CompletionReply) -> dict[str, Any]:
    return {
        "id": reply.id,
        "object": "text_completion",
        "created": reply.turns[0].created,
        "model": reply.model_id,
    }


def usage(reply: CompletionReply, counts: Mapping[int, Count]) -> dict[str, Any]:
    """Each prompt is counted once, however many replies it got."""
    num_prompt = sum(len(turn.prompt_token_ids) for turn in reply.turns)
    count = sum(choice.num_tokens for choice in counts.values())
    firsts = [counts.get(place * reply.n, Count()) for place in range(len(reply.turns))]
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": count,
        "total_tokens": num_prompt + count,
        "prompt_tokens_details": {"cached_tokens": sum(first.num_cached_tokens for first in firsts)},
    }
