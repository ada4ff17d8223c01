"""llama.cpp's dialect for editors: POST /infill, a place in a file with what the editor knows around it.

`read` goes in; pieces come out, which a stream sends as they are and a whole reply joins. An editor sends all
that it has and expects the server to cut: unlike other dialects, this one keeps what is nearest to the place.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request, Response

from lathe.engine.llm import Chunk
from lathe.server.errors import describe_late
from lathe.server.infill_schema import Infill, InfillRequest
from lathe.server.sampling import read_sampling
from lathe.server.service import Service, Turn
from lathe.server.sessions import session_of
from lathe.server.streaming import EventStream, answer, reply_or_events, sse
from lathe.text import fim
from lathe.text.fim import FimPrompt, SourceFile
from lathe.text.tokenizer import Tokenizer
from lathe.types import Completion, SamplingParams

# The dialect names neither the repository nor the file being edited. Qwen's layout has lines for both; these
# are llama.cpp's words, so that a model is asked the same by both servers.
REPO_NAME, PATH, EXTRA_PATH = "myproject", "filename", "tmp"


@dataclass(frozen=True)
class InfillReply:
    """What a reply needs beside the turn. `time_limit_s` counts from the first token."""

    turn: Turn
    model_id: str
    truncated: bool
    time_limit_s: float | None
    return_tokens: bool
    fields: tuple[str, ...]


def install(app: FastAPI, service: Service) -> None:
    """Add the dialect's route."""

    @app.post(
        "/infill",
        response_model=Infill,
        responses=reply_or_events(Infill, "the next piece, or an error; the last has stop: true"),
    )
    async def infill(body: InfillRequest, request: Request) -> Response:
        """What stands between two texts, as llama.vim and llama.vscode ask: whole, or streamed."""
        reply = await read(body, service, await session_of(request))
        if body.stream:
            return EventStream(stream_reply(reply, service))
        return await answer(request, whole_reply(reply, service))


# From JSON to nouns


async def read(request: InfillRequest, service: Service, session: str | None = None) -> InfillReply:
    """Raises UserError for a model without the control tokens."""
    started = time.monotonic()
    llm = service.llm
    sampling = read_infill_sampling(request, llm.tokenizer)
    room = fim.room_for_prompt(llm.max_context, sampling.max_tokens)
    ids, num_left_out = await asyncio.to_thread(fim.fit, llm.tokenizer, read_prompt(request), room)
    return InfillReply(
        turn=service.prepare_raw(
            "infill", ids, sampling, param="input_prefix", started=started, session=session
        ),
        model_id=service.answers_to(request.model),
        truncated=num_left_out > 0,
        time_limit_s=request.t_max_predict_ms / 1000 if request.t_max_predict_ms else None,
        return_tokens=bool(request.return_tokens),
        fields=tuple(request.response_fields or ()),
    )


def read_prompt(request: InfillRequest) -> FimPrompt:
    prompt = FimPrompt(request.input_prefix + (request.prompt or ""), request.input_suffix)
    if not request.input_extra:
        return prompt
    files = tuple(SourceFile(extra.filename or EXTRA_PATH, extra.text) for extra in request.input_extra)
    return FimPrompt(prompt.prefix, prompt.suffix, PATH, REPO_NAME, files)


def read_infill_sampling(request: InfillRequest, tokenizer: Tokenizer) -> SamplingParams:
    num_asked = request.n_predict
    sampling = read_sampling(
        request,
        fim.DEFAULT_SAMPLING,
        max_tokens=None if num_asked is None or num_asked < 0 else num_asked,
        repetition_penalty=request.repeat_penalty or request.repetition_penalty,
        seed=None if request.seed == -1 else request.seed,
    )
    return fim.ending_middles(tokenizer, sampling)


# From the engine's chunks to JSON


class Progress:
    """What has been said so far, and when."""

    def __init__(self, reply: InfillReply):
        self.reply = reply
        self.num_tokens = 0
        self.num_cached = 0
        self.has_line = False
        self.first_at = self.last_at = time.monotonic()
        self.completion: Completion | None = None
        self._is_first = True

    def piece(self, chunk: Chunk) -> dict[str, Any]:
        self.last_at = time.monotonic()
        if self._is_first:
            self.first_at, self._is_first = self.last_at, False
        self.num_tokens += len(chunk.logprobs)
        self.num_cached = chunk.num_cached_tokens
        self.has_line = self.has_line or "\n" in chunk.text
        self.completion = chunk.completion
        return {
            "index": 0,
            "content": chunk.text,
            "tokens": [entry.token_id for entry in chunk.logprobs],
            "stop": False,
            "tokens_predicted": self.num_tokens,
            "tokens_evaluated": len(self.reply.turn.prompt_token_ids),
        }

    @property
    def is_late(self) -> bool:
        """Whether the time is up, which counts once there is a whole line to show."""
        limit = self.reply.time_limit_s
        return limit is not None and self.has_line and self.last_at - self.first_at > limit

    def last_piece(self, content: str = "", tokens: Sequence[int] = ()) -> dict[str, Any]:
        return {
            "index": 0,
            "content": content,
            "tokens": list(tokens),
            "stop": True,
            "model": self.reply.model_id,
            "tokens_predicted": self.num_tokens,
            "tokens_evaluated": len(self.reply.turn.prompt_token_ids),
            "tokens_cached": self.num_cached,
            "truncated": self.reply.truncated,
            "stop_type": stop_type(self.completion),
            "stopping_word": (self.completion and self.completion.stop_string) or "",
            "timings": self.timings(),
        }

    def timings(self) -> dict[str, Any]:
        num_prompt = len(self.reply.turn.prompt_token_ids) - self.num_cached
        return {
            **rates("prompt", num_prompt, self.first_at - self.reply.turn.started),
            **rates("predicted", self.num_tokens, self.last_at - self.first_at),
        }


def stop_type(completion: Completion | None) -> str:
    """None was reached when the server stopped. Without a completion, it was the time limit."""
    match completion:
        case None | Completion(finish_reason="length"):
            return "limit"
        case Completion(finish_reason="stop", stop_string=None):
            return "eos"
        case Completion(finish_reason="stop"):
            return "word"
    return "none"


def rates(name: str, count: int, seconds: float) -> dict[str, Any]:
    return {
        f"{name}_n": count,
        f"{name}_ms": seconds * 1000,
        f"{name}_per_token_ms": seconds * 1000 / max(count, 1),
        f"{name}_per_second": count / max(seconds, 1e-9),
    }


async def stream_pieces(progress: Progress, service: Service) -> AsyncGenerator[dict[str, Any], None]:
    """The pieces of a reply, until it ends or is late."""
    async with aclosing(service.stream(progress.reply.turn)) as chunks:
        async for chunk in chunks:
            yield progress.piece(chunk)
            if progress.is_late:
                return


async def whole_reply(reply: InfillReply, service: Service) -> dict[str, Any]:
    """The whole object. Cancelling it closes the engine's stream."""
    progress = Progress(reply)
    async with aclosing(stream_pieces(progress, service)) as stream:
        pieces = [piece async for piece in stream]
    tokens = [token_id for piece in pieces for token_id in piece["tokens"]]
    whole = progress.last_piece(
        "".join(piece["content"] for piece in pieces), tokens if reply.return_tokens else ()
    )
    return select(whole, reply.fields)


async def stream_reply(reply: InfillReply, service: Service) -> AsyncGenerator[bytes, None]:
    """Server-sent events: pieces, and a last one that says how it ended. An error ends the stream."""
    progress = Progress(reply)
    try:
        async with aclosing(stream_pieces(progress, service)) as stream:
            async for piece in stream:
                yield sse(piece)
        yield sse(select(progress.last_piece(), reply.fields))
    except Exception as error:
        yield sse(describe_late(error))


def select(payload: dict[str, Any], fields: Sequence[str]) -> dict[str, Any]:
    """The fields that were asked for, under the names that they were asked by; all where none were.
    A slash leads inside. A field that is not there is left out."""
    if not fields:
        return payload
    selected = {}
    for name in fields:
        found: Any = payload
        for key in name.split("/"):
            found = found.get(key) if isinstance(found, dict) else None
        if found is not None:
            selected[name] = found
    return selected
