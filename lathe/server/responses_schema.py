"""The JSON of OpenAI's responses: what a client may send and what it gets back.

As in chat_schema.py: requests are checked against these models and unknown fields are ignored; replies are
built as plain dicts, and their models are here for the OpenAPI document.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from lathe.server.chat_schema import ContentLogprob
from lathe.server.content import ContentPart
from lathe.server.sampling import SamplingFields
from lathe.server.wire import Wire

ItemStatus = Literal["in_progress", "completed", "incomplete"]


class InputItem(Wire):
    """One item of the conversation. Its type says which fields it needs; without a type it is a message."""

    type: str | None = Field(
        None,
        description="message, function_call, function_call_output, reasoning, custom_tool_call, "
        "custom_tool_call_output, local_shell_call or local_shell_call_output",
    )
    id: str | None = None
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | list[ContentPart] | None = None
    summary: list[ContentPart] | None = None
    encrypted_content: str | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | dict[str, Any] | None = Field(None, description="JSON text, as the API returned it")
    input: str | None = None
    action: dict[str, Any] | None = None
    output: str | list[ContentPart] | None = None


class Echoed(Wire):
    """What the reply repeats as it was sent, with fields that nobody here reads."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class FunctionTool(Echoed):
    """A tool that the model may call. Tools of another type than function are skipped."""

    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = Field(None, description="a JSON schema of type object")
    strict: bool | None = Field(None, description="where calls are imposed: all of parameters, or a 400")


class AllowedTool(Echoed):
    name: str | None = None


class ToolChoice(Echoed):
    type: Literal["function", "allowed_tools"]
    name: str | None = Field(None, description="of the function to call")
    mode: Literal["auto", "required"] | None = Field(None, description="of allowed_tools")
    tools: list[AllowedTool] | None = None


class TextFormat(Echoed):
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = Field(None, description="a schema that can't be imposed whole is a 400")


class TextConfig(Echoed):
    format: TextFormat | None = None


class Reasoning(Wire):
    effort: str | None = None
    summary: str | None = None


class ResponsesRequest(SamplingFields):
    """Nothing is stored here, whatever `store` says: each request brings the whole conversation."""

    input: str | Annotated[list[InputItem], Field(min_length=1)]
    instructions: str | None = Field(None, description="a system message before the input")
    model: str | None = Field(None, description="any name; the reply carries one that the model goes by")
    tools: list[FunctionTool] | None = None
    tool_choice: Literal["auto", "none", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = Field(None, description="counts where tool_choice asks for calls")
    stream: bool | None = None
    max_output_tokens: int | None = Field(
        None, ge=1, description="more than the context has left means: all of it"
    )
    top_logprobs: int | None = Field(None, ge=0, le=20)
    include: list[str] | None = None
    text: TextConfig | None = None
    reasoning: Reasoning | None = Field(None, description="effort none turns thinking off")
    enable_thinking: bool | None = Field(
        None, description="Qwen's switch; ignored by a model that never thinks"
    )
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="counts more than the two above")
    metadata: dict[str, str] | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    store: bool | None = None

    previous_response_id: str | None = Field(None, description="nothing is stored: must be null")
    conversation: Any = Field(None, description="nothing is stored: must be null")
    prompt: Any = Field(None, description="nothing is stored: must be null")
    background: bool | None = Field(None, description="must not be true")


class OutputText(BaseModel):
    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[ContentLogprob]


class OutputMessage(BaseModel):
    type: Literal["message"]
    id: str
    status: ItemStatus
    role: Literal["assistant"]
    content: list[OutputText]


class FunctionCallItem(BaseModel):
    """A complete call. One that was cut is no item of the output."""

    type: Literal["function_call"]
    id: str
    status: ItemStatus
    call_id: str
    name: str
    arguments: str = Field(description="always one complete, valid JSON object")


class ReasoningText(BaseModel):
    type: Literal["reasoning_text"]
    text: str


class ReasoningItem(BaseModel):
    type: Literal["reasoning"]
    id: str
    status: ItemStatus
    summary: list[Any]
    content: list[ReasoningText]
    encrypted_content: str | None = Field(
        description="the content once more, for clients that send back only this; not secret"
    )


class InputTokensDetails(BaseModel):
    cached_tokens: int
    cache_write_tokens: int


class OutputTokensDetails(BaseModel):
    reasoning_tokens: int


class ResponseUsage(BaseModel):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponseError(BaseModel):
    code: str
    message: str


class IncompleteDetails(BaseModel):
    reason: Literal["max_output_tokens"]


class ResponseObject(BaseModel):
    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    model: str
    output: list[OutputMessage | FunctionCallItem | ReasoningItem]
    usage: ResponseUsage | None
    error: ResponseError | None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    tools: list[dict[str, Any]]
    tool_choice: str | dict[str, Any]
    parallel_tool_calls: bool
    max_output_tokens: int | None
    temperature: float
    top_p: float
    top_logprobs: int
    text: dict[str, Any]
    reasoning: dict[str, Any]
    metadata: dict[str, str]
    prompt_cache_key: str | None
    safety_identifier: str | None
    previous_response_id: None
    store: Literal[False]
    background: Literal[False]
    truncation: Literal["disabled"]
