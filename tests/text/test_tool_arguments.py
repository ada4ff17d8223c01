"""Texts become the values that a tool's JSON schema declares."""

import json
import warnings

import pytest

from lathe.text.tool_arguments import Schema, json_string_body, json_text, read_structure

STRING, INTEGER, NULL = {"type": "string"}, {"type": "integer"}, {"type": "null"}

READINGS = [
    ({}, "5", "5"),
    (None, "true", "true"),
    (True, "null", "null"),
    ({"description": "anything"}, "[1]", "[1]"),
    (STRING, " 5 ", " 5 "),
    (INTEGER, " 5\n", 5),
    (INTEGER, "-7", -7),
    (INTEGER, "+7", 7),
    (INTEGER, "1e3", 1000),
    (INTEGER, "5.5", "5.5"),
    (INTEGER, "1_000", "1_000"),
    (INTEGER, "٣", "٣"),
    (INTEGER, "0x10", "0x10"),
    (INTEGER, "9" * 5000, "9" * 5000),
    (INTEGER, "123456789012345678901234567890", 123456789012345678901234567890),
    ({"type": "number"}, "2.50", 2.5),
    ({"type": "number"}, ".5", 0.5),
    ({"type": "number"}, "5", 5),
    ({"type": "number"}, "inf", "inf"),
    ({"type": "number"}, "-Infinity", "-Infinity"),
    ({"type": "number"}, "NaN", "NaN"),
    ({"type": "number"}, "1e999", "1e999"),
    ({"type": "boolean"}, "TRUE", True),
    ({"type": "boolean"}, "yes", "yes"),
    ({"type": "boolean"}, "1", "1"),
    ({"type": "object"}, "{}", {}),
    ({"type": "object"}, "[1]", "[1]"),
    ({"type": "object"}, "{'a': (1, 2), 3: None}", {"a": [1, 2], "3": None}),
    ({"type": "object"}, "{'a': {1, 2}}", "{'a': {1, 2}}"),
    ({"type": "object"}, "{'a': 1e999}", "{'a': 1e999}"),
    ({"type": "object"}, "{'a': b'x'}", "{'a': b'x'}"),
    ({"type": "object"}, '{"a": Infinity}', '{"a": Infinity}'),
    ({"type": "object"}, '{"a": "two\nlines"}', {"a": "two\nlines"}),
    ({"type": "object"}, "__import__('os')", "__import__('os')"),
    ({"type": "array"}, "[" * 101 + "]" * 101, "[" * 101 + "]" * 101),
    ({"type": "array"}, '["[[", 1]', ["[[", 1]),
    ({"type": "array"}, "['it\\'s \\d']", ["it's \\d"]),
    ({"type": "array"}, json.dumps(["[" * 500]), ["[" * 500]),
    ({"type": ["integer", "string"]}, "42", 42),
    ({"type": ["string", "integer"]}, "42", "42"),
    ({"type": ["null", "boolean", "integer"]}, "true", True),
    ({"type": ["null", "integer"]}, "null", None),
    ({"type": "null"}, "None", None),
    ({"type": "null"}, "x", "x"),
    ({"oneOf": [INTEGER, {"type": "object"}]}, '{"a": 1}', {"a": 1}),
    ({"allOf": [{"description": "a count"}, INTEGER]}, "3", 3),
    ({"anyOf": [{"anyOf": [NULL, INTEGER]}]}, "3", 3),
    ({"enum": [1, 2]}, "2", 2),
    ({"enum": ["1", "2"]}, "2", "2"),
    ({"enum": ["a", 1]}, "1", 1),
    ({"enum": ["a", None]}, "null", None),
    ({"const": True}, "true", True),
    ({"type": "string", "enum": ["1"]}, "1", "1"),
    ({"type": "integer", "nullable": True}, "null", None),
    ({"properties": {"n": INTEGER}}, '{"n": "4"}', {"n": 4}),
    ({"items": INTEGER}, '["4", "x", null]', [4, "x", None]),
    ({"type": "array", "items": {"anyOf": [INTEGER, NULL]}}, '["4", "null"]', [4, None]),
    (
        {"type": "array", "prefixItems": [INTEGER, STRING], "items": {"type": "boolean"}},
        '["4", "5", "true"]',
        [4, "5", True],
    ),
    ({"type": "object", "additionalProperties": INTEGER}, '{"a": "4"}', {"a": 4}),
    ({"type": "object", "properties": {"o": {"type": "object"}}}, '{"o": "{\\"a\\": 1}"}', {"o": {"a": 1}}),
    ({"type": "object", "properties": {"n": INTEGER}}, '{"n": 5.0}', {"n": 5}),
    ({"anyOf": [{"properties": {"n": INTEGER}}, {"properties": {"n": STRING}}]}, '{"n": "4"}', {"n": "4"}),
    ({"type": "int"}, "4", 4),
    ({"type": "dict"}, "{}", {}),
    ({"type": "unheard-of"}, "4", "4"),
    ({"type": 5, "enum": "x", "anyOf": {}, "properties": []}, "4", "4"),
]


@pytest.mark.parametrize(("schema", "text", "value"), READINGS, ids=lambda part: repr(part)[:40])
def test_a_text_is_read_by_its_schema(schema, text, value):
    read = Schema(schema).read(text)
    assert (read, type(read)) == (value, type(value))
    assert json.loads(json_text(read)) == value


def test_references_are_followed():
    root = {
        "$defs": {
            "count": INTEGER,
            "node": {
                "type": "object",
                "properties": {"n": {"$ref": "#/$defs/count"}, "next": {"$ref": "#/$defs/node"}},
            },
        },
        "properties": {
            "node": {"$ref": "#/$defs/node"},
            "loop": {"$ref": "#/properties/loop"},
            "far": {"$ref": "other.json"},
            "gone": {"$ref": "#/$defs/gone"},
        },
    }
    schema = Schema(root)
    assert schema.property("node").read('{"n": "1", "next": {"n": "2"}}') == {"n": 1, "next": {"n": 2}}
    for name in ("loop", "far", "gone", "unknown"):
        assert schema.property(name).read("5") == "5"


def test_alternatives_may_nest_deep():
    schema: dict = INTEGER
    for _ in range(5000):
        schema = {"anyOf": [schema]}
    assert Schema(schema).read("5") == 5


@pytest.mark.parametrize(
    ("schema", "streams"),
    [
        ({}, True),
        (STRING, True),
        (INTEGER, False),
        ({"type": ["string", "null"]}, True),
        ({"type": ["integer", "string"]}, False),
        ({"enum": ["a", "b"]}, True),
        ({"enum": ["a", 1]}, False),
    ],
    ids=str,
)
def test_only_what_is_a_string_for_certain_streams(schema, streams):
    assert Schema(schema).is_text == streams


def test_json_text_can_always_be_encoded():
    text = 'a\ud83d"\\\n\x00é\udfff'
    assert json.loads(json_text({text: text}).encode()) == {text: text}
    assert json_string_body("ab\n") == json_string_body("a") + json_string_body("b\n") == "ab\\n"


def test_hostile_text_is_neither_run_nor_a_crash():
    hostile = [
        "[" * 10**5,
        "-" * 10**5,
        "{" * 99 + "-" * 60000,
        "(" * 99,
        "[" * 90 + "'" * 7,
        "9" * 10**5,
        "\x00",
        "{'a': \ud800}",
    ]
    for text in hostile:
        assert not isinstance(read_structure(text), str)


def test_no_warning_reaches_the_terminal():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Schema({"type": "array"}).read(r"['\d']") == [r"\d"]
