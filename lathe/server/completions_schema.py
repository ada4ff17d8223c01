"""The JSON of OpenAI's completions, as vLLM extends it: what a client may send and what it gets back."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Discriminator, Field, Tag

from lathe.server.chat_schema import MAX_N, StreamOptions, Usage
from lathe.server.sampling import SamplingFields, TokenId

# OpenAI's own, and vLLM's. Raw text has no natural end: without a limit a reply would fill the context.
DEFAULT_MAX_TOKENS = 16
MAX_CHOICES = 2048

TokenIds = Annotated[list[TokenId], Field(min_length=1)]


def kind_of(prompt: Any) -> str:
    """Which of its four kinds a prompt is meant to be, so that an error speaks of that one alone."""
    match prompt:
        case [int(), *_]:
            return "list[int]"
        case [list(), *_]:
            return "list[list[int]]"
        case list():
            return "list[str]"
    return "str"


Prompt = Annotated[
    Annotated[str, Tag("str")]
    | Annotated[list[str], Field(min_length=1), Tag("list[str]")]
    | Annotated[TokenIds, Tag("list[int]")]
    | Annotated[list[TokenIds], Field(min_length=1), Tag("list[list[int]]")],
    Discriminator(kind_of),
]


class CompletionRequest(SamplingFields):
    """Sampling parameters that are left out, or null, take the checkpoint's own defaults."""

    prompt: Prompt = Field(
        description="a text, several, token ids, or several lists of them; control tokens count as such"
    )
    suffix: str | None = Field(None, description="the text behind: the reply is what stands between")
    model: str | None = None
    echo: bool | None = Field(None, description="begin the reply's text with the prompt")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(
        None, ge=0, description=f"{DEFAULT_MAX_TOKENS} if left out; 0 with echo and logprobs scores a text"
    )
    logprobs: int | None = Field(None, ge=0, le=20)
    n: int | None = Field(None, ge=1, le=MAX_N, description="for each prompt")
    best_of: int | None = Field(None, ge=1, le=MAX_N, description="as many as n: all are given")
    return_token_ids: bool | None = Field(None, description="add prompt_token_ids and token_ids to choices")
    return_tokens_as_token_ids: bool | None = Field(
        None, description='write tokens in logprobs as "token_id:17"'
    )
    logit_bias: dict[str, Any] | None = Field(None, description="not supported yet: must be empty")


class CompletionLogprobs(BaseModel):
    """Lists of one length: one entry a token, control tokens and the one that ended the reply included."""

    tokens: list[str] = Field(description="a token that is no whole text is written bytes:\\xe2\\x82")
    token_logprobs: list[float | None] = Field(description="null for a prompt's first token")
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int] = Field(description="in characters of the choice's text")


class CompletionChoice(BaseModel):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length", "abort"]
    prompt_token_ids: list[int] | None = None
    token_ids: list[int] | None = None


class TextCompletion(BaseModel):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage
