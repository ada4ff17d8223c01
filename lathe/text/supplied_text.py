"""Which characters of a rendered prompt came from outside.

A chat template mixes its own control tokens with text that users, tools and files supplied, and what comes
out is one string. To tell the two apart afterwards, every supplied character that occurs in any control token
is replaced before rendering by a *mark*: a character that occurs nowhere else in the conversation, one for
each. In the rendered text a control token made of plain characters can then only be the template's own; text
that holds a mark is not one, however the template cut, joined, replaced or escaped it. `Marks.plain` gives
the words back.

Templates also read what they are given: `role == "user"`, `type == "object"`, `"/no_think" in content`. A
`Supplied` string answers such questions by its plain text, and prints its marks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from lathe.errors import TemplateError

# Marks come from here on: ideographs that Python calls printable, so that repr() and json.dumps() leave them
# alone, and that no change of case touches.
FIRST_MARK = 0x20000

# repr() and json.dumps() write these in a way of their own, and trim looks for white space: they stay as they
# are. That is safe as long as a control token has any other character; SpecialToken refuses those that don't.
UNMARKED = frozenset("\"'\\")


class Marks:
    """The marks for one conversation, and the way back. `used` is all text that the template may print."""

    def __init__(self, control_tokens: Iterable[str], used: Iterable[str]):
        texts = sorted(filter(None, control_tokens), key=len, reverse=True)
        alphabet = {char for char in "".join(texts) if not char.isspace() and char not in UNMARKED}
        free = _free_characters([*used, *texts])
        to_mark = {char: next(free) for char in sorted(alphabet)}
        self._breaker = next(free)
        self._to_mark = str.maketrans(to_mark)
        self._to_plain = str.maketrans({mark: char for char, mark in to_mark.items()} | {self._breaker: ""})
        self._begins = re.compile(f"(?s)(?=(?:{'|'.join(map(re.escape, texts)) or '(?!)'})).")

    def mark(self, text: str) -> str:
        return text.translate(self._to_mark)

    def plain(self, marked: str) -> str:
        """The text without its marks."""
        return marked.translate(self._to_plain)

    def behind(self, marked: str, beginning: str) -> str | None:
        """What follows in a marked text behind its beginning, in which the same words may be marked
        otherwise. None where it begins with other words."""
        plain = self.plain(beginning)
        if not self.plain(marked).startswith(plain):
            return None
        places = (place for place, char in enumerate(marked) if char != self._breaker)
        return marked[next(islice(places, len(plain), None), len(marked)) :]

    def supply(self, value: Any) -> Any:
        """A JSON value for the template: its strings are Supplied, keys too.

        A breaker after the first character of each control token keeps the template from taking supplied text
        for structure: a user's `<tool_response>` is no tool's response.
        """
        if isinstance(value, str):
            return Supplied(self._begins.sub(lambda match: match.group() + self._breaker, value), self)
        if isinstance(value, Mapping):
            return {self.supply(key): self.supply(item) for key, item in value.items()}
        if isinstance(value, Sequence):
            return [self.supply(item) for item in value]
        return value


def _free_characters(used: Iterable[str]) -> Iterator[str]:
    """Characters that occur in none of the texts."""
    taken = {char for text in used for char in set(text) if ord(char) >= FIRST_MARK}
    for code in range(FIRST_MARK, 0x110000):
        if chr(code).isprintable() and chr(code) not in taken:
            yield chr(code)
    raise TemplateError(
        "The conversation uses nearly all of Unicode's ideographs, so that none is left as a mark."
    )


def strings_in(value: Any) -> Iterator[str]:
    """All strings in a JSON value, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from strings_in(key)
            yield from strings_in(item)
    elif isinstance(value, Sequence):
        for item in value:
            yield from strings_in(item)


def _by_text(name: str) -> Callable[..., Any]:
    """A method of str that works on the plain text. Strings in its result are Supplied again."""
    method = getattr(str, name)

    def by_text(self: Supplied, *args: Any, **kwargs: Any) -> Any:
        return _again(method(self._text, *map(_text_of, args), **kwargs), self._marks)

    return by_text


def _text_of(value: Any) -> Any:
    if isinstance(value, tuple):  # as startswith takes them
        return tuple(map(_text_of, value))
    return value._text if isinstance(value, Supplied) else value


def _again(value: Any, marks: Marks) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_again(item, marks) for item in value)
    return Supplied(value, marks) if isinstance(value, str) else value


COMPARISONS = ("__contains__", "__eq__", "__ge__", "__gt__", "__hash__", "__le__", "__lt__", "__ne__")
QUESTIONS = (
    *(
        "count",
        "endswith",
        "find",
        "index",
        "isalnum",
        "isalpha",
        "isascii",
        "isdecimal",
        "isdigit",
        "islower",
    ),
    *("isnumeric", "isprintable", "isspace", "istitle", "isupper", "rfind", "rindex", "startswith"),
)
CHANGES = (
    *(
        "__getitem__",
        "capitalize",
        "casefold",
        "center",
        "expandtabs",
        "ljust",
        "lower",
        "lstrip",
        "partition",
    ),
    *(
        "removeprefix",
        "removesuffix",
        "replace",
        "rjust",
        "rpartition",
        "rsplit",
        "rstrip",
        "split",
        "splitlines",
    ),
    *("strip", "swapcase", "title", "upper", "zfill"),
)


def _answers_by_text(supplied: type[Supplied]) -> type[Supplied]:
    for name in (*COMPARISONS, *QUESTIONS, *CHANGES):
        setattr(supplied, name, _by_text(name))
    return supplied


@_answers_by_text
class Supplied(str):
    """A string from outside: it prints its marks, and behaves by its text.

    What its methods cut or change is Supplied again. Joined to other text it becomes an ordinary string with
    marks in it, which a template can still trim and print, but no longer compare.
    """

    _text: str  # the underscores keep them from templates
    _marks: Marks

    def __new__(cls, text: str, marks: Marks) -> Supplied:
        self = super().__new__(cls, marks.mark(text))
        self._text, self._marks = text, marks
        return self

    def __str__(self) -> Supplied:  # some filters begin with str(value)
        return self
