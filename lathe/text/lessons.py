"""A written conversation as the tokens that it would have been, had the model said the assistant's part.

The prompt up to a reply is encoded as the engine encodes it, and the reply on its own, up to the token that
ends the turn: no token reaches over the border between what was read and what was said.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from lathe.errors import TemplateError
from lathe.text.chat_template import ChatTemplate, Marked
from lathe.text.tokenizer import Tokenizer
from lathe.types import Message, Tool


class Lesson(NamedTuple):
    """Ids, and which of them the assistant says: its words, its calls and the end of its turn."""

    token_ids: list[int]
    is_said: list[bool]


def lessons(
    template: ChatTemplate,
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    tools: Sequence[Tool] = (),
    *,
    end_token_ids: Collection[int],
    **template_kwargs: Any,
) -> list[Lesson]:
    """Every token of the assistant's once, behind the prompt that the template gives there.

    One lesson, unless the template changes earlier turns (some drop old reasoning): then another one begins
    where it does. A conversation without an assistant's turn has none. Raises TemplateError for a template
    whose turns don't follow from its prompts, or don't end.
    """
    marked = Marked(template, tokenizer, messages, tools, **template_kwargs)
    ends = [text for text, token_id in tokenizer.special_tokens.items() if token_id in end_token_ids]
    found: list[Lesson] = []
    written = ""  # by the last lesson
    for place, message in enumerate(messages):
        if message.role != "assistant":
            continue
        prompt = marked.render(place, add_generation_prompt=True)
        # a role, say, is a word of the template's in a prompt, and a supplied one in a turn
        said = marked.behind(marked.render(place + 1, add_generation_prompt=False), prompt)
        if said is None:
            raise TemplateError(f"turn {place + 1} does not begin as the template's own prompt for it does")
        said = said[: max((said.rfind(end) + len(end) for end in ends if end in said), default=0)]
        if not said:
            raise TemplateError(f"turn {place + 1} has no end: the template writes none of {', '.join(ends)}")
        read = marked.behind(prompt, written) if found else None
        if read is None:
            found.append(Lesson([], []))
            read = prompt
        for text, is_said in ((read, False), (said, True)):
            ids = marked.encode(text)
            found[-1].token_ids.extend(ids)
            found[-1].is_said.extend([is_said] * len(ids))
        written = prompt + said
    return found
