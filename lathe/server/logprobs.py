"""Log-probabilities of a reply's tokens as OpenAI's dialects write them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lathe.text.tokenizer import Tokenizer
from lathe.types import Completion, SamplingParams, TokenLogprob


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
    # JSON has no infinity; -9999 is what OpenAI and vLLM write for a token that could not be drawn.
    return {"token": raw.decode("utf-8", "replace"), "logprob": max(logprob, -9999.0), "bytes": list(raw)}
