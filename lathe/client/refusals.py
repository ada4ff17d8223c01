"""What a server says when it refuses, as the error that it means."""

from __future__ import annotations

import json
import re
from typing import Any

from lathe.errors import InvalidRequest, LatheError, ModelNotFound, PromptTooLong, UpstreamError, UserError

# OpenAI, vLLM and Lathe; llama.cpp; Ollama, SGLang and others.
TOO_LONG = re.compile(
    r"context_length_exceeded|exceed_context_size|maximum context length|context (?:length|window|size)"
    r".{0,40}exceed|exceed.{0,60}context|prompt is too long|input.{0,30}too long|longer than the model's "
    r"context",
    re.IGNORECASE,
)
RETRIED = (408, 409, 425, 429, 500, 502, 503, 504, 529)


class Busy(Exception):
    """A refusal that may pass. `wait_s` is how long the server asks to wait, if it says so."""

    def __init__(self, error: LatheError, wait_s: float | None):
        super().__init__(str(error))
        self.error = error
        self.wait_s = wait_s


def refusal(status: int, text: str, *, url: str, model: str | None, max_context: int | None) -> LatheError:
    """The error that a status and its body mean."""
    said = words(text)
    if status in (400, 413, 422, 500) and TOO_LONG.search(text):
        return too_long(text, max_context)
    if status in (401, 403):
        return UserError(f"{url} refuses the key ({status}): {said} Give the right one with api_key.")
    if status == 404:
        return ModelNotFound(f"{url} has no model {model!r}, or no chat completions (404): {said}")
    if 400 <= status < 500 and status not in RETRIED:
        return InvalidRequest(f"{url} refuses the request ({status}): {said}")
    return UpstreamError(f"{url} failed ({status}): {said}")


def too_long(text: str, max_context: int | None) -> PromptTooLong:
    """With the numbers that the server told, 0 where it told none."""
    limit = _number(r"(?:context length|context size|context window|n_ctx\"?)\D{0,20}?(\d[\d,]*)", text)
    asked = _number(
        r"(?:prompt has|requested|n_prompt_tokens\"?:|resulted in|prompt contains)\D{0,12}(\d[\d,]*)", text
    )
    return PromptTooLong(asked or 0, limit or max_context or 0)


def _number(pattern: str, text: str) -> int | None:
    found = re.search(pattern, text, re.IGNORECASE)
    return int(found.group(1).replace(",", "")) if found else None


def error_of(chunk: Any, *, url: str, max_context: int | None) -> LatheError | None:
    """The error that a stream's event holds; None when it holds none."""
    error = chunk.get("error") if isinstance(chunk, dict) else None
    if not error:
        return None
    text = json.dumps(error)
    if TOO_LONG.search(text):
        return too_long(text, max_context)
    return UpstreamError(f"{url} failed in the middle of its reply: {words(json.dumps(chunk))}")


def words(text: str) -> str:
    """What an error's body says to people."""
    try:
        data = json.loads(text)
    except ValueError:
        data = text.strip() or "it gave no reason."
    if isinstance(data, dict):
        data = data.get("error") or data.get("detail") or data.get("message") or data
    if isinstance(data, dict):
        data = data.get("message") or data
    said = data if isinstance(data, str) else json.dumps(data)
    return said if len(said) <= 500 else f"{said[:500]}…"
