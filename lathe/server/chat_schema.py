"""The JSON of OpenAI's chat completions: what a client may send and what it gets back.

Requests are checked against these models, and unknown fields are accepted and ignored: clients send
fields of every other server. Replies are built as plain dicts in chat.py; their models are here for the
OpenAPI document, and the tests hold the replies against them.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from lathe.server.content import ContentPart
from lathe.server.sampling import SamplingFields, TokenId
from lathe.server.wire import Wire

MAX_N = 128


class FunctionCall(Wire):
    name: str = Field(min_length=1)
    arguments: str | dict[str, Any] | None = Field(None, description="JSON text, as the API returned it")


class RequestedCall(Wire):
    """A call in an assistant's earlier turn."""

    id: str | None = None
    type: str | None = None
    function: FunctionCall


class RequestMessage(Wire):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[RequestedCall] | None = None
    tool_call_id: str | None = None
    function_call: FunctionCall | None = Field(None, description="OpenAI's older form of one tool call")
    reasoning_content: str | None = None


class FunctionTool(Wire):
    name: str = Field(min_length=1)
    description: str | None = None
    parameters: dict[str, Any] | None = Field(None, description="a JSON schema of type object")
    strict: bool | None = Field(None, description="where calls are imposed: all of parameters, or a 400")


class RequestTool(Wire):
    """A tool that the model may call. Tools of another type than function are skipped."""

    type: str = "function"
    function: FunctionTool | None = None


class NamedFunction(Wire):
    name: str = Field(min_length=1)


class AllowedTools(Wire):
    mode: Literal["auto", "required"] = "auto"
    tools: list[RequestTool]


class ToolChoice(Wire):
    type: Literal["function", "allowed_tools", "auto", "none", "required"]
    function: NamedFunction | None = None
    allowed_tools: AllowedTools | None = None


class JsonSchema(Wire):
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = Field(None, description="a schema that can't be imposed whole is a 400")


class ResponseFormat(Wire):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StreamOptions(Wire):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = Field(None, description="usage so far in each piece; completions")


class ChatRequest(SamplingFields):
    """Sampling parameters that are left out, or null, take the checkpoint's own defaults."""

    messages: list[RequestMessage] = Field(min_length=1)
    model: str | None = Field(
        None, description="any name; the reply carries it if it is one of the served model's, else its own"
    )
    tools: list[RequestTool] | None = None
    tool_choice: Literal["auto", "none", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = Field(None, description="counts where tool_choice asks for calls")
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    max_completion_tokens: int | None = Field(None, ge=1)
    max_tokens: int | None = Field(None, ge=1, description="more than the context has left means: all of it")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    n: int | None = Field(None, ge=1, le=MAX_N)

    chat_template_kwargs: dict[str, Any] | None = Field(None, description="counts more than the two below")
    enable_thinking: bool | None = Field(
        None, description="Qwen's switch; ignored by a model that never thinks"
    )
    reasoning_effort: str | None = Field(None, description="none turns thinking off")
    response_format: ResponseFormat | None = None
    return_token_ids: bool | None = Field(
        None, description="add prompt_token_ids, token_ids and token_logprobs to choices"
    )
    known_token_ids: list[TokenId] | None = Field(
        None,
        description="the conversation so far, as return_token_ids gave it: prompt and reply. The new prompt "
        "begins with exactly these, if messages do go on with them",
    )
    logit_bias: dict[str, Any] | None = Field(None, description="not supported yet: must be empty")


class ReplyFunction(BaseModel):
    name: str
    arguments: str = Field(description="always one complete, valid JSON object")


class ReplyCall(BaseModel):
    id: str
    type: Literal["function"]
    function: ReplyFunction


class ReplyMessage(BaseModel):
    role: Literal["assistant"]
    content: str | None
    reasoning_content: str | None = Field(
        None, description="what a thinking model thought before it answered"
    )
    tool_calls: list[ReplyCall] | None = None


class TopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int]


class ContentLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class Logprobs(BaseModel):
    content: list[ContentLogprob]


class Choice(BaseModel):
    index: int
    message: ReplyMessage
    logprobs: Logprobs | None
    finish_reason: Literal["stop", "length", "tool_calls", "abort"] = Field(
        description="abort: the server stopped before the reply was complete"
    )
    prompt_token_ids: list[int] | None = None
    token_ids: list[int] | None = Field(None, description="with the one that ended the turn")
    token_logprobs: list[float] | None = Field(None, description="one for each of token_ids")
    is_exact: bool | None = Field(None, description="false: an upstream kept some of the tokens back")
    weights_version: int | None = Field(None, description="of the weights that drew the first token")
    weights_updates: list[tuple[int, int]] | None = Field(
        None, description="at which token another version took over, and which"
    )


class PromptTokensDetails(BaseModel):
    cached_tokens: int


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class CompletionTokensDetails(BaseModel):
    reasoning_tokens: int


class ChatUsage(Usage):
    completion_tokens_details: CompletionTokensDetails


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: ChatUsage


class ServedModel(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int = Field(description="the longest prompt and reply together, in tokens")


class ModelList(BaseModel):
    object: Literal["list"]
    data: list[ServedModel]


class Health(BaseModel):
    status: Literal["ok"]
