"""Options of the chat template, as clients send them: their own, and the ways to turn thinking on and off."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lathe.server.errors import BadRequest

RENDERED_BY_US = ("messages", "tools", "add_generation_prompt", "tokenizer", "self")


def template_options(
    given: Mapping[str, Any] | None, effort: str | None = None, enabled: bool | None = None
) -> dict[str, Any]:
    """chat_template_kwargs, which count most, over what `thinking_options` says. Raises BadRequest for an
    option that a request has fields of its own for."""
    for name in RENDERED_BY_US:
        if given and name in given:
            where = f"chat_template_kwargs.{name}"
            raise BadRequest(f"{where} can't be set: the request itself says it.", param=where)
    return thinking_options(effort, enabled) | dict(given or {})


def thinking_options(effort: str | None = None, enabled: bool | None = None) -> dict[str, Any]:
    """What a chat template is told of OpenAI's reasoning effort and of Qwen's own switch.

    The effort "none" means that the model shall not think, any other that it shall; a template that knows
    degrees sees which. The switch counts more. Nothing is said where the client said nothing, and a template
    that doesn't think ignores all of it.
    """
    options: dict[str, Any] = {}
    if effort is not None:
        options["enable_thinking"] = effort != "none"
        if effort != "none":
            options["reasoning_effort"] = effort
    if enabled is not None:
        options["enable_thinking"] = enabled
    return options
