"""A schema as a grammar: what it lets through satisfies the schema, and what is too much is refused."""

import json
import random
import time

import jsonschema_rs
import pytest
from babbler import babble
from hypothesis import HealthCheck, assume, given
from hypothesis import strategies as st
from searching import times
from test_tool_grammar import PARAMETERS

from lathe.errors import GrammarError
from lathe.text.schema_grammar import after_thought, json_grammar, lean
from lathe.types import Grammar


def accepts(grammars, grammar: Grammar, text: str) -> bool:
    matcher = grammars.matcher(grammar)
    try:
        for byte in text.encode():
            matcher.accept(byte)
    except GrammarError:
        return False
    return matcher.may_end


@times(1, suppress_health_check=[*HealthCheck])
@given(schema=PARAMETERS, seed=st.integers(0, 2**32))
def test_what_it_lets_through_satisfies_the_schema(grammars, schema, seed):
    text = babble(grammars.matcher(json_grammar(schema)), random.Random(seed), limit=3000)
    assume(text is not None)
    assert jsonschema_rs.is_valid(schema, json.loads(text))


def test_what_says_nothing_of_the_value_is_left_out():
    schema = {
        "title": "T",
        "type": "object",
        "properties": {"title": {"type": "string", "description": "d", "format": "path"}, "default": True},
        "required": ["title"],
        "x-guidance": {"whitespace_pattern": ".*"},
        "$defs": {"description": {"enum": [{"title": 1}], "format": "date"}},
    }
    assert lean(schema) == {
        "type": "object",
        "properties": {"title": {"type": "string"}, "default": {}},
        "required": ["title"],
        "$defs": {"description": {"enum": [{"title": 1}], "format": "date"}},
    }


def test_white_space_ends_somewhere(grammars):
    grammar = json_grammar({"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]})
    for text in ['{"a":1}', '{"a": 1}', '{ "a" : 1 }', '{\n  "a": 1\n}', '{\r\n\t"a":\n' + " " * 64 + "1}"]:
        assert accepts(grammars, grammar, text)
    for text in [' {"a":1}', '{"a":1} ', '{\n\n"a":1}', '{"a":     1}', '{"a":\n' + " " * 65 + "1}"]:
        assert not accepts(grammars, grammar, text)


def test_a_client_can_not_loosen_the_white_space(grammars):
    grammar = json_grammar({"const": 1, "x-guidance": {"whitespace_pattern": "z+"}, "type": "integer"})
    assert accepts(grammars, grammar, "1")
    assert "z+" not in grammar.source


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": "string", "pattern": "^a+$"}, ['"aa"'], ['"b"', '""']),
        ({"oneOf": [{"type": "integer"}, {"type": "string"}]}, ["1", '"x"'], ["null"]),
        ({"type": "string"}, ['"\\u00e9\\n"', '"é"', '"\\ud83d\\ude00"'], ['"\\ud83d"', '"\n"']),
        ({"type": "number", "exclusiveMinimum": 0}, ["0.5", "3"], ["0", "-1"]),
        ({"type": "array", "minItems": 1, "items": {"enum": [1, None]}}, ["[1, null]"], ["[]", "[2]"]),
        (True, ["1", '{"a": [null]}'], ["a"]),
    ],
)  # fmt: skip
def test_keywords(grammars, schema, good, bad):
    grammar = json_grammar(schema)
    assert [text for text in good if not accepts(grammars, grammar, text)] == []
    assert [text for text in bad if accepts(grammars, grammar, text)] == []


STRICT_ONLY = [
    {"type": "integer", "not": {"const": 3}},
    {"type": "array", "uniqueItems": True},
    {"oneOf": [{"type": "integer", "minimum": 1}, {"type": "integer", "maximum": 3}]},
    {"type": "object", "if": {"required": ["a"]}, "then": {"required": ["b"]}},
]


@pytest.mark.parametrize("schema", STRICT_ONLY, ids=str)
def test_what_is_not_known_is_refused_or_left_out(schema):
    with pytest.raises(GrammarError, match="can't be imposed"):
        json_grammar(schema, strict=True)
    json_grammar(schema, strict=False)


def nested(levels: int, keyword: str) -> dict:
    schema: dict = {"type": "string"}
    for _ in range(levels):
        schema = {"allOf": [schema]} if keyword == "allOf" else {keyword: schema}
    return schema


WIDE = {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(1000)}}
HOSTILE = {
    "deep": nested(1000, "items"),
    "deeper": nested(100_000, "not"),
    "deep allOf": nested(400, "allOf"),
    "wide": {"type": "object", "properties": {f"p{n}": {} for n in range(20_000)}},
    "long enum": {"enum": [f"value {n}" for n in range(100_000)]},
    "long text": {"const": "x" * 10**6},
    "as wide as it may be": WIDE,
    "four wide ones": {"type": "array", "prefixItems": [WIDE] * 4},
    "objects": {"enum": [{"a": n} for n in range(3000)]},
    "product": {"allOf": [{"anyOf": [{"required": [f"p{n}{m}"]} for m in range(4)]} for n in range(30)]},
    "alternatives": {"type": "string", "pattern": "^(a|b)*a(a|b){20}$"},
    "counted": {"type": "string", "pattern": "^((a{1000}){1000}){1000}$"},
    "patterns": {"allOf": [{"type": "string", "pattern": f"^(a|b)*a(a|b){{{n}}}$"} for n in range(12)]},
    "lengths": {"type": "string", "minLength": 10**9},
    "items": {"type": "array", "minItems": 10**9},
    "properties": {"type": "object", "minProperties": 10**9},
    "multiple": {"type": "integer", "multipleOf": 10**9 + 7},
    "self": {"$ref": "#"},
    "self by allOf": {"$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}]}}, "$ref": "#/$defs/a"},
    "self by anyOf": {"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}]}}, "$ref": "#/$defs/a"},
    "doubling": {
        "$defs": {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(60)} | {"d60": {}},
        "$ref": "#/$defs/d0",
    },
    "number": {"type": "integer", "minimum": -(10**300), "maximum": 10**300},
    "NUL": {"const": "a\0b"},
    "lone surrogate": {"const": "\ud800"},
    "odd values": {"properties": {"a": 3}, "required": "a", "type": 5, "enum": 7},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_schemas_take_little_time(grammars, name):
    """To be compiled, or refused; and for a few steps, because others wait meanwhile."""
    for strict in (True, False):
        started = time.monotonic()
        try:
            matcher = grammars.matcher(json_grammar(HOSTILE[name], strict=strict))
            assert time.monotonic() - started < 10
            started = time.monotonic()
            babble(matcher, random.Random(0), limit=5)
            assert time.monotonic() - started < 2
        except GrammarError as error:
            assert len(str(error)) < 500


QWEN_END = "<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("prompt_end", "good", "bad"),
    [
        (QWEN_END, ["7", "<think>\nhm {\n</think>\n\n7", "<think></think>7"], ["<think>7", "hm</think>7"]),
        (QWEN_END + "<think>\n", ["hm</think>\n7", "</think>\n\n7", "a<b</thin></think>7"], ["7", "hm"]),
        (QWEN_END + "<think>\n\n</think>\n\n", ["7"], ["<think></think>7", "hm</think>7"]),
    ],
)
def test_a_thought_is_free(grammars, prompt_end, good, bad):
    for grammar in (
        json_grammar({"const": 7}),
        Grammar("regex", "7"),
        Grammar("json_schema", '{"const": 7}'),
    ):
        whole = after_thought(grammar, prompt_end)
        assert [text for text in good if not accepts(grammars, whole, text)] == []
        assert [text for text in bad if accepts(grammars, whole, text)] == []
