"""The ways in which clients turn thinking on and off, as options of the chat template."""

from __future__ import annotations

from typing import Any


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
