"""A thinking model's reply in two: what it thinks, and what it says.

Qwen3 writes <think>, its thought, </think>, and then its answer. Where a reply stands depends on how its
prompt ends (`parser_after`): Qwen3-Thinking-2507's prompt has written <think> already, and the reply begins
inside; with `enable_thinking=False` the prompt holds a whole thought, an empty one, and the reply has none.
Only after a template that thinks (`ChatTemplate.thinks`) is a reply read like this: for any other model
<think> is a word among words.

**Newlines.** Those around the thought, and those between </think> and the answer, belong to the tags: Qwen3's
template strips them and writes its own. All other white space is the text's.

**What ends a thought** is the first </think>, and nothing else. Calls that are written inside stay thought:
models draft calls there before they make them. A thought that never closes, because a limit cut it or the
model ended its turn in it, is the whole reply; the answer is empty.
"""

from __future__ import annotations

from typing import Literal

OPEN, CLOSE = "<think>", "</think>"
MAX_SPACE = 100  # characters of white space before <think>


def parser_after(prompt: str) -> ReasoningParser | None:
    """What reads the reply to a prompt that ends with this text; None if the thought is over by then."""
    end = prompt.rstrip()
    return None if end.endswith(CLOSE) else ReasoningParser(starts_inside=end.endswith(OPEN))


class ReasoningParser:
    """Splits one reply, which arrives in pieces. How it is cut into pieces changes nothing.

    A thought leaves while it arrives, but for newlines, which may be its last, and for the beginning of what
    may be a tag.
    """

    def __init__(self, *, starts_inside: bool = False):
        self._stage: Literal["before", "thought", "behind", "answer"] = "before"
        self._starts_inside = starts_inside
        self._held = ""  # the beginning of what may be a tag, with the white space before it
        self._thought: list[str] = []  # what the piece that is being read has settled
        self._newlines: list[str] = []  # the thought's own, if more of it follows
        self._has_begun = False  # with a character that is no newline

    @property
    def inside(self) -> bool:
        """Does the reply stand inside its thought, as far as it has been read?"""
        return self._stage == "thought" or (self._stage == "before" and self._starts_inside)

    def feed(self, text: str) -> tuple[str, str]:
        """What the next piece settles: more of the thought, and behind its end more of the answer."""
        text, self._held = self._held + text, ""
        if self._stage == "before":
            text = self._open(text)
        if self._stage == "thought":
            text = self._think(text)
        if self._stage == "behind":
            text = self._close(text)
        return self._settled(), text

    def finish(self) -> tuple[str, str]:
        """What is left when the reply ends: the beginning of a tag that never came."""
        text, self._held = self._held, ""
        if not self.inside:
            return "", text
        self._say(text)
        return self._settled(), ""

    def _open(self, text: str) -> str:
        """Passes over <think>, also where the prompt has written it: some replies repeat it."""
        word = text.lstrip()
        if word.startswith(OPEN):
            self._stage = "thought"
            return word[len(OPEN) :]
        if OPEN.startswith(word) and len(text) <= MAX_SPACE:
            self._held = text
            return ""
        self._stage = "thought" if self._starts_inside else "answer"
        return text

    def _think(self, text: str) -> str:
        thought, close, rest = text.partition(CLOSE)
        if close:
            self._stage = "behind"
        else:
            held = next(size for size in range(len(CLOSE) - 1, -1, -1) if text.endswith(CLOSE[:size]))
            thought, self._held = text[: len(text) - held], text[len(text) - held :]
        self._say(thought)
        return rest

    def _say(self, text: str) -> None:
        if not self._has_begun:
            text = text.lstrip("\n")
        if words := text.rstrip("\n"):
            self._thought += [*self._newlines, words]
            self._newlines.clear()
            self._has_begun = True
        if self._has_begun:
            self._newlines.append(text[len(words) :])

    def _close(self, text: str) -> str:
        """Passes over what stands between the thought and the answer: newlines, and </think> once more."""
        while (text := text.lstrip("\n")).startswith(CLOSE):
            text = text[len(CLOSE) :]
        if CLOSE.startswith(text):
            self._held = text
            return ""
        self._stage = "answer"
        return text

    def _settled(self) -> str:
        thought = "".join(self._thought)
        self._thought.clear()
        return thought
