"""The JSON of llama.cpp's /infill, as its editors send and read it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from lathe.server.sampling import SamplingFields
from lathe.server.wire import Wire


class ExtraFile(Wire):
    """A piece of another file."""

    text: str
    filename: str | None = None


class InfillRequest(SamplingFields):
    """What is left out draws the likeliest token each time, without penalties.

    Fields of llama.cpp that are not here (samplers, cache_prompt, t_max_prompt_ms, n_indent …) are accepted
    and change nothing.
    """

    input_prefix: str = Field(description="the text before the cursor's line, or all of it")
    input_suffix: str = Field(description="the text behind the cursor")
    input_extra: list[ExtraFile] | None = Field(None, description="from other files; the last matters most")
    prompt: str | None = Field(None, description="what follows input_prefix: the cursor's line so far")
    model: str | None = None
    n_predict: int | None = Field(None, ge=-2, le=2**31 - 1, description="below 0: until the middle ends")
    repeat_penalty: float | None = Field(None, gt=0, le=10)
    t_max_predict_ms: float | None = Field(
        None, ge=0, description="stop then, once a line is whole; counted from the first token. 0: never"
    )
    stream: bool | None = None
    return_tokens: bool | None = None
    response_fields: list[str] | None = Field(None, description='names to give, as in "timings/prompt_n"')


class Timings(BaseModel):
    """Of the prompt as far as it was not cached, and of the reply."""

    prompt_n: int
    prompt_ms: float
    prompt_per_token_ms: float
    prompt_per_second: float
    predicted_n: int
    predicted_ms: float
    predicted_per_token_ms: float
    predicted_per_second: float


class Infill(BaseModel):
    """With response_fields, those alone, each under the name that it was asked by."""

    index: int | None = None
    content: str | None = None
    tokens: list[int] | None = None
    stop: bool | None = None
    model: str | None = None
    tokens_predicted: int | None = None
    tokens_evaluated: int | None = Field(None, description="of the prompt")
    tokens_cached: int | None = Field(None, description="of the prompt, those that were not computed anew")
    truncated: bool | None = Field(None, description="whether the prompt was cut to fit the context")
    stop_type: Literal["eos", "limit", "word", "none"] | None = None
    stopping_word: str | None = None
    timings: Timings | dict[str, Any] | None = None
