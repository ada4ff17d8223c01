"""The JSON of Anthropic's messages: what a client may send and what it gets back.

Requests are checked against these models; unknown fields (`cache_control`, `metadata`, `context_management`
and whatever comes next) are accepted and ignored. A block's fields depend on its type, and blocks of types
that this server skips may hold anything, so that messages.py says which a block lacks. Replies are built as
plain dicts there; their models are here for the OpenAPI document, and the tests hold the replies against
them.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from lathe.server.sampling import SamplingFields
from lathe.server.wire import Wire


class TextBlock(Wire):
    """A block of a system prompt or of a tool's result."""

    type: str = Field(description="text (or tool_reference, in a tool's result)")
    text: str | None = None
    tool_name: str | None = Field(None, description="of a tool_reference")


class ContentBlock(TextBlock):
    """A block of a message. What only Anthropic's own servers can read or run is skipped."""

    type: str = Field(description="text, tool_use, tool_result, thinking or redacted_thinking")
    thinking: str | None = None
    id: str | None = Field(None, min_length=1, description="of a tool_use")
    name: str | None = Field(None, min_length=1, description="of a tool_use")
    input: dict[str, Any] | None = Field(None, description="of a tool_use")
    tool_use_id: str | None = Field(None, min_length=1, description="of a tool_result")
    content: str | list[TextBlock] | dict[str, Any] | None = Field(None, description="of a tool_result")
    is_error: bool | None = Field(None, description="of a tool_result")


class MessageParam(Wire):
    role: Literal["user", "assistant", "system"]
    content: str | list[ContentBlock]


class MessagesTool(Wire):
    """A tool that the model may call. Those with a type other than custom run on Anthropic's servers, or
    need a model that was trained on them, and are skipped."""

    type: str | None = None
    name: str | None = Field(None, min_length=1)
    description: str | None = None
    input_schema: dict[str, Any] | None = Field(None, description="a JSON schema of type object")
    strict: bool | None = Field(None, description="where calls are imposed: all of input_schema, or a 400")


class MessagesToolChoice(Wire):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = Field(None, description="of the tool to call, where type is tool")
    disable_parallel_tool_use: bool | None = Field(None, description="counts with the types any and tool")


class Thinking(Wire):
    type: Literal["enabled", "disabled", "adaptive", "between_tools"]


class OutputFormat(Wire):
    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Wire):
    format: OutputFormat | None = None


class Prompt(Wire):
    """What the model reads."""

    messages: list[MessageParam] = Field(min_length=1)
    model: str | None = Field(
        None, description="any name; the reply carries it if it is one of the served model's, else its own"
    )
    system: str | list[TextBlock] | None = None
    tools: list[MessagesTool] | None = None
    tool_choice: MessagesToolChoice | None = None
    thinking: Thinking | None = Field(None, description="ignored by a model that never thinks")
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="counts more than thinking")


class CountRequest(Prompt):
    """The same prompt, to be counted."""


class MessagesRequest(Prompt, SamplingFields):
    """Sampling parameters that are left out, or null, take the checkpoint's own defaults."""

    max_tokens: int | None = Field(None, ge=1, description="more than the context has left means: all of it")
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    output_config: OutputConfig | None = None


class ReplyText(BaseModel):
    type: Literal["text"]
    text: str


class ReplyThinking(BaseModel):
    type: Literal["thinking"]
    thinking: str
    signature: str = Field(description="empty: the text is the model's own, and needs no proof")


class ReplyToolUse(BaseModel):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


class OutputTokensDetails(BaseModel):
    thinking_tokens: int


class MessagesUsage(BaseModel):
    """The prompt's tokens are those read and those that were in the cache, together."""

    input_tokens: int
    cache_creation_input_tokens: Literal[0] = Field(description="the cache keeps what it can; nobody pays")
    cache_read_input_tokens: int
    output_tokens: int
    output_tokens_details: OutputTokensDetails


class MessagesReply(BaseModel):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[ReplyText | ReplyThinking | ReplyToolUse]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]
    stop_sequence: str | None
    usage: MessagesUsage


class TokenCount(BaseModel):
    input_tokens: int


class MessagesError(BaseModel):
    type: str
    message: str


class MessagesErrorReply(BaseModel):
    type: Literal["error"]
    error: MessagesError
