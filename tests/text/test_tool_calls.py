"""Every case of tool_call_cases, read whole, in pieces of every size, and cut at every character."""

import json
import re

import pytest
from tool_call_cases import ALL, CASES, NESTED, READ, TOOLS, WRITE, Case, call, tool

from lathe.text.tool_call_events import join_neighbours
from lathe.text.tool_calls import (
    ArgumentText,
    CallFinished,
    CallStarted,
    Content,
    ToolCallParser,
    parse,
    parse_arguments,
    render,
)
from lathe.types import ToolCall

ENDS_LIKE_A_CALL = re.compile(r"\n</(function|tool_call)>\s*(<[^>]*)?\Z")
DROPPED = re.compile(r"<function=\w+\s|5: \?")  # what no reader can make a call of

every_case = pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)


def offered(case: Case):
    return TOOLS if case.tools is None else case.tools


def read(case: Case, pieces, ended: bool | None = None):
    parser = ToolCallParser(offered(case), case.dialect)
    events = [event for piece in pieces for event in parser.feed(piece)]
    return join_neighbours(events + parser.finish(end_of_turn=case.ended if ended is None else ended))


def cut(text: str, size: int) -> list[str]:
    return [text[at : at + size] for at in range(0, len(text), size)]


def content(events) -> str:
    return "".join(event.text for event in events if isinstance(event, Content))


def finished(events) -> list[tuple[str, dict]]:
    return [(event.call.name, event.call.arguments) for event in events if isinstance(event, CallFinished)]


def argument_texts(events) -> dict[int, str]:
    texts = {event.index: "" for event in events if isinstance(event, CallStarted)}
    for event in events:
        if isinstance(event, ArgumentText):
            texts[event.index] += event.text
    return texts


def without_ids(events):
    return [
        CallStarted(event.index, "", event.name)
        if isinstance(event, CallStarted)
        else CallFinished(event.index, ToolCall(event.call.name, event.call.arguments))
        if isinstance(event, CallFinished)
        else event
        for event in events
    ]


def test_all_48_cases_are_here():
    assert {int(case.name[:2]) for case in CASES} == set(range(1, 49))
    assert len({case.name for case in ALL}) == len(ALL)


@every_case
def test_a_reply_is_understood(case):
    message = parse(case.text, offered(case), case.dialect, end_of_turn=case.ended)
    assert [(one.name, one.arguments) for one in message.tool_calls] == case.calls
    assert [list(map(type, one.arguments.values())) for one in message.tool_calls] == [
        list(map(type, arguments.values())) for _, arguments in case.calls
    ]
    assert message.content == case.content
    assert message.role == "assistant"


@every_case
def test_the_stream_is_consistent(case):
    events = read(case, case.text)
    started = [event for event in events if isinstance(event, CallStarted)]
    assert [event.index for event in started] == list(range(len(started)))
    assert all(event.id.startswith("call_") for event in started)
    assert len({event.id for event in started}) == len(started)
    texts = argument_texts(events)
    assert all(isinstance(json.loads(text), dict) for text in texts.values())
    for event in events:
        if isinstance(event, CallFinished):
            assert json.loads(texts[event.index]) == event.call.arguments
            assert event.call.id == started[event.index].id
            assert event.call.name == started[event.index].name
    json.dumps(list(texts.values())).encode()
    "".join(texts.values()).encode()


@every_case
def test_pieces_change_nothing(case):
    whole = without_ids(read(case, [case.text]))
    for size in (1, 2, 3, 4, 5, 7, 8, 13, 64):
        assert without_ids(read(case, cut(case.text, size))) == whole, size
    for at in range(len(case.text)):
        assert without_ids(read(case, [case.text[:at], case.text[at:]])) == whole, at


@every_case
def test_a_reply_that_is_cut_never_runs_half_a_call(case):
    everything = [ToolCall(*one) for one in case.calls]
    for end in range(len(case.text)):
        events = read(case, [case.text[:end]], ended=False)
        assert all(isinstance(json.loads(text), dict) for text in argument_texts(events).values())
        calls = [ToolCall(*one) for one in finished(events)]
        if case.holds_closing_line and ENDS_LIKE_A_CALL.search(case.text[:end]):
            calls = calls[:-1]  # nothing tells this line of a value from the end of the call
        assert calls == everything[: len(calls)], case.text[:end]


@every_case
def test_a_turn_that_ends_anywhere_loses_nothing(case):
    """What is no call in the end is text: nothing that was taken for one is missing."""
    for end in range(len(case.text)):
        text = case.text[:end]
        events = read(case, [text], ended=True)
        begin, last = text[:-8], text[-8:]  # the pieces before change nothing, as other tests show
        assert without_ids(read(case, [begin, *last], ended=True)) == without_ids(events)
        assert all(isinstance(json.loads(one), dict) for one in argument_texts(events).values())
        if DROPPED.search(text):
            continue
        if not finished(events):
            assert content(events) == text
        elif len(argument_texts(events)) > len(finished(events)):
            assert text.rstrip().endswith(content(events).rstrip()[-20:]), text


@pytest.mark.parametrize("case", [case for case in ALL if not case.ended], ids=lambda case: case.name)
def test_what_the_model_rendered_it_reads_again(case):
    calls = tuple(ToolCall(*one) for one in case.calls)
    message = parse(f"{case.content}\n{render(calls, case.dialect)}", offered(case), case.dialect)
    assert [(one.name, one.arguments) for one in message.tool_calls] == case.calls


def test_rendering_is_the_templates():
    calls = [
        ToolCall("f", {"s": "a\nb", "i": 1, "x": 1.5, "t": True, "n": None, "o": {"é": ["<", 1]}, "l": []}),
        ToolCall("g"),
    ]
    assert render(calls) == (
        "<tool_call>\n<function=f>\n<parameter=s>\na\nb\n</parameter>\n<parameter=i>\n1\n</parameter>\n"
        "<parameter=x>\n1.5\n</parameter>\n<parameter=t>\nTrue\n</parameter>\n<parameter=n>\nNone\n</parameter>\n"
        '<parameter=o>\n{"é": ["<", 1]}\n</parameter>\n<parameter=l>\n[]\n</parameter>\n'
        "</function>\n</tool_call>\n"
        "<tool_call>\n<function=g>\n</function>\n</tool_call>"
    )
    assert render([ToolCall("f", {"a": [1, "é"]}), ToolCall("g")], "qwen3") == (
        '<tool_call>\n{"name": "f", "arguments": {"a": [1, "é"]}}\n</tool_call>\n'
        '<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>'
    )


def test_an_unknown_dialect_is_refused():
    with pytest.raises(ValueError, match="qwen3_coder, qwen3"):
        parse("", dialect="hermes")
    with pytest.raises(ValueError, match="no dialect"):
        render([], "hermes")


def test_a_string_argument_streams_while_it_arrives():
    parser = ToolCallParser([WRITE])
    text = call("write_file", path="a", content="one two three\nfour")
    seen = []
    for character in text[: text.index("four")]:
        seen += parser.feed(character)
    assert argument_texts(seen) == {0: '{"path": "a", "content": "one two three'}  # the newline may be markup
    assert argument_texts(seen + parser.feed("fo")) == {0: '{"path": "a", "content": "one two three\\nfo'}
    assert not finished(seen)


def test_a_nullable_string_streams_as_soon_as_it_is_not_null():
    parser = ToolCallParser([tool("f", x={"type": ["string", "null"]})])
    seen = parser.feed("<tool_call>\n<function=f>\n<parameter=x>\nnul")
    assert argument_texts(seen) == {0: ""}
    assert argument_texts(seen + parser.feed("lify")) == {0: '{"x": "nullify'}


def test_the_name_leaves_before_the_arguments():
    parser = ToolCallParser([READ])
    events = parser.feed("Hi.\n<tool_call>\n<function=read_file>\n<param")
    assert [type(event) for event in events] == [Content]
    (started,) = parser.feed("eter=")[:1] or parser.feed("path>\n")
    assert isinstance(started, CallStarted)
    assert started.name == "read_file"


def test_content_leaves_at_once_but_for_space_and_tags():
    parser = ToolCallParser([READ])
    assert content(parser.feed("Hello ")) == "Hello"
    assert content(parser.feed("world <")) == " world"
    assert content(parser.feed("tool_ca")) == ""
    assert content(parser.feed("t>.")) == " <tool_cat>."


def test_json_arguments_stream_when_the_name_comes_first():
    parser = ToolCallParser([WRITE], "qwen3")
    events = parser.feed('<tool_call>\n{"name": "write_file", "arguments": {"path": "a", "content": "one \\')
    assert argument_texts(events) == {0: '{"path": "a", "content": "one '}
    assert argument_texts(events + parser.feed("n two")) == {0: '{"path": "a", "content": "one \\n two'}


def test_the_end_of_a_turn_closes_a_call_that_quotes_an_unclosed_one():
    value = "A call begins like this:\n<tool_call>\n<function=read_file>\n<parameter=path>\n"
    text = call("write_file", path="a.md", content=value)
    assert parse(text, TOOLS).tool_calls == ()
    (one,) = parse(text, TOOLS, end_of_turn=True).tool_calls
    assert one.arguments == {"path": "a.md", "content": value}
    quoting = call("write_file", path="a.md", content=NESTED)
    (one,) = parse(quoting, TOOLS, end_of_turn=True).tool_calls
    assert one.arguments["content"] == NESTED


def test_halves_of_a_character_in_two_pieces():
    parser = ToolCallParser([WRITE])
    pieces = [
        "<tool_call>\n<function=write_file>\n<parameter=content>\n\ud83d",
        "\ude00\n</parameter>\n</function>",
    ]
    events = [event for piece in pieces for event in parser.feed(piece)] + parser.finish()
    assert json.loads(argument_texts(events)[0]) == {"content": "😀"}
    argument_texts(events)[0].encode()


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ('{"a": 1}', {"a": 1}),
        ("", {}),
        (" \n", {}),
        ('"{\\"a\\": 1}"', {"a": 1}),
        ("{'a': True}", {"a": True}),
        ('{"a": "line\nline"}', {"a": "line\nline"}),
        ('{"a": "half of', {"arguments": '{"a": "half of'}),
        ("[1, 2]", {"arguments": "[1, 2]"}),
        ("5", {"arguments": "5"}),
        ('{"a": NaN}', {"arguments": '{"a": NaN}'}),
        ("[" * 100_000, {"arguments": "[" * 100_000}),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_arguments_from_a_clients_history(text, arguments):
    assert parse_arguments(text) == arguments


def test_tools_may_come_as_the_field_writes_them():
    schema = {"type": "object", "properties": {"count": {"type": "integer"}}}
    text = render([ToolCall("f", {"count": 3})])
    for offered_tool in (
        {"name": "f", "parameters": schema},
        {"type": "function", "function": {"name": "f", "parameters": schema}},
    ):
        assert parse(text, [offered_tool]).tool_calls[0].arguments == {"count": 3}
