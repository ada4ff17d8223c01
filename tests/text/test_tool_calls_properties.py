"""What holds for any call and any text: it is read as it was written, in pieces as in one, in linear time."""

import json
import re
import time
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from searching import times
from test_tool_calls import argument_texts, content, cut, finished, without_ids
from tool_call_cases import TOOLS, call, optional, tool

from lathe.text.tool_call_events import join_neighbours
from lathe.text.tool_calls import ToolCallParser, parse, render
from lathe.types import ToolCall

SPACE = r"[ \t\r\n]{0,100}+"
CLOSE = r"</parameter(?:[0-9]?/?>|(?=[ \t]{0,8}(?:\r?\n|<)))"
END = r"</(?:parameter_?)?function[0-9]?/?>"
WRAPPER_END = r"</tool_call[0-9]?/?>"
NAME = r"\w[\w.:/-]{0,127}"
PARAMETER = r"[^\s<>{}]{1,128}"
GOES_ON = rf"(?!{SPACE}(?:{CLOSE}|\Z))"  # not: the value ends here

# The strings that Qwen3-Coder's format can't carry, as the docstring of tool_calls names them. Matched
# against the value between the two newlines that belong to its tags.
UNCARRIED = re.compile(
    rf"(?:\n{CLOSE}|{CLOSE}(?=[ \t\r]*\n)){SPACE}"
    rf"(?:<parameter={PARAMETER}(?:>|[ \t]{{0,8}}\r?\n)"
    rf"|(?:{END}(?:{SPACE}{WRAPPER_END})?+|{WRAPPER_END}){GOES_ON})"
    rf"|\n{END}{SPACE}{WRAPPER_END}{GOES_ON}"
    rf"|(?:\n|<tool_call>{SPACE})<function={NAME}>(?=[ \t\r]*\n|{SPACE}<parameter={PARAMETER}>\n)"
    rf"{SPACE}<parameter={PARAMETER}>"
)
HALVES = re.compile("[\ud800-\udbff][\udc00-\udfff]")

TAGS = """<tool_call> </tool_call> <function=now> <function=read_file> </function> </parameter>
<parameter=path> <parameter=content> <parameter=x> <parameter=x </parameter/> </param < >
</parameter1> </parameter </parameter_function> </tool_call2
` ``` ~~~ " ' \\ { } null True a é 😀"""
SPACES = ["\n", "\n", "\n", "\r", "\r\n", " ", " " * 101, "\u2028"]
PARTS = st.sampled_from([*TAGS.split(), *SPACES, "{{ name }}", "\ud83d", "\ude00", "\x00", "a" * 200])
SOUP = st.lists(PARTS, max_size=14).map("".join)
STRINGS = st.one_of(SOUP, st.text(st.characters()), st.text("<>/\n\r funcparme=tol_x", max_size=40))
NAMES = st.sampled_from(["read_file", "write_file", "now", "tool_call", "other.tool", "ns/x:y-z", "ö"])
KEYS = st.sampled_from(["path", "content", "x", "-n", "$ref", "naïve", "a[0]", "a=b", "Ж"])
STRING_CALLS = st.lists(
    st.builds(ToolCall, NAMES, st.dictionaries(KEYS, STRINGS, max_size=3)), min_size=1, max_size=3
)


def carried(value: str) -> bool:
    return not UNCARRIED.search(f"\n{value}\n")


def same(message, calls) -> bool:
    return [(one.name, one.arguments) for one in message.tool_calls] == [
        (one.name, one.arguments) for one in calls
    ]


NOT_CARRIED = [
    "a\n</parameter>\n<parameter=x>\nb",
    "a</parameter>\n<parameter=x>b",
    "</parameter><parameter=x\nb",
    "a\n</parameter>\n</function>\nb",
    "a\n</parameter>\n</tool_call>\nb",
    "a</parameter> \n </function></tool_call> b",
    "</function>\n</tool_call> b",
    "<tool_call>\n<function=f>\n<parameter=x>\nb",
    "a\n<function=f><parameter=x>\nb",
    "a\n</parameter1>\n<parameter=x>\nb",
    "a\n</parameter\n</function>\nb",
    "a\n</parameter_function>\n</tool_call>\nb",
]
BARELY_CARRIED = [
    "a </parameter> <parameter=x>\nb",
    "a\n</parameter>b<parameter=x>",
    "a\n</parameter>" + " " * 101 + "<parameter=x>",
    "a\n</parameter>\n<parameter=a b>\nb",
    "a </parameter></function></tool_call>\nb",
    "a\n</parameter>\n</function>",
    "a\n</parameter>\n</function>\n</tool_call>",
    "a\n</parameter>\n</function>\n</parameter>\nb",
    "a\n</parameter>\n<tool_call>\n<function=f>\nb",
    "a </function></tool_call>\nb",
    "a\n</parameter12>\n<parameter=x>\nb",
    "a\n</parameter x\n<parameter=x>\nb",
    "a\n</parameter_function>\nb",
    "a\n</function>\nb",
    "a\n</function>\n</tool_call>",
    "a\n</tool_call>\nb",
    "a\n<parameter=x>\nb",
    "<tool_call>\n<function=f>\nb",
    "<tool_call><function=f><parameter=x>b",
    "a <function=f>\n<parameter=x>\nb",
    "<tool_call>\n<function=f>\n<parameter=x>\n</parameter>\n</function>\nb",
]


@pytest.mark.parametrize("value", NOT_CARRIED)
def test_these_strings_can_not_be_carried(value):
    assert not carried(value)
    calls = [ToolCall("write_file", {"content": value})]
    assert not same(parse(render(calls)), calls)


@pytest.mark.parametrize("value", BARELY_CARRIED)
def test_these_strings_just_can(value):
    calls = [ToolCall("write_file", {"content": value}), ToolCall("now")]
    assert same(parse(render(calls)), calls)


@times(10)
@given(STRING_CALLS)
def test_strings_come_back_as_they_were(calls):
    assume(all(carried(value) for one in calls for value in one.arguments.values()))
    message = parse(render(calls))
    assert same(message, calls)
    assert message.content == ""


@times(5)
@given(st.permutations(["path", "content", "x"]), st.lists(STRINGS, min_size=3, max_size=3), SOUP)
def test_strings_come_back_with_tools_on_offer(names, values, text):
    assume(all(map(carried, values)))
    for position, value in enumerate(values):
        for later in names[position + 1 :]:  # the one thing more that a schema makes of a line
            assume(not re.search(rf"\n<parameter={later}>[\n\r]", f"\n{value}\n"))
    schema = {"type": "string"}
    calls = [ToolCall("write_file", dict(zip(names, values, strict=True)))]
    offered = [tool("write_file", path=schema, content=schema, x=schema), *TOOLS[2:]]
    assert same(parse(render(calls), offered), calls)


@times(3)
@given(STRING_CALLS, SOUP, SOUP)
def test_a_value_may_quote_any_call(quoted, before, after):
    assume(all(carried(value) for one in quoted for value in one.arguments.values()))
    assume(
        not any(
            re.search("<function=|</(parameter_?)?function", value)
            for one in quoted
            for value in one.arguments.values()
        )
    )
    assume(carried(before + ".") and carried(after))
    assume("function" not in before + after)  # only the quoted calls, whole ones, are at stake
    calls = [ToolCall("write_file", {"path": "a", "content": f"{before}\n{render(quoted)}\n{after}"})]
    assert same(parse(render(calls)), calls)


@times(2)
@given(STRINGS)
def test_the_end_of_a_turn_carries_an_unclosed_quote(value):
    value = f"{value}\n<tool_call>\n<function=now>\n<parameter=x>\n1"
    assume(carried(value.replace("<parameter=x>\n1", "")))
    assume(not re.search("</(parameter_?)?function", value))
    calls = [ToolCall("write_file", {"content": value})]
    assert same(parse(render(calls), end_of_turn=True), calls)


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | STRINGS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(STRINGS.map(lambda key: key[:40]), inner, max_size=4)
    ),
    max_leaves=8,
)


@times(3)
@given(
    st.lists(
        st.builds(ToolCall, NAMES, st.dictionaries(KEYS | SOUP, ANY_JSON, max_size=3)), min_size=1, max_size=3
    )
)
def test_json_calls_come_back_as_they_were(calls):
    assume(not any(HALVES.search(text) for text in strings_in([one.arguments for one in calls])))
    assert same(parse(render(calls, "qwen3"), dialect="qwen3"), calls)


def strings_in(value):
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from strings_in([*value.keys(), *value.values()])
    elif isinstance(value, list):
        for inner in value:
            yield from strings_in(inner)


TYPED = {  # a schema, and values of its type
    "string": ({"type": "string"}, STRINGS.filter(carried)),
    "integer": ({"type": "integer"}, st.integers()),
    "number": ({"type": "number"}, st.floats(allow_nan=False, allow_infinity=False)),
    "boolean": ({"type": "boolean"}, st.booleans()),
    "maybe": (optional({"type": "integer"}), st.none() | st.integers()),
    "choice": ({"enum": ["a", 1, True, None]}, st.sampled_from(["a", 1, True, None])),
    "list": ({"type": "array", "items": {"type": "string"}}, st.lists(STRINGS, max_size=4)),
    "pair": (
        {"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}]},
        st.tuples(STRINGS, st.integers()).map(list),
    ),
    "object": (
        {
            "type": "object",
            "properties": {"s": {"type": "string"}, "n": {"$ref": "#/$defs/count"}},
            "additionalProperties": {"type": "array", "items": {"type": ["boolean", "null"]}},
        },
        st.fixed_dictionaries(
            {}, optional={"s": STRINGS, "n": st.integers(), "z": st.lists(st.none() | st.booleans())}
        ),
    ),
    "anything": ({"type": "object"}, st.dictionaries(STRINGS, ANY_JSON, max_size=3)),
}
TYPED_TOOL = tool("typed", **{name: schema for name, (schema, _) in TYPED.items()})
TYPED_TOOL.parameters["$defs"] = {"count": {"type": "integer"}}


@times(3)
@given(st.fixed_dictionaries({}, optional={name: values for name, (_, values) in TYPED.items()}), st.data())
def test_typed_values_come_back_in_both_dialects(arguments, data):
    assume(not any(HALVES.search(text) for text in strings_in(arguments)))
    order = data.draw(st.permutations(list(arguments)))
    assume("\n<parameter=" not in str(arguments.get("string")))  # a line of a later parameter
    calls = [ToolCall("typed", {name: arguments[name] for name in order})]
    for dialect in ("qwen3_coder", "qwen3"):
        message = parse(render(calls, dialect), [TYPED_TOOL], dialect)
        assert same(message, calls)
        json.dumps(message.tool_calls[0].arguments, allow_nan=False)


def read(text, pieces, dialect, ended):
    parser = ToolCallParser(TOOLS, dialect)
    events = [event for piece in pieces for event in parser.feed(piece)]
    return join_neighbours(events + parser.finish(end_of_turn=ended))


REPLIES = st.one_of(
    st.lists(
        PARTS
        | st.sampled_from([call("now"), call("read_file", path="a"), '{"name": "now"', ', "arguments": {']),
        max_size=14,
    ).map("".join),
    st.builds(
        lambda calls, text, dialect: text + render(calls, dialect) + text,
        STRING_CALLS,
        SOUP,
        st.sampled_from(["qwen3_coder", "qwen3"]),
    ),
)


@times(5)
@given(
    REPLIES,
    st.lists(st.integers(0, 400), max_size=8),
    st.sampled_from(["qwen3_coder", "qwen3"]),
    st.booleans(),
)
def test_pieces_change_nothing_in_any_text(text, cuts, dialect, ended):
    whole = read(text, [text], dialect, ended)
    edges = [0, *sorted(min(edge, len(text)) for edge in cuts), len(text)]
    pieces = [text[start:end] for start, end in pairwise(edges)]
    assert without_ids(read(text, pieces, dialect, ended)) == without_ids(whole)
    assert without_ids(read(text, list(text), dialect, ended)) == without_ids(whole)
    texts = argument_texts(whole)
    "".join(texts.values()).encode()
    assert all(isinstance(json.loads(one), dict) for one in texts.values())
    if not HALVES.search(text):
        done = [event.index for event in whole if type(event).__name__ == "CallFinished"]
        assert [json.loads(texts[index]) for index in done] == [arguments for _, arguments in finished(whole)]
    if not texts and "<function=" not in text and '"name"' not in text:
        assert content(whole) == text


ADVERSARIES = {
    "prose": "Some `code` and words.\n",
    "<": "<",
    "space": " ",
    "newlines": "\n",
    "backticks": "`",
    "tildes and backticks": "~~~\n```x\n",
    "openers": "<tool_call>",
    "wide openers": "<tool_call>" + " " * 99,
    "headers": "<tool_call><function=now>",
    "names": "<function=" + "a" * 150,
    "closers": "</parameter>",
    "calls": call("now") + "\n",
    "headers in lines": "x <function=read_file>\n<parameter=path",
    "open headers in lines": "x <function=read_file>" + " " * 99,
    "calls in lines": "x <function=now></function>\n",
    "ends of calls": "</function>\n</tool_call>\n",
    "json openers": '<tool_call>{"name": ',
    "json quotes": "<tool_call>{'name': '",
    "brackets": '<tool_call>{"name": [{',
}
IN_A_VALUE = {
    f"{name} in a value": (call("write_file", content="@").split("@")[0] + text, text)
    for name, text in [*list(ADVERSARIES.items())[:4], *list(ADVERSARIES.items())[6:12]]
} | {
    "ends in a value": (
        "<tool_call>\n<function=write_file>\n<parameter=content>\n",
        "\n</parameter>\n</function>\n<",
    ),
    "quotes in a value": (
        "<tool_call>\n<function=write_file>\n<parameter=content>\n",
        "<function=a>\n<parameter=b>\n",
    ),
    "nulls": ("<tool_call>\n<function=f>\n<parameter=x>\n", "null "),
    "brackets in a list": ("<tool_call>\n<function=plan>\n<parameter=steps>\n", "[{("),
    "minus in a list": ("<tool_call>\n<function=plan>\n<parameter=steps>\n[", "-"),
    "json string": ('<tool_call>{"name": "write_file", "arguments": {"content": "', "words \\n "),
    "json list": ('<tool_call>{"name": "plan", "arguments": {"steps": [', "1, "),
    "json leak": ('{"name": "write_file", "arguments": {"content": "', "words "),
    "json leaks": ("", '{"name": "now", "arguments": {}}\n'),
    "json halves of leaks": ("", '{"name": "now", "arguments": {'),
    "ends behind a call": (call("now"), "</function>\n</tool_call>\n"),
    "json key": ('<tool_call>{"name": "plan", "arguments": {"', "key"),
    "json halves": ('<tool_call>{"name": "write_file", "arguments": {"content": "', "\\ud83d"),
}


def seconds(text: str, size: int, dialect: str) -> float:
    parser = ToolCallParser([*TOOLS, tool("f", x=optional({"type": "string"}))], dialect)
    start = time.process_time()
    for piece in cut(text, size):
        parser.feed(piece)
    parser.finish()
    return time.process_time() - start


@pytest.mark.parametrize("name", [*ADVERSARIES, *IN_A_VALUE])
def test_time_is_linear(name):
    """Four times the text takes four times the time, whatever the text and its pieces; not sixteen times."""
    begin, text = IN_A_VALUE.get(name) or ("", ADVERSARIES[name])
    dialect = "qwen3" if "json" in name else "qwen3_coder"
    for size, length in ((1, 5_000), (10**9, 30_000)):
        short, long = (begin + text * (many // len(text)) for many in (length, 4 * length))
        once = min(seconds(short, size, dialect) for _ in range(3))
        assert any(seconds(long, size, dialect) < 8 * once + 0.02 for _ in range(3)), (size, once)


def test_a_megabyte_takes_seconds():
    code = "    if a < b:\n        print('<tag>')\n"
    text = call("write_file", path="big.py", content=code * (10**6 // len(code)))
    assert seconds(text, len(text), "qwen3_coder") < 3
    assert seconds(text, 5, "qwen3_coder") < 15  # a token is about five characters
