"""Log-probabilities of a reply's tokens as OpenAI's dialects write them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lathe.text.tokenizer import Tokenizer
from lathe.types import Completion, SamplingParams, TokenLogprob

# JSON has no infinity; this is what OpenAI and vLLM write for a token that could not be drawn.
LOWEST = -9999.0


def spoken(
    entries: Sequence[TokenLogprob],
    sampling: SamplingParams,
    tokenizer: Tokenizer,
    completion: Completion | None,
) -> Sequence[TokenLogprob]:
    """The entries without the control or stop token that ended the turn: it is no part of the content."""
    ended = completion is not None and completion.finish_reason in ("stop", "tool_calls")
    end_marks = (*tokenizer.special_tokens.values(), *sampling.stop_token_ids)
    return entries[:-1] if ended and entries and entries[-1].token_id in end_marks else entries


def entries_json(entries: Sequence[TokenLogprob], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Each token with its log-probability, its bytes, and the alternatives that were asked for."""
    return [
        {
            **token_json(tokenizer, entry.token_id, entry.logprob),
            "top_logprobs": [token_json(tokenizer, token_id, logprob) for token_id, logprob in entry.top],
        }
        for entry in entries
    ]


def token_json(tokenizer: Tokenizer, token_id: int, logprob: float) -> dict[str, Any]:
    raw = tokenizer.token_bytes(token_id)
    return {"token": raw.decode("utf-8", "replace"), "logprob": max(logprob, LOWEST), "bytes": list(raw)}


def reply_ids(entries: Sequence[TokenLogprob]) -> dict[str, Any]:
    """Tokens as they were sampled: the one that ended the turn is one of them."""
    return {
        "token_ids": [entry.token_id for entry in entries],
        "token_logprobs": [max(entry.logprob, LOWEST) for entry in entries],
    }


def reply_origin(completion: Completion) -> dict[str, Any]:
    """Which weights drew a reply, and whether all of its tokens are known."""
    return {
        "is_exact": completion.is_exact,
        "weights_version": completion.weights_version,
        "weights_updates": list(completion.weights_updates),
    }


def legacy_logprobs(
    tokenizer: Tokenizer,
    token_ids: Sequence[int],
    entries: Sequence[TokenLogprob | None],
    offsets: Sequence[int],
    *,
    as_ids: bool = False,
) -> dict[str, list[Any]]:
    """The same in the shape of OpenAI's older completions: lists of one length. A prompt's first token has no
    entry. `offsets` say where each token's text begins. `as_ids` writes tokens as vLLM does for clients who
    need to know which they are: "token_id:17"."""

    def name(token_id: int) -> str:
        return f"token_id:{token_id}" if as_ids else token_text(tokenizer, token_id)

    return {
        "tokens": [name(token_id) for token_id in token_ids],
        "token_logprobs": [entry and max(entry.logprob, LOWEST) for entry in entries],
        "top_logprobs": [entry and top_names(name, entry) for entry in entries],
        "text_offset": list(offsets),
    }


def top_names(name: Callable[[int], str], entry: TokenLogprob) -> dict[str, float]:
    """The alternatives that were asked for, best first, and the token itself where it is none of them."""
    pairs = [*entry.top, (entry.token_id, entry.logprob)]
    return {name(token_id): max(logprob, LOWEST) for token_id, logprob in pairs}


def token_text(tokenizer: Tokenizer, token_id: int) -> str:
    """A token's text. One that is no whole text, such as half a character, is written as OpenAI writes it:
    "bytes:\\xe2\\x82"; so two of them never look alike."""
    raw = tokenizer.token_bytes(token_id)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
