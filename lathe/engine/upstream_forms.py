"""How another engine is asked for tokens, and how its events are read: one form a kind of server.

A form writes a request's JSON and gives a reader for the events that answer it. Text is never asked for where
ids are to be had: the reply is what was sampled.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from lathe.errors import InvalidRequest, UpstreamError
from lathe.text.tokenizer import Tokenizer
from lathe.types import FinishReason, SamplingParams, TokenLogprob

# Stands for a log-probability that the upstream did not report. Such a reply is never `is_exact`.
UNKNOWN = -math.inf

REASONS: Mapping[str, FinishReason] = {"stop": "stop", "length": "length", "abort": "abort"}
# llama.cpp's words. "none" is what a task says that was cancelled there.
STOP_TYPES: Mapping[str, FinishReason] = {"eos": "stop", "word": "stop", "limit": "length", "none": "abort"}


@dataclass(frozen=True)
class Piece:
    """What an event adds to a reply. `is_exact` is False where ids or log-probabilities are guesses."""

    tokens: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    num_cached_tokens: int = 0
    is_exact: bool = True


Reader = Callable[[Mapping[str, Any]], Piece]


class Form(Protocol):
    """A kind of server. `is_exact`: its ids are those that were sampled, with their log-probabilities."""

    @property
    def name(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def is_exact(self) -> bool: ...

    def check(self, sampling: SamplingParams) -> None:
        """Raises InvalidRequest for what this kind of server can't do."""

    def body(self, prompt: tuple[int, ...], sampling: SamplingParams, max_tokens: int) -> dict[str, Any]: ...

    def reader(self, sampling: SamplingParams) -> Reader:
        """A reader for one reply. Raises UpstreamError for events that can't be understood."""


def refuse(field: str, name: str) -> InvalidRequest:
    return InvalidRequest(f"{field} is not possible here: the upstream ({name}) has no way to ask for it.")


def refuse_scores_and_grammars(sampling: SamplingParams, name: str) -> None:
    if sampling.prompt_logprobs is not None:
        raise refuse("prompt_logprobs (echo with logprobs)", name)
    if sampling.grammar is not None:
        raise refuse("grammar (response_format, or tool_choice required or named)", name)


def openai_fields(sampling: SamplingParams, ends: frozenset[int]) -> dict[str, Any]:
    """What vLLM, SGLang and Lathe call by the same names. All are said, since what is left out takes the
    upstream's own default."""
    fields: dict[str, Any] = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k or -1,  # some versions take 0 for "no token at all"
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "ignore_eos": sampling.ignore_eos,
        "stop_token_ids": sorted(stop_ids(sampling, ends)),
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }
    if sampling.seed is not None:
        fields["seed"] = sampling.seed
    return fields


def stop_ids(sampling: SamplingParams, ends: frozenset[int]) -> frozenset[int]:
    """The ids that end a reply."""
    return frozenset(sampling.stop_token_ids) | (frozenset() if sampling.ignore_eos else ends)


@dataclass(frozen=True)
class Completions:
    """OpenAI's completions with ids in and ids out, as vLLM and Lathe have them."""

    model: str | None
    ends: frozenset[int]
    is_lathe: bool = False
    path = "/v1/completions"
    is_exact = True

    @property
    def name(self) -> str:
        return "Lathe's completions with token ids" if self.is_lathe else "completions with token ids"

    def check(self, sampling: SamplingParams) -> None:
        refuse_scores_and_grammars(sampling, self.name)
        if sampling.deterministic and not self.is_lathe:
            raise refuse("deterministic", self.name)

    def body(self, prompt: tuple[int, ...], sampling: SamplingParams, max_tokens: int) -> dict[str, Any]:
        return {
            **({} if self.model is None else {"model": self.model}),
            "prompt": list(prompt),
            "max_tokens": max_tokens,
            "logprobs": sampling.logprobs or 0,  # 0: the sampled token's own
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            **openai_fields(sampling, self.ends),
            **({"deterministic": True} if sampling.deterministic else {}),
        }

    def reader(self, sampling: SamplingParams) -> Reader:
        num_top = sampling.logprobs or 0

        def read(event: Mapping[str, Any]) -> Piece:
            choice = first_choice(event)
            ids = choice.get("token_ids") or []
            lists = choice.get("logprobs") or {}
            logprobs = lists.get("token_logprobs") or []
            if len(logprobs) != len(ids):
                raise UpstreamError(
                    f"The upstream gave {len(ids)} token ids with {len(logprobs)} log-probabilities."
                )
            tops = lists.get("top_logprobs") or [None] * len(ids)
            tokens = tuple(
                TokenLogprob(token_id, logprob, best(top, num_top))
                for token_id, logprob, top in zip(ids, logprobs, tops, strict=True)
            )
            return Piece(tokens, finish_reason_of(choice), cached_tokens(event))

        return read


@dataclass(frozen=True)
class LlamaCpp:
    """llama.cpp's own completion. Its stream leaves out the ids of tokens that end inside a character: such a
    stretch is tokenized again here, and the reply is not exact."""

    tokenizer: Tokenizer
    path = "/completion"
    name = "llama.cpp's completion with token ids"
    is_exact = True

    def check(self, sampling: SamplingParams) -> None:
        refuse_scores_and_grammars(sampling, self.name)
        if sampling.deterministic:
            raise refuse("deterministic", self.name)

    def body(self, prompt: tuple[int, ...], sampling: SamplingParams, max_tokens: int) -> dict[str, Any]:
        body: dict[str, Any] = {
            "prompt": list(prompt),
            "n_predict": max_tokens,
            "stream": True,
            "cache_prompt": True,
            "return_tokens": True,
            "n_probs": max(sampling.logprobs or 0, 1),  # 0 leaves out the sampled token's, too
            "timings_per_token": True,  # the only place where the first event says what was cached
            "samplers": ["penalties", "temperature", "top_k", "top_p", "min_p"],  # in our sampler's order
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            "repeat_penalty": sampling.repetition_penalty,
            "repeat_last_n": len(prompt) + max_tokens,  # all there will be
            "presence_penalty": sampling.presence_penalty,
            "frequency_penalty": sampling.frequency_penalty,
            "ignore_eos": sampling.ignore_eos,
        }
        if sampling.seed is not None:
            body["seed"] = sampling.seed % (2**32 - 1)  # the number after the last means: a random one
        return body

    def reader(self, sampling: SamplingParams) -> Reader:
        num_top = sampling.logprobs or 0
        num_read = 0

        def read(event: Mapping[str, Any]) -> Piece:
            nonlocal num_read
            ids = event.get("tokens") or []
            entries = event.get("completion_probabilities") or []
            if [entry.get("id") for entry in entries] != ids:
                raise UpstreamError(
                    "The upstream's token ids and log-probabilities are not of the same tokens."
                )
            tokens = tuple(
                TokenLogprob(
                    entry["id"],
                    entry["logprob"],
                    tuple((top["id"], top["logprob"]) for top in entry["top_logprobs"][:num_top]),
                )
                for entry in entries
            )
            num_read += len(ids)
            num_sampled = event.get("tokens_predicted", num_read)
            is_exact = num_sampled <= num_read
            if not is_exact:
                text = str(event.get("content") or "")
                tokens = (
                    tuple(TokenLogprob(token_id, UNKNOWN) for token_id in self.tokenizer.encode(text))
                    or tokens
                )
            num_read = max(num_read, num_sampled)
            reason = STOP_TYPES.get(str(event.get("stop_type")), "abort") if event.get("stop") else None
            return Piece(tokens, reason, (event.get("timings") or {}).get("cache_n") or 0, is_exact)

        return read


@dataclass(frozen=True)
class PlainText:
    """Completions that answer with text alone. It is tokenized here, so the ids are not those that were
    sampled, and log-probabilities are not known. `takes_ids` says whether prompts may be ids."""

    tokenizer: Tokenizer
    model: str | None
    ends: frozenset[int]
    takes_ids: bool
    path = "/v1/completions"
    name = "completions as text"
    is_exact = False

    def check(self, sampling: SamplingParams) -> None:
        refuse_scores_and_grammars(sampling, self.name)
        if sampling.logprobs is not None:
            raise refuse("logprobs", self.name)
        if sampling.deterministic:
            raise refuse("deterministic", self.name)

    def body(self, prompt: tuple[int, ...], sampling: SamplingParams, max_tokens: int) -> dict[str, Any]:
        return {
            **({} if self.model is None else {"model": self.model}),
            "prompt": list(prompt) if self.takes_ids else self.tokenizer.decode(prompt),
            "max_tokens": max_tokens,
            **openai_fields(sampling, self.ends),
        }

    def reader(self, sampling: SamplingParams) -> Reader:
        def read(event: Mapping[str, Any]) -> Piece:
            choice = first_choice(event)
            # Tags such as <tool_call> are tokens of their own, so they are read as such.
            ids = self.tokenizer.encode(str(choice.get("text") or ""), allow_special=True)
            tokens = tuple(TokenLogprob(token_id, UNKNOWN) for token_id in ids)
            return Piece(tokens, finish_reason_of(choice), cached_tokens(event), is_exact=False)

        return read


# What the events of completions have in common


class Events:
    """Cuts server-sent events out of bytes as they come. At line feeds alone: what Python and httpx take for
    the end of a line may stand inside of JSON."""

    def __init__(self) -> None:
        self._held = b""

    def feed(self, data: bytes) -> Iterator[dict[str, Any]]:
        """Raises UpstreamError as `event_of` does."""
        *lines, self._held = (self._held + data).split(b"\n")
        for line in lines:
            event = event_of(line.decode("utf-8", "replace"))
            if event is not None:
                yield event


def event_of(line: str) -> dict[str, Any] | None:
    """The JSON of one line of server-sent events; None for a line that holds none, and for [DONE].
    Raises UpstreamError for an error that ends the stream."""
    name, _, data = line.partition(":")
    data = data.strip()
    if name not in ("data", "error") or not data or data == "[DONE]":
        return None
    try:
        event = json.loads(data)
    except ValueError as error:
        raise UpstreamError(f"The upstream sent an event that is no JSON: {data[:200]}") from error
    if not isinstance(event, dict):
        raise UpstreamError(f"The upstream sent an event that is no JSON object: {data[:200]}")
    if name == "error" or event.get("error"):
        raise UpstreamError(f"The upstream ended the reply with an error: {explain(data)}")
    return event


def explain(body: str) -> str:
    """What an error's body says, in any of the shapes that servers give it."""
    try:
        found = json.loads(body)
    except ValueError:
        return body.strip()[:300] or "it did not say why"
    while isinstance(found, dict):
        found = next((found[key] for key in ("error", "message", "detail") if found.get(key)), str(found))
    return str(found)[:1000]


def first_choice(event: Mapping[str, Any]) -> Mapping[str, Any]:
    choices = event.get("choices")
    return choices[0] if choices else {}


def finish_reason_of(choice: Mapping[str, Any]) -> FinishReason | None:
    reason = choice.get("finish_reason")
    if reason is not None and reason not in REASONS:
        raise UpstreamError(f"The upstream ended the reply with a reason that is not known here: {reason!r}.")
    return None if reason is None else REASONS[reason]


def cached_tokens(event: Mapping[str, Any]) -> int:
    """How much of the prompt was cached, where the event says so."""
    details = (event.get("usage") or {}).get("prompt_tokens_details") or {}
    return details.get("cached_tokens") or 0


def best(top: Mapping[str, float] | None, count: int) -> tuple[tuple[int, float], ...]:
    """The likeliest of "token_id:17" and its like, best first."""
    pairs = [(int(name.removeprefix("token_id:")), logprob) for name, logprob in (top or {}).items() if count]
    return tuple(sorted(pairs, key=lambda pair: -pair[1])[:count])
