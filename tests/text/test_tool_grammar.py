"""What a tool's grammar lets through is read as calls of that tool, with arguments that its schema allows."""

import contextlib
import random
import re
from itertools import permutations

import jsonschema_rs
import pytest
from babbler import babble
from hypothesis import HealthCheck, assume, given
from hypothesis import strategies as st
from searching import times

from lathe.errors import GrammarError
from lathe.text.tool_calls import parse, render
from lathe.text.tool_grammar import tool_grammar
from lathe.types import Tool, ToolCall

SCALARS = st.sampled_from([
    {"type": "string"},
    {},
    {"type": "integer"},
    {"type": "number"},
    {"type": "boolean"},
    {"type": "integer", "minimum": -3, "maximum": 120},
    {"type": "integer", "multipleOf": 7},
    {"type": "number", "exclusiveMinimum": 0, "maximum": 1.5},
    {"type": "string", "pattern": "^[a-z]{2,4}$"},
    {"type": "string", "pattern": "a|^b"},
    {"type": "string", "pattern": r"^\d+/\w$"},
    {"type": "string", "minLength": 1, "maxLength": 3},
    {"type": "string", "minLength": 2},
    {"enum": ["a", "", "a\nb", "null", "<b>", "</parameter>", " x "]},
    {"enum": [1, "1", 2.5, True, None, "True", {"k": [1]}]},
    {"type": "string", "enum": ["x", 3]},
    {"const": "only"},
    {"const": None},
    {"type": ["string", "null"]},
    {"type": ["null", "integer"]},
    {"type": ["integer", "string", "boolean"]},
    {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
    {"anyOf": [{"type": "integer"}, {"type": "null"}]},
    {"anyOf": [{"type": "integer", "minimum": 10}, {"type": "string"}]},
    {"anyOf": [{"type": "boolean"}, {"type": "string", "pattern": "^[tx0-9]*$"}]},
    {"anyOf": [{"type": "string", "minLength": 2}, {"enum": [1, 2]}]},
    {"allOf": [{"type": "string", "minLength": 1}, {"pattern": "^[ab]*$"}]},
    {"oneOf": [{"type": "integer"}, {"type": "boolean"}]},
    {"$ref": "#/$defs/word"},
    {"anyOf": [{"$ref": "#/$defs/word"}, {"type": "array", "items": {"$ref": "#/$defs/word"}}]},
    {"anyOf": [{"type": "array", "items": {"type": "integer"}}, {"type": "string"}]},
    {"$ref": "#/$defs/tree"},
])  # fmt: skip
DEFINITIONS = {
    "word": {"type": "string", "pattern": "^[a-c]+$"},
    "tree": {
        "type": "object",
        "properties": {"leaf": {"type": "boolean"}, "next": {"$ref": "#/$defs/tree"}},
        "required": ["leaf"],
        "additionalProperties": False,
    },
}
NAMES = st.sampled_from(["path", "a", "ab", "content", "x-y", "größe", "a.b", "n/m", "parameter"])


def objects(inner):
    return st.builds(
        lambda properties, num_required, more: {
            "type": "object",
            "properties": properties,
            "required": list(properties)[:num_required],
            **({} if more is None else {"additionalProperties": more}),
        },
        st.dictionaries(NAMES, inner, max_size=4),
        st.integers(0, 3),
        st.sampled_from([None, False, {"type": "integer"}]),
    )


def arrays(inner):
    return st.builds(
        lambda items, most: {"type": "array", "items": items, "maxItems": most}, inner, st.integers(0, 3)
    )


SCHEMAS = st.recursive(SCALARS, lambda inner: objects(inner) | arrays(inner), max_leaves=5)
PARAMETERS = objects(SCHEMAS).map(lambda schema: {**schema, "$defs": DEFINITIONS})
TOOLS = st.dictionaries(
    st.sampled_from(["read", "write_file", "mcp__x.y"]), PARAMETERS, min_size=1, max_size=3
).map(lambda found: [Tool(name, "", schema) for name, schema in found.items()])

TOO_LARGE = re.compile(r"[eE][+-]?\d{3}|\d{300}")  # for a double; such a number stays text


@pytest.mark.parametrize("dialect", ["qwen3_coder", "qwen3"])
@times(1, suppress_health_check=[*HealthCheck])
@given(tools=TOOLS, parallel=st.booleans(), seed=st.integers(0, 2**32))
def test_what_it_lets_through_is_a_valid_call(grammars, dialect, tools, parallel, seed):
    matcher = grammars.matcher(tool_grammar(tools, dialect, parallel=parallel))
    text = babble(matcher, random.Random(seed), limit=1500)
    assume(text is not None and not TOO_LARGE.search(text))
    message = parse(text, tools, dialect, end_of_turn=True)
    assert message.content == ""
    assert message.tool_calls
    assert len(message.tool_calls) <= (16 if parallel else 1)
    schemas = {tool.name: tool.parameters for tool in tools}
    for call in message.tool_calls:
        assert jsonschema_rs.is_valid(schemas[call.name], call.arguments), (text, call, schemas[call.name])


KEYWORDS = [
    "type", "enum", "const", "anyOf", "oneOf", "allOf", "not", "if", "$ref", "properties", "required",
    "additionalProperties", "items", "prefixItems", "patternProperties", "minLength", "maxLength",
    "pattern", "minimum", "multipleOf", "format", "$defs", "minItems", "nullable", "x-guidance",
    "uniqueItems", "propertyNames", "minProperties", "a", "größe",
]  # fmt: skip
WORDS = [
    "string",
    "integer",
    "object",
    "null",
    "foo",
    "",
    "#",
    "#/$defs/a",
    "^a$",
    "(",
    "(?=x)",
    "a|^b$",
    "<b>",
]
NONSENSE = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.sampled_from(WORDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYWORDS), inner, max_size=4),
    max_leaves=12,
)
ODD_PARAMETERS = st.dictionaries(st.sampled_from(KEYWORDS), NONSENSE, max_size=5) | st.builds(
    lambda properties, required, more: {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": more,
    },
    st.dictionaries(st.sampled_from(["a", "b c", "x<y", ""]), NONSENSE, max_size=3),
    st.lists(st.sampled_from(["a", "z", "b c"])),
    NONSENSE,
)


@pytest.mark.parametrize("dialect", ["qwen3_coder", "qwen3"])
@times(0.6, suppress_health_check=[*HealthCheck])
@given(parameters=ODD_PARAMETERS, seed=st.integers(0, 2**32))
def test_an_odd_schema_does_not_take_the_tool_away(grammars, dialect, parameters, seed):
    tools = [Tool("f", "", parameters)]
    matcher = grammars.matcher(tool_grammar(tools, dialect, parallel=False))
    text = babble(matcher, random.Random(seed), limit=1000)
    assume(text is not None)
    message = parse(text, tools, dialect, end_of_turn=True)
    assert message.content == ""
    assert [call.name for call in message.tool_calls] == ["f"]
    with contextlib.suppress(GrammarError):
        tool_grammar([Tool("f", "", parameters, strict=True)], dialect)


def accepts(grammars, tools, text, dialect="qwen3_coder", **options) -> bool:
    matcher = grammars.matcher(tool_grammar(tools, dialect, **options))
    try:
        for byte in text.encode():
            matcher.accept(byte)
    except GrammarError:
        return False
    return matcher.may_end


WRITE = Tool(
    "write",
    "",
    {
        "type": "object",
        "properties": {"path": {"type": "string"}, "text": {"type": "string"}, "n": {"type": "integer"}},
        "required": ["path", "text"],
    },
)


@pytest.mark.parametrize("template_newline", ["\n", ""])
def test_parameters_come_in_any_order_and_layout(grammars, template_newline):
    n = template_newline

    def written(*names: str) -> str:
        values = {"path": "a.py", "text": "x < 1", "n": "5"}
        parameters = "".join(f"<parameter={name}>{n}{values[name]}{n}</parameter>{n}" for name in names)
        return f"<tool_call>{n}<function=write>{n}{parameters}</function>{n}</tool_call>"

    for names in permutations(["path", "text", "n"]):
        assert accepts(grammars, [WRITE], written(*names))
    assert accepts(grammars, [WRITE], written("text", "path"))
    for names in [("path",), ("path", "n"), (), ("path", "text", "path"), ("path", "path")]:
        assert not accepts(grammars, [WRITE], written(*names))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "def f():\n    return 1 < 2\n",
        "<html>\n<p class='x'>é 日本語 😀</p>\n</html>",
        "</parameter>",
        "a </parameter> b </function> c </tool_call>",
        "</parameter>\n<div>\n</parameter>\n",
        "</function>\n</function>x",
        "It says <tool_call>, then\n<function=other>, then\n<parameter=other>\nx",
    ],
)
def test_a_free_string_may_hold_tags(grammars, text):
    calls = [ToolCall("write", {"path": "a", "text": text}), ToolCall("write", {"text": text, "path": text})]
    for call in calls:
        assert accepts(grammars, [WRITE], render([call]))
        [found] = parse(render([call]), [WRITE], end_of_turn=True).tool_calls
        assert found.arguments == call.arguments


@pytest.mark.parametrize(
    "text",
    [
        "</parameter>\n</function>",
        "x\n<parameter=n>\n5",
        "</function></tool_call>",
        "<function=f>\n<parameter=x>",
    ],
)
def test_what_would_end_a_value_is_not_in_it(grammars, text):
    assert not accepts(grammars, [WRITE], render([ToolCall("write", {"path": "a", "text": text})]))


def test_strict_says_which_tool_and_why():
    def strict(**parameters):
        return [Tool("f", "", {"type": "object", **parameters}, strict=True)]

    for tools, words in [
        (strict(properties={"x": {"type": "array", "uniqueItems": True}}), "parameter x .*uniqueItems"),
        (strict(properties={"x": {"type": "string", "pattern": "(?=a)"}}), "parameter x .*look-around"),
        (strict(anyOf=[{"required": ["x"]}]), "The tool f is strict, but anyOf"),
        (strict(minProperties=1), "minProperties"),
        (strict(properties={"x y": {}}, required=["x y"]), "name of a parameter"),
    ]:
        with pytest.raises(GrammarError, match=words):
            tool_grammar(tools, "qwen3_coder")
    with pytest.raises(GrammarError, match=r"parameter x .*uniqueItems"):
        tool_grammar(strict(properties={"x": {"type": "array", "uniqueItems": True}}), "qwen3")


def test_a_name_that_no_call_can_hold():
    odd, good = Tool("two words"), Tool("good")
    with pytest.raises(GrammarError, match="no tool whose name"):
        tool_grammar([odd], "qwen3_coder")
    assert "two words" not in tool_grammar([odd, good], "qwen3_coder").source
    assert "two words" in tool_grammar([odd], "qwen3").source


def test_many_parameters(grammars):
    names = [f"p{number}" for number in range(100)]
    properties = {name: {"type": "integer"} for name in names}
    schema = {"type": "object", "properties": properties, "required": names[90:]}
    calls = [ToolCall("f", dict.fromkeys(chosen, 1)) for chosen in (names[90:], names[40::-1] + names[90:])]
    for call in calls:
        assert accepts(grammars, [Tool("f", "", schema)], render([call]))
    with pytest.raises(GrammarError, match="required parameters"):
        tool_grammar([Tool("f", "", {**schema, "required": names})], "qwen3_coder")


def test_ten_thousand_tools_are_refused_at_once():
    tools = [Tool(f"tool_{number}", "", WRITE.parameters) for number in range(10_000)]
    with pytest.raises(GrammarError, match="Offer fewer tools"):
        tool_grammar(tools, "qwen3_coder")
