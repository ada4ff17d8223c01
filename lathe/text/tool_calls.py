"""Tool calls, both directions: written as the chat templates write them, and read while a model speaks.

Two dialects. "qwen3_coder" (Qwen3-Coder's XML, which is not XML: nothing is escaped) and "qwen3" (JSON):

    <tool_call>                      <tool_call>
    <function=read_file>             {"name": "read_file", "arguments": {"path": "a.py"}}
    <parameter=path>                 </tool_call>
    a.py
    </parameter>
    </function>
    </tool_call>

**What is a call.** <tool_call> with a header behind it; or, since models forget the wrapper, a header alone
that names a tool on offer: at the beginning of a line, or behind words when it goes on at once or in the next
line with a parameter that the tool declares, or with </function> and then nothing more in the line. A tool
that is not on offer is still reported when it is wrapped, so that someone can tell the model. In JSON, where
an object says less, a call without its wrapper must be all of the turn. Everything else is text and goes on
as text: prose that names a tag, Markdown's code, what is quoted, `<function={{ name }}>`. A call whose header
lacks its ">" is dropped alone. Closing tags that follow a call without need are dropped, too.

**Where a value ends.** A value may hold any tag. </parameter> ends it only where the call goes on behind
it: before <parameter=...>, </function> or </tool_call>, and laid out in lines when the value is. A whole
call that a value quotes is part of the value. One newline on either side belongs to the tags ("\\r\\n" only
if the value opened with it); every other character is the value's. Where </parameter> is missing, a line that
begins with </function></tool_call> ends the value, and so does a line <parameter=NAME> with a parameter
that the tool declares and the call does not have yet.

**What the format can't carry.** `parse(render(calls))` is `calls`, except for string values which hold

- "</parameter>" at the beginning of a line or before a newline (blank but for white space), and then
  "<parameter=NAME", "</function>" or "</tool_call>", unless "</parameter>" or the value's end follows;
- a line that begins with "</function>" and then, after white space, "</tool_call>", likewise;
- a line "<parameter=NAME>" by itself, where NAME is declared by the tool and has no value yet;
- the first lines of a call, <function=NAME> <parameter=NAME>, at the beginning of a line or behind
  <tool_call>, without the </function> of that call: it seems to go on. (It is carried when
  `end_of_turn` is told and no other call follows.)

All this holds for the tags as models misspell them: </parameter/>, </parameter1>, </parameter without its
">" before a newline or "<", and </parameter_function> for </function>.

White space here is at most 100 of " \\t\\r\\n". Names hold no white space and none of "<>{}", functions'
names only letters, digits and "_.:/-", at most 128 characters. Text for a type other than string is what
the type makes of it, and so is "null" or "None" where null is allowed. JSON itself can't tell a high
surrogate that is followed by a low one from the character they stand for.

**A reply that ends inside a call.** A call is complete once its </function> or </tool_call> was seen, in JSON
its last brace. Until then its pieces are valid JSON when they are joined, but no CallFinished follows, and no
half call is ever run. What becomes of it depends on who ended the reply:

- a limit or a stop string: the half call is dropped. `finish_reason` is "length", or "stop" for the string.
- the model (`end_of_turn`): if no value is open, something was said, and nothing that the tool requires is
  missing, only the closing tags were forgotten, and the call is complete. Else it is no call but text, and
  all of it goes on as content. The pieces of its arguments have left already; a stream can't take them back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from lathe.text.messages import ToolLike, to_tools
from lathe.text.tool_arguments import Schema, json_text, parse_arguments
from lathe.text.tool_call_events import (
    ArgumentText,
    CallFinished,
    CallStarted,
    Content,
    Event,
    Reasoning,
    join_neighbours,
)
from lathe.text.tool_call_json import JsonReader
from lathe.text.tool_call_text import Prose, Window
from lathe.text.tool_call_xml import XmlReader
from lathe.types import Message, ToolCall

__all__ = [
    "ArgumentText",
    "CallFinished",
    "CallStarted",
    "Content",
    "Dialect",
    "Event",
    "Reasoning",
    "ToolCallParser",
    "parse",
    "parse_arguments",
    "render",
]

Dialect = Literal["qwen3_coder", "qwen3"]
READERS: Mapping[str, type[XmlReader] | type[JsonReader]] = {"qwen3_coder": XmlReader, "qwen3": JsonReader}


def render(calls: Iterable[ToolCall], dialect: Dialect = "qwen3_coder") -> str:
    """Calls as the model's own chat template writes them, one below the other."""
    _reader(dialect)
    return "\n".join(_render_xml(call) if dialect == "qwen3_coder" else _render_json(call) for call in calls)


def parse(
    text: str,
    tools: Sequence[ToolLike] | None = None,
    dialect: Dialect = "qwen3_coder",
    *,
    end_of_turn: bool = False,
) -> Message:
    """A whole reply as an assistant's message with its content and its complete calls."""
    parser = ToolCallParser(tools, dialect)
    events = parser.feed(text) + parser.finish(end_of_turn=end_of_turn)
    content = "".join(event.text for event in events if isinstance(event, Content))
    calls = tuple(event.call for event in events if isinstance(event, CallFinished))
    return Message("assistant", content, calls)


class ToolCallParser:
    """Reads one reply in pieces. How the text is cut into pieces changes nothing about what is read.

    Without tools, calls are read all the same (if they are wrapped), with strings as values. Text leaves as
    soon as it can't be the beginning of a tag; a string argument while it arrives, other values when they
    are whole.
    """

    def __init__(self, tools: Sequence[ToolLike] | None = None, dialect: Dialect = "qwen3_coder"):
        self._events: list[Event] = []
        self._window = Window()
        prose = Prose(lambda text: self._events.append(Content(text)))
        schemas = {tool.name: Schema(tool.parameters) for tool in to_tools(tools)}
        self._reading = _reader(dialect)(self._window, prose, schemas, self._events.append).read()

    def feed(self, text: str) -> list[Event]:
        """What the next piece of text settles."""
        self._window.feed(text)
        next(self._reading, None)
        events = join_neighbours(self._events) if len(self._events) > 1 else self._events.copy()
        self._events.clear()
        return events

    def finish(self, *, end_of_turn: bool = False) -> list[Event]:
        """What is left when the text ends.

        Say `end_of_turn` when the model ended by itself (an end-of-sequence token, not a limit): then the
        last closing tags close the call, also if its value quotes the beginning of another one, and closing
        tags may be missing.
        """
        self._window.ended = True
        self._window.end_of_turn = end_of_turn
        return self.feed("")


def _reader(dialect: str) -> type[XmlReader] | type[JsonReader]:
    if dialect not in READERS:
        raise ValueError(f"{dialect!r} is no dialect of tool calls; there are {', '.join(READERS)}")
    return READERS[dialect]


def _render_xml(call: ToolCall) -> str:
    parameters = "".join(
        f"<parameter={name}>\n{_value_text(value)}\n</parameter>\n" for name, value in call.arguments.items()
    )
    return f"<tool_call>\n<function={call.name}>\n{parameters}</function>\n</tool_call>"


def _value_text(value: Any) -> str:
    """Objects and lists as JSON, anything else as Jinja's `string` filter shows it: True, None, 1.5."""
    return json_text(value) if isinstance(value, (Mapping, list, tuple)) else str(value)


def _render_json(call: ToolCall) -> str:
    arguments = json_text(call.arguments)
    return f'<tool_call>\n{{"name": {json_text(call.name)}, "arguments": {arguments}}}\n</tool_call>'
