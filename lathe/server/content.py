"""A message's content in OpenAI's dialects: a text, or parts of one."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from lathe.server.errors import BadRequest
from lathe.server.wire import Wire

TEXT_PARTS = ("text", "input_text", "output_text", "summary_text", "reasoning_text")

# A tool can't know what the model reads. A picture in its result is told to the model: a refusal would end
# the conversation for good, as every later request holds the picture again.
UNSEEN = "[A part of type {kind} was left out: this model reads text only.]"


class ContentPart(Wire):
    """One part of a message's content. This model reads text; pictures and sound are refused."""

    type: str = Field(description="text, input_text, output_text (or refusal, in an assistant's turn)")
    text: str | None = None
    refusal: str | None = None


def read_content(content: str | Sequence[ContentPart] | None, where: str) -> str:
    """Parts become lines of one text, as vLLM joins them. Raises BadRequest for a part that is no text."""
    if content is None or isinstance(content, str):
        return content or ""
    return "\n".join(read_part(part, f"{where}.{i}") for i, part in enumerate(content))


def read_part(part: ContentPart, where: str) -> str:
    if part.type in TEXT_PARTS and part.text is not None:
        return part.text
    if part.type == "refusal" and part.refusal is not None:
        return part.refusal
    if part.type in (*TEXT_PARTS, "refusal"):
        raise BadRequest(f"{where}: a part of type {part.type} needs a text.", param=where)
    message = f"{where}: this model reads text, and can't read a part of type {part.type!a}."
    raise BadRequest(message, param=where, code="unsupported_content")
