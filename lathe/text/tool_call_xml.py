"""Qwen3-Coder's calls: <tool_call><function=NAME><parameter=NAME>VALUE</parameter></function></tool_call>."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from lathe.text.tool_arguments import Schema
from lathe.text.tool_call_events import CallWriter, Event
from lathe.text.tool_call_text import PLAIN, TAG_START, Prose, Tag, Wait, Window

PARAMETERS = ("parameter", "broken parameter")


class XmlReader:
    """Reads a whole reply. `schemas` maps the names of the tools on offer to their parameters' schemas."""

    def __init__(
        self, window: Window, prose: Prose, schemas: Mapping[str, Schema], emit: Callable[[Event], None]
    ):
        self.window, self.prose, self.schemas, self.emit = window, prose, schemas, emit
        self._num_calls = 0

    def read(self) -> Wait[None]:
        while (yield from self.window.more()):
            if length := self.window.match_length(PLAIN):
                self.prose.write(self.window.take(length))
                continue
            wrapped, head = yield from self._opening()
            if head.kind == "function":
                yield from self._read_block(head, wrapped)
            elif head.kind == "broken function":
                yield from self._drop_block(head)
            else:
                self.prose.write(self.window.take(1))
        self.prose.finish()

    def _opening(self) -> Wait[tuple[bool, Tag]]:
        """Whether the call that begins here has its wrapper, and its header; a tag "text" if none begins.

        A model that explains the format writes tags, too. A call is <tool_call> with a header behind it, or
        a header on its own when it names a tool on offer; and what follows must go on like a call.
        """
        first = head = yield from self.window.tag_at(0)
        nothing = False, Tag("text", 0, 1)
        if first.kind not in ("tool_call", "function", "broken function"):
            return nothing
        if self.prose.in_code:
            self.prose.tag_in_code()
            return nothing
        if wrapped := first.kind == "tool_call":
            head = yield from self.window.next_tag(first.end)
        elif head.name not in self.schemas:
            return nothing
        if head.kind == "broken function" and wrapped:
            return wrapped, head
        if head.kind != "function":
            return nothing
        after = yield from self.window.next_tag(head.end)
        if wrapped or self.prose.line_begins:
            goes_on = after.kind in (*PARAMETERS, "/function", "/tool_call")
            # The end says nothing yet about a reply that was cut. A turn that ends here has named a header.
            goes_on = goes_on or (after.kind == "end" and (wrapped or not self.window.end_of_turn))
        else:
            goes_on = self.prose.mid_line_call and (yield from self._goes_on_in_line(head, after))
        return (wrapped, head) if goes_on else nothing

    def _goes_on_in_line(self, head: Tag, after: Tag) -> Wait[bool]:
        """Does a header behind words begin a call? Words in which it is only mentioned are likely there.

        Its parameter is one that the tool declares, and follows at once or in the next line. Without any,
        nothing may follow the call in its line.
        """
        space = self.window.slice(head.end, after.start)
        if space and "\n" not in space:
            return False
        if after.kind == "parameter":
            declared = self.schemas[head.name].properties
            return not declared or after.name in declared
        if after.kind != "/function":
            return False
        behind = yield from self.window.next_tag(after.end)
        if "\n" in self.window.slice(after.end, behind.start):
            return True
        if behind.kind == "end":
            return self.window.end_of_turn
        return behind.kind in ("/tool_call", "tool_call", "function")

    def _read_block(self, head: Tag, wrapped: bool) -> Wait[None]:
        """One <tool_call> block, of one call or more."""
        while True:
            self.window.remember()
            self.window.take(head.end)
            self.prose.call_begins()
            offered = head.name in self.schemas
            schema = self.schemas[head.name] if offered else Schema({})
            call = CallWriter(self._num_calls, head.name, schema, self.emit)
            self._num_calls += 1
            closed = yield from _CallReader(self.window, call, wrapped).read()
            turn_ends = not closed and (yield from self.window.turn_ends())
            taken = self.window.recall()
            if closed or (turn_ends and offered and call.is_whole):
                call.finish()
            else:
                call.cut()
                if turn_ends:
                    self.prose.call_was_text(taken)
                    return
            self.prose.call_ended()
            head, closed = yield from self._pass_closers()
            if closed or head.kind != "function" or not (wrapped or head.name in self.schemas):
                return

    def _pass_closers(self) -> Wait[tuple[Tag, bool]]:
        """The tag behind all closing tags that follow a call, also those that close nothing; and whether the
        wrapper's was among them.
        """
        closed = False
        while (tag := (yield from self.window.next_tag(0))).kind in ("/tool_call", "/function"):
            closed |= tag.kind == "/tool_call"
            self.window.take(tag.end)
        return tag, closed

    def _drop_block(self, head: Tag) -> Wait[None]:
        """Passes over a call whose header has no ">": nobody knows what its name is, and no user wants it."""
        self.window.remember()
        self.window.take(head.end)
        self.prose.call_begins()
        while (tag := (yield from self.window.tag_at(0))).kind not in ("tool_call", "/tool_call", "end"):
            self.window.take(tag.end if tag.kind != "text" else max(1, self.window.find(TAG_START, 1)))
        if tag.kind == "/tool_call":
            self.window.take(tag.end)
        elif tag.kind == "end" and self.window.end_of_turn:
            self.prose.call_was_text(self.window.recall())
        self.prose.call_ended()


class _CallReader:
    """Reads one call, from behind its header up to and with its </function>."""

    def __init__(self, window: Window, call: CallWriter, wrapped: bool):
        self.window, self.call, self.wrapped = window, call, wrapped
        self.name = ""  # of the parameter that is being read
        self.crlf = False  # did its value open with "\r\n"?
        self.inline = False  # or in its tag's line? Then its end may stand in a line, too.
        self.depth = 0  # calls that the value quotes and that are still open

    def read(self) -> Wait[bool]:
        """True if the call was closed."""
        while True:
            tag = yield from self.window.next_tag(0)
            if tag.kind in ("end", "tool_call", "function"):
                return False
            if tag.kind == "/tool_call":
                return True
            self.window.take(tag.end if tag.kind != "text" else max(1, self.window.find(TAG_START, tag.end)))
            if tag.kind == "/function":
                return True
            if tag.kind == "parameter":
                self.call.begin(tag.name)
                if not (yield from self._read_value(tag.name)):
                    return False
                self.call.end()

    def _read_value(self, name: str) -> Wait[bool]:
        """Sends the value on as it arrives. True when it is closed, False when the text ends before that."""
        self.name, self.depth = name, 0
        line_begins = yield from self._open_value()
        while (yield from self.window.more()):
            at = self.window.find(TAG_START)
            newline = self._newline_before(at)  # may be the one that belongs to the closing tag
            self.call.text(self.window.take(at - newline))
            line_begins = newline > 0 or (line_begins and at == 0)
            if len(self.window) == newline:
                if not (yield from self.window.more(newline)):
                    break
                continue
            closed, length = yield from self._settle(newline, line_begins)
            text = self.window.take(length)
            if closed:
                return True
            self.call.text(text)
            line_begins = False
        return False

    def _open_value(self) -> Wait[bool]:
        """Passes over the newline behind the parameter's tag. True if there was one."""
        self.crlf = False
        yield from self.window.more()
        if self.window.slice(0, 1) == "\r":
            yield from self.window.more(1)
            self.crlf = self.window.slice(0, 2) == "\r\n"
        newline = 2 if self.crlf else int(self.window.slice(0, 1) == "\n")
        self.window.take(newline)
        self.inline = not newline
        return newline > 0

    def _newline_before(self, at: int) -> int:
        """The length of the newline that ends at `at`. A "\r" counts only when the value opened with one."""
        if self.crlf and self.window.slice(max(0, at - 2), at) == "\r\n":
            return 2
        if self.window.slice(max(0, at - 1), at) == "\n":
            return 1
        return int(self.crlf and at == len(self.window) and self.window.slice(max(0, at - 1), at) == "\r")

    def _settle(self, at: int, line_begins: bool) -> Wait[tuple[bool, int]]:
        """Whether the tag at `at` ends the value; and where the call, or else the value, goes on."""
        tag = yield from self.window.tag_at(at)
        if tag.kind in ("tool_call", "function"):
            return False, (yield from self._quoted_call(tag, line_begins))
        if self.depth:
            return (yield from self._settle_in_quote(tag))
        if tag.kind == "/parameter":
            return (yield from self._ends_parameter(tag, line_begins)), tag.end
        ends = yield from self._ends_without_tag(tag, line_begins)
        return ends, (tag.start if ends else tag.end)

    def _ends_parameter(self, tag: Tag, line_begins: bool) -> Wait[bool]:
        """Is this </parameter> followed by what follows a parameter?"""
        after = yield from self.window.next_tag(tag.end)
        laid_out = line_begins or "\n" in self.window.slice(tag.end, after.start)
        if after.kind == "end":
            return True
        if not (laid_out or self.inline):
            return False
        if after.kind in PARAMETERS:
            return laid_out or self._may_follow(after.name)
        if after.kind not in ("/function", "/tool_call"):
            return False
        last, behind = yield from self._after_closing(after)
        if behind.kind == "/parameter":  # all this stands in a value that goes on
            return False
        block_ends = last.kind == "/tool_call" or behind.kind in ("end", "tool_call", "function")
        return laid_out or block_ends or not self.wrapped

    def _ends_without_tag(self, tag: Tag, line_begins: bool) -> Wait[bool]:
        """Is this where the value ends, though its </parameter> is missing?"""
        if tag.kind == "parameter" and line_begins and tag.name in self.call.schema.properties:
            yield from self.window.more(tag.end)
            own_line = self.window.slice(tag.end, tag.end + 1) in ("\n", "\r")
            return (own_line or self.inline) and self._may_follow(tag.name)
        if tag.kind not in ("/function", "/tool_call") or not (line_begins or self.inline):
            return False
        last, behind = yield from self._after_closing(tag)
        if behind.kind == "end" and (line_begins or self.window.end_of_turn):
            return True
        return tag.kind == "/function" and last.kind == "/tool_call" and behind.kind != "/parameter"

    def _after_closing(self, tag: Tag) -> Wait[tuple[Tag, Tag]]:
        """The last of the closing tags </function></tool_call> from `tag` on, and the tag behind it."""
        after = yield from self.window.next_tag(tag.end)
        if tag.kind == "/function" and after.kind == "/tool_call":
            return after, (yield from self.window.next_tag(after.end))
        return tag, after

    def _may_follow(self, name: str) -> bool:
        declared = self.call.schema.properties
        return name != self.name and name not in self.call.arguments and (not declared or name in declared)

    def _quoted_call(self, tag: Tag, line_begins: bool) -> Wait[int]:
        """Keeps account of a call that the value quotes, so that its closing tags don't end the value.

        Returns how far the text is certainly value.
        """
        head = tag if tag.kind == "function" else (yield from self.window.next_tag(tag.end))
        if head.kind != "function" or not (tag.kind == "tool_call" or line_begins or self.inline):
            return tag.end
        after = yield from self.window.next_tag(head.end)
        if after.kind == "/function":  # a call without parameters
            last = yield from self.window.next_tag(after.end)
            return last.end if last.kind == "/tool_call" else after.end
        if after.kind == "parameter":
            yield from self.window.more(after.end)
            # only a call that is laid out in lines has closing tags that could end this value
            if self.inline or "\n" in self.window.slice(head.end, after.end + 1):
                self.depth += 1
                return after.end
        return tag.end

    def _settle_in_quote(self, tag: Tag) -> Wait[tuple[bool, int]]:
        closing = tag
        if tag.kind == "/parameter":
            closing = yield from self.window.next_tag(tag.end)
        if closing.kind != "/function":
            return False, tag.end
        last, behind = yield from self._after_closing(closing)
        if behind.kind == "end" and self.window.end_of_turn:
            return True, tag.end if tag.kind == "/parameter" else tag.start
        self.depth -= 1
        return False, last.end
