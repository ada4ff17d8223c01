"""The values of a tool call: read by the tool's JSON schema, and written as JSON that any client can read.

A model writes every value as text. `Schema.read` gives that text the first declared type that parses;
`Schema.fit` does the same for the strings inside a decoded value. Nothing here raises on a model's text:
what can't be read as declared stays the string that the model wrote.
"""

from __future__ import annotations

import ast
import json
import math
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

MAX_NESTING = 100  # brackets; deeper JSON stays text, far below Python's recursion limit
MAX_LITERAL = 65536  # characters; Python's own parser is slow and hungry beyond
MAX_NULL = 64  # characters; so that a stream knows soon that a value is not null

UNREADABLE = object()

ALIASES = {
    "str": "string",
    "text": "string",
    "enum": "string",
    "int": "integer",
    "float": "number",
    "double": "number",
    "bool": "boolean",
    "dict": "object",
    "list": "array",
}

NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
BRACKETS = re.compile(r""""(?:[^"\\]|\\.)*+"|'(?:[^'\\]|\\.)*+'|[\[\]{}()]""", re.DOTALL)
SURROGATE = re.compile("[\ud800-\udfff]")


def json_text(value: Any) -> str:
    """JSON as the chat templates write it, except that lone surrogates are escaped: they can't be encoded."""
    return _escape_surrogates(json.dumps(value, ensure_ascii=False))


def json_string_body(text: str) -> str:
    """The inside of a JSON string. Bodies of two pieces join to the body of the joined pieces."""
    return json_text(text)[1:-1]


def parse_arguments(text: str) -> dict[str, Any]:
    """Arguments that a client sends back as JSON text. Empty text means none.

    What is no JSON object (a reply that was cut, a bare list) must not fail the whole conversation: it
    becomes {"arguments": text}, which shows the model exactly what stood there.
    """
    if not text.strip():
        return {}
    value = read_structure(text)
    return value if isinstance(value, dict) else {"arguments": text}


def is_null(text: str) -> bool:
    return len(text) <= MAX_NULL and text.strip() in ("null", "None")


def may_become_null(text: str) -> bool:
    """Could more text make this null? A stream waits with a nullable string as long as it could."""
    word = text.strip()
    return len(text) <= MAX_NULL and ("null".startswith(word) or "None".startswith(word))


def read_value(text: str) -> Any:
    """A value of any type from JSON or from a Python literal. Else UNREADABLE."""
    value = _read_json(text)
    return _read_literal(text) if value is UNREADABLE else value


def read_structure(text: str) -> Any:
    """An object or a list from JSON or a Python literal, also if encoded twice. Else UNREADABLE."""
    for _ in range(3):
        value = read_value(text)
        if not isinstance(value, str):
            return value if isinstance(value, (dict, list)) else UNREADABLE
        text = value
    return UNREADABLE


class Schema:
    """What a JSON schema allows, with its references and alternatives laid side by side."""

    def __init__(self, schema: Any, root: Any = None):
        self.root = schema if root is None else root
        self.options = list(_options(schema, self.root))
        types = [name for option in self.options for name in _declared_types(option)]
        self.nullable = "null" in types or any(option.get("nullable") is True for option in self.options)
        self.types = tuple(dict.fromkeys(name for name in types if name != "null"))
        self.enum = [value for option in self.options for value in _enumerated(option)]
        self.properties: dict[str, list[Any]] = {}
        for option in self.options:
            for name, inner in _mapping(option.get("properties")).items():
                self.properties.setdefault(name, []).append(inner)
        required = _list(self.options[0].get("required")) if self.options else []
        self.required = {name for name in required if isinstance(name, str)}
        self._inner: dict[str | int, Schema] = {}

    @property
    def is_text(self) -> bool:
        """Is every text but null a string as it stands? Then it can leave while it arrives."""
        first = not self.types or self.types[0] == "string"
        return first and all(value is None or isinstance(value, str) for value in self.enum)

    def property(self, name: str) -> Schema:
        """The schema of one member of an object; one that allows everything where none is declared."""
        if name not in self._inner:
            found = self.properties.get(name) or [
                option["additionalProperties"]
                for option in self.options
                # Beside patternProperties it may not be meant: whether a name matches is not looked at.
                if isinstance(option.get("additionalProperties"), Mapping)
                and "patternProperties" not in option
            ]
            self._inner[name] = Schema({"anyOf": found}, self.root)
        return self._inner[name]

    def item(self, index: int) -> Schema:
        """The schema of one element of a list."""
        fixed = max((len(_list(option.get("prefixItems"))) for option in self.options), default=0)
        index = min(index, fixed)  # all elements past the fixed ones share one schema
        if index not in self._inner:
            found = [_item_schema(option, index) for option in self.options]
            self._inner[index] = Schema({"anyOf": [inner for inner in found if inner is not None]}, self.root)
        return self._inner[index]

    def read(self, text: str) -> Any:
        """The value that a model meant by `text`.

        Null where null is allowed; else the first declared type that parses; else the text. With an
        enumeration, the first that is one of its values.
        """
        if self.nullable and is_null(text):
            return None
        values = [value for name in self.types if (value := self._read_as(name, text)) is not UNREADABLE]
        listed = [value for value in values if any(_same(value, known) for known in self.enum)]
        return next(iter(listed or values), text)

    def fit(self, value: Any) -> Any:
        """A decoded JSON value, with the texts inside it typed as declared. What fits already stays."""
        if isinstance(value, str) and self.types and "string" not in self.types:
            return self.read(value)
        if isinstance(value, float) and value.is_integer() and self.types and "number" not in self.types:
            return int(value) if "integer" in self.types else value
        if isinstance(value, dict):
            return {name: self.property(name).fit(inner) for name, inner in value.items()}
        if isinstance(value, list):
            return [self.item(index).fit(inner) for index, inner in enumerate(value)]
        return value

    def _read_as(self, name: str, text: str) -> Any:
        if name == "string":
            return text
        if name in ("integer", "number"):
            return _read_number(text.strip(), whole=name == "integer")
        if name == "boolean":
            return {"true": True, "false": False}.get(text.strip().lower(), UNREADABLE)
        if name in ("object", "array"):
            value = read_structure(text)
            return self.fit(value) if isinstance(value, dict if name == "object" else list) else UNREADABLE
        return UNREADABLE


def _options(schema: Any, root: Any) -> Iterator[Mapping[str, Any]]:
    """A schema and all that it refers to or offers as alternatives, in the order of declaration."""
    waiting, seen = [schema], set()
    while waiting:  # a stack: a client may nest as deep as it likes
        schema = waiting.pop()
        if not isinstance(schema, Mapping) or id(schema) in seen:  # a schema may refer to itself
            continue
        seen.add(id(schema))
        yield schema
        inner = [follow(schema["$ref"], root)] if isinstance(schema.get("$ref"), str) else []
        for keyword in ("anyOf", "oneOf", "allOf"):
            inner += _list(schema.get(keyword))
        waiting += reversed(inner)


def follow(reference: str, root: Any) -> Any:
    """The target of a local reference ("#/$defs/Name", RFC 6901); None for any other."""
    path, target = reference.split("/"), root
    if path[0] != "#":
        return None
    for step in path[1:]:
        target = _mapping(target).get(step.replace("~1", "/").replace("~0", "~"))
    return target


def _declared_types(option: Mapping[str, Any]) -> list[str]:
    declared = option.get("type")
    names = [declared] if isinstance(declared, str) else _list(declared)
    if names:
        return [ALIASES.get(name, name) for name in names if isinstance(name, str)]
    if values := _enumerated(option):
        return [_type_name(value) for value in values]
    if "properties" in option:
        return ["object"]
    return ["array"] if "items" in option or "prefixItems" in option else []


def _enumerated(option: Mapping[str, Any]) -> list[Any]:
    return [option["const"]] if "const" in option else _list(option.get("enum"))


def _item_schema(option: Mapping[str, Any], index: int) -> Any:
    fixed = _list(option.get("prefixItems"))
    return fixed[index] if index < len(fixed) else option.get("items")


def _type_name(value: Any) -> str:
    names = {str: "string", bool: "boolean", int: "integer", float: "number", dict: "object", list: "array"}
    return names.get(type(value), "null")


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _same(value: Any, other: Any) -> bool:
    return type(value) is type(other) and value == other  # 1 == True in Python, not in JSON


def _read_number(text: str, *, whole: bool) -> Any:
    if not NUMBER.fullmatch(text):
        return UNREADABLE
    try:
        return int(text)
    except ValueError:  # a fraction, or more digits than Python converts
        value = float(text)
    if math.isinf(value) or (whole and not value.is_integer()):
        return UNREADABLE
    # 5.0 means 5; past 2**53 a float is no exact integer, and its digits would only be noise
    return int(value) if value.is_integer() and (whole or abs(value) <= 2**53) else value


def _read_json(text: str) -> Any:
    if _nesting(text) > MAX_NESTING:
        return UNREADABLE
    try:
        # strict=False: models write newlines and tabs into JSON strings
        return json.loads(text, strict=False, parse_constant=_finite, parse_float=_finite)
    except ValueError:
        return UNREADABLE


def _read_literal(text: str) -> Any:
    if len(text) > MAX_LITERAL or _nesting(text) > MAX_NESTING:
        return UNREADABLE
    try:
        with warnings.catch_warnings():  # "\d" in a model's string is no concern of the terminal
            warnings.simplefilter("ignore")
            return _plain(ast.literal_eval(text.strip()))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return UNREADABLE


def _plain(value: Any) -> Any:
    """A Python literal as the JSON value it stands for. Raises ValueError where there is none."""
    if isinstance(value, dict):
        return {
            key if isinstance(key, str) else json.dumps(_scalar(key)): _plain(v) for key, v in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return _scalar(value)


def _scalar(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("JSON has no infinity and no NaN")
    if value is None or isinstance(value, (str, int, float)):
        return value
    raise ValueError(f"JSON has no {type(value).__name__}")


def _finite(digits: str) -> float:
    return _scalar(float(digits))


def _nesting(text: str) -> int:
    if text.count("{") + text.count("[") + text.count("(") <= MAX_NESTING:
        return 0
    depth = deepest = 0
    for match in BRACKETS.finditer(text):
        if (mark := match.group()) in "[{(":
            depth += 1
            deepest = max(deepest, depth)
        elif mark in "]})":
            depth -= 1
    return deepest


def _escape_surrogates(text: str) -> str:
    return SURROGATE.sub(lambda match: f"\\u{ord(match.group()):04x}", text)
