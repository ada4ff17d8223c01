"""How tokens are drawn, as clients of OpenAI's dialects say it: one set of fields, read in one place."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

from pydantic import Field

from lathe.server.wire import Wire
from lathe.types import SamplingParams

Seed = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]

SAME_NAME = (
    "temperature",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "ignore_eos",
    "deterministic",
)


class SamplingFields(Wire):
    """What is left out, or null, takes the checkpoint's own default."""

    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=2**31 - 1, description="0 or -1: off")
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    seed: Seed | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[TokenId] | None = None
    ignore_eos: bool | None = None
    deterministic: bool | None = Field(
        None, description="the same ids and bit-identical log-probabilities, whoever else is served"
    )


def read_sampling(request: SamplingFields, default: SamplingParams, **more: Any) -> SamplingParams:
    """The checkpoint's own defaults, changed by what the client sent.

    `more` is what the dialects call differently (max_tokens, logprobs, n); None in it changes nothing.
    max_tokens is an upper limit: agents ask for 32,000 whatever the context is, and get what is left of it.
    """
    changes: dict[str, Any] = {name: getattr(request, name) for name in SAME_NAME} | more
    if request.top_k is not None:
        changes["top_k"] = max(request.top_k, 0)  # -1 is vLLM's word for off
    if request.stop is not None:
        stop = [request.stop] if isinstance(request.stop, str) else request.stop
        changes["stop"] = tuple(text for text in stop if text)  # some clients send "" for none
    if request.stop_token_ids is not None:
        changes["stop_token_ids"] = tuple(request.stop_token_ids)
    return replace(default, **{name: value for name, value in changes.items() if value is not None})
