"""A model's text as it arrives: the part that is not settled yet, and the prose around the calls.

The readers are generators that yield whenever they need more text. What a reader waits with is bounded
(tags, names and the space between them have limits below), so reading takes linear time however the text
is cut into pieces.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from typing import NamedTuple, TypeVar

T = TypeVar("T")
Wait = Generator[None, None, T]  # yields to ask for more text, returns T

MAX_SPACE = 100  # characters of white space between two tags that belong together
MAX_TAG = 160  # characters
SPACE = re.compile(rf"[ \t\r\n]{{0,{MAX_SPACE}}}")
TAG_START = re.compile(r"<(?=[/tfp]|\Z)")  # also a "<" that is the last character so far
PLAIN = re.compile(r"(?:[^<]++|<(?=[^tf]))++")  # no beginning of <tool_call> or <function=

FUNCTION = r"\w[\w.:/-]{0,127}"
PARAMETER = r"[^\s<>{}]{1,128}"
TAG = re.compile(
    rf"<(?:(?P<open>tool_call)>"
    rf"|function=(?P<function>{FUNCTION})(?:(?P<function_end>>)|(?=[ \t]{{0,8}}(?:\r?\n|<)))"
    rf"|parameter=(?P<parameter>{PARAMETER})(?:(?P<parameter_end>>)|(?=[ \t]{{0,8}}\r?\n))"
    # </parameter/>, </parameter1>, </parameter_function> and an unfinished </parameter: see sglang 27337
    rf"|/(?P<close>tool_call|function|parameter)[0-9]?/?>"
    rf"|/parameter_?(?P<both>function)>"
    rf"|/(?P<unfinished>parameter)(?=[ \t]{{0,8}}(?:\r?\n|<)))"
)
CLOSING = ("</tool_call>", "</function>", "</parameter>", "</parameterfunction>", "</parameter_function>")
UNFINISHED = re.compile(
    rf"<(?:function=(?:{FUNCTION})?|parameter=(?:{PARAMETER})?|/parameter)[ \t]{{0,8}}\r?"
    rf"|</(?:tool_call|function|parameter)[0-9]?/?"
)
CUT_FUNCTION = re.compile(rf"<function={FUNCTION}")

QUOTES = tuple("\"'“”„‘’«»‹›")

CODE_MARKS = re.compile(r"`++|~++|\n|[^`~\n]++")
INFO = re.compile(r"[\w+#.-]*\w[ \t\r]*")  # a fence's language


class Tag(NamedTuple):
    """A tag in the text, at characters `start` to `end` of the window.

    `kind` is "tool_call", "function" or "parameter" (with "/" in front for a closing one, "broken " for
    one without its ">"), "text" for anything else and "end" for the end of the text.
    """

    kind: str
    start: int
    end: int
    name: str = ""


class Window:
    """The text that has arrived and is not settled. Positions count from its beginning."""

    def __init__(self) -> None:
        self._text = ""
        self._start = 0
        self.ended = False
        self.end_of_turn = False
        self._taken: list[str] | None = None

    def feed(self, piece: str) -> None:
        self._text = self._text[self._start :] + piece
        self._start = 0

    def __len__(self) -> int:
        return len(self._text) - self._start

    def slice(self, start: int, end: int) -> str:
        return self._text[self._start + start : self._start + end]

    def take(self, count: int) -> str:
        """The next `count` characters, or what there is of them; they are settled."""
        text = self.slice(0, count)
        self._start += len(text)
        if self._taken is not None:
            self._taken.append(text)
        return text

    def remember(self) -> None:
        """Keep what is taken from here on."""
        self._taken = []

    def recall(self) -> str:
        """What was taken since then. It is kept no longer."""
        text = "".join(self._taken or ())
        self._taken = None
        return text

    def turn_ends(self) -> Wait[bool]:
        """Has the model ended its turn with no more than white space from here on? If so, that is taken."""
        ends = (yield from self.next_tag(0)).kind == "end" and self.end_of_turn
        if ends:
            self.take(len(self))
        return ends

    def match_length(self, pattern: re.Pattern[str], at: int = 0) -> int:
        match = pattern.match(self._text, self._start + at)
        return match.end() - match.start() if match else 0

    def find(self, pattern: re.Pattern[str], at: int = 0) -> int:
        """Where the pattern first matches; the window's length when nowhere."""
        match = pattern.search(self._text, self._start + at)
        return match.start() - self._start if match else len(self)

    def more(self, at: int = 0) -> Wait[bool]:
        """Is there a character at `at`? False at the end of the text."""
        while at >= len(self):
            if self.ended:
                return False
            yield
        return True

    def tag_at(self, at: int) -> Wait[Tag]:
        """The tag that begins at `at`."""
        while True:
            if match := TAG.match(self._text, self._start + at):
                return _tag(match, self._start)
            rest = self.slice(at, at + MAX_TAG)
            if not rest and self.ended:
                return Tag("end", at, at)
            if self.ended and CUT_FUNCTION.fullmatch(rest):
                return Tag("broken function", at, at + len(rest))
            if self.ended or len(rest) == MAX_TAG or not _may_become_tag(rest):
                return Tag("text", at, at + 1)
            yield

    def next_tag(self, at: int) -> Wait[Tag]:
        """The tag that begins at `at` or after white space there."""
        while True:
            space = self.match_length(SPACE, at)
            if at + space < len(self) or space == MAX_SPACE or self.ended:
                return (yield from self.tag_at(at + space))
            yield


def _tag(match: re.Match[str], base: int) -> Tag:
    start, end = match.start() - base, match.end() - base
    kind = match.lastgroup or ""
    if kind == "open":
        return Tag("tool_call", start, end)
    if kind in ("close", "both", "unfinished"):
        return Tag("/" + match[kind], start, end)
    name = kind.removesuffix("_end")
    return Tag(name if kind.endswith("_end") else f"broken {name}", start, end, match[name])


def _may_become_tag(text: str) -> bool:
    if len(text) > 1 and text[1] not in "tfp/":
        return False
    return (
        "<tool_call>".startswith(text)
        or any(tag.startswith(text) for tag in CLOSING)
        or "<function=".startswith(text)
        or "<parameter=".startswith(text)
        or UNFINISHED.fullmatch(text) is not None
    )


class Prose:
    """The text outside of calls, on its way to the user.

    Follows Markdown's code (CommonMark 4.5 and 6.1), so that an example of a call is not taken for one: a
    fence of three or more ` or ~ at any indent, also after a few words when only an info string follows,
    up to a line that ends with a fence as long; and inline code, which ends with its line, or with its
    paragraph once it has held a tag. An unclosed fence holds to the end of the text.

    White space at the border to a call is the call's. Where text stands on both sides, the space after
    the call stays, so that words don't run together.
    """

    def __init__(self, emit: Callable[[str], None]):
        self.emit = emit
        self.num_calls = 0
        self._spoke = False  # has anything but white space been sent?
        self._space: list[str] = []  # held until text follows
        self._before_call: list[str] = []  # the space before the last call
        self._line = ""  # the beginning of the current line
        self._last = ""  # character
        self._blank = True  # nothing but white space in the current line
        self._run = ""  # the marks (` or ~) that have just arrived
        self._run_first = False  # do they begin their line?
        self._fence = ""
        self._fence_closes = False  # a closing fence stands here, if nothing follows in its line
        self._tilde_fence = ""  # opens with the end of this line
        self._span = ""  # the marks that opened inline code
        self._span_first = False
        self._span_info = ""  # what follows those marks in their line
        self._span_holds_tag = False

    @property
    def line_begins(self) -> bool:
        """Does a line begin here? Up to three spaces count as its beginning; four are code in Markdown."""
        return len(self._line) < 4 and not self._line.strip(" ")

    @property
    def mid_line_call(self) -> bool:
        """May a call begin in this line, behind its words? Not in indented code, nor in quotation marks."""
        return not self._line.startswith(("    ", "\t")) and self._last not in QUOTES

    @property
    def in_code(self) -> bool:
        self._settle_run()
        return bool(self._fence and not self._fence_closes) or bool(self._span)

    def tag_in_code(self) -> None:
        self._span_holds_tag = bool(self._span)

    def call_begins(self) -> None:
        self.num_calls += 1
        self._before_call, self._space = self._space, []
        self._fence = self._span = ""
        self._span_holds_tag = False

    def call_ended(self) -> None:
        self._line = self._last = ""
        self._blank = True

    def call_was_text(self, text: str) -> None:
        """What was taken for a call since `call_begins` is text, and goes on as such."""
        self.num_calls -= 1
        self._space = self._before_call
        self.write(text)

    def write(self, text: str) -> None:
        self._follow_code(text)
        self._last = text[-1:]
        self._line = (self._line + text)[:5] if "\n" not in text else text[text.rfind("\n") + 1 :][:5]
        words = text.rstrip(" \t\r\n")
        if words:
            if self._spoke or not self.num_calls:
                words = "".join(self._space) + words
            self.emit(words if self._spoke or not self.num_calls else words.lstrip(" \t\r\n"))
            self._spoke = True
            self._space.clear()
        if space := text[len(text.rstrip(" \t\r\n")) :]:
            self._space.append(space)

    def finish(self) -> None:
        """A text without calls leaves exactly as it came."""
        if not self.num_calls and self._space:
            self.emit("".join(self._space))

    def _follow_code(self, text: str) -> None:
        for match in CODE_MARKS.finditer(text):
            mark = match.group()
            if mark[0] in "`~":
                if self._run and self._run[0] != mark[0]:
                    self._settle_run()
                if not self._run:
                    self._run_first = self._blank
                self._run = (self._run + mark)[:64]
                continue
            self._settle_run()
            if mark == "\n":
                self._end_line()
            elif mark.strip():
                self._blank = self._fence_closes = False
                self._span_info = (self._span_info + mark)[:32]

    def _settle_run(self) -> None:
        if not (run := self._run):
            return
        self._run = ""
        self._blank = False
        if self._fence:
            self._fence_closes = run.startswith(self._fence)
        elif run[0] == "~":
            if len(run) >= 3 and self._run_first:
                self._tilde_fence = run
        elif not self._span:
            self._span, self._span_first, self._span_info = run, self._run_first, ""
        elif self._span == run:
            self._span = ""
            self._span_holds_tag = False

    def _end_line(self) -> None:
        if self._fence:
            if self._fence_closes:
                self._fence = ""
        elif self._tilde_fence:
            self._fence = self._tilde_fence
        elif len(self._span) >= 3 and not self._span_holds_tag and self._opens_fence():
            self._fence, self._span = self._span, ""
        elif not self._span_holds_tag or self._blank:
            self._span = ""
            self._span_holds_tag = False
        self._blank = True
        self._fence_closes = False
        self._tilde_fence = ""

    def _opens_fence(self) -> bool:
        return self._span_first or INFO.fullmatch(self._span_info) is not None
