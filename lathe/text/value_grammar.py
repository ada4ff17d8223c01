"""What a parameter's value may be in Qwen3-Coder's XML, where strings stand as they are and the rest as JSON.

It is written for the reader (`tool_call_xml`): what a grammar lets through, the reader must take for the same
value. Two layouts, as models write them: the value in lines of its own, as the templates do, or in its tags'
line. A model that knows no newlines there must not be forced into them.

**A free string** may hold anything but what its reader would take for the value's end or for a call that the
value quotes: </parameter> right before another tag of a call, </function></tool_call>, <function=...> right
before <parameter=...> or </function>, and <parameter=NAME> with a name that the tool declares. It is read in
segments that begin with "<": inside of one, the mask of allowed tokens is found at once, and only at its
beginning in milliseconds.

**Any other string** (with a pattern or a length, or beside numbers) holds no "<" at all, and is no text that
the reader would take for another type that the schema declares before it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lathe.text.schema_grammar import Rules, embed
from lathe.text.tool_arguments import Schema, follow, json_text

END = "</parameter>"
MAX_REFERENCES = 50

SPACE = r"[\s\x1c-\x1f]*"  # what Python's strip() takes
SCALARS = {
    "integer": r"/-?(0|[1-9][0-9]{0,17})/",
    "number": r"/-?(0|[1-9][0-9]{0,17})(\.[0-9]{1,17})?([eE][+-]?[0-9]{1,2})?/",
    "boolean": "/[tT]rue|[fF]alse/",
    "null": "/null|None/",
}
# The texts that the reader takes for a type, and some more.
NUMBERLIKE = rf"/{SPACE}[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?{SPACE}/"
STRUCTURELIKE = rf"/(?s:{SPACE}([\[{{(\"'#\\]|[uUrRbB]{{1,2}}[\"']).*)/"
READ_AS = {
    "integer": NUMBERLIKE,
    "number": NUMBERLIKE,
    "boolean": rf"/{SPACE}(?i:true|false){SPACE}/",
    "null": rf"/{SPACE}(null|None){SPACE}/",
    "object": STRUCTURELIKE,
    "array": STRUCTURELIKE,
}
TAGS = re.compile(r"</|<tool_call>|<(?:function|parameter)=")
STRUCTURES = {"properties", "items", "prefixItems"}
NOT_SUPPORTED = ("not", "if", "$dynamicRef", "$recursiveRef")

NEWLINE = '"\\n"'
LAID_END = f'"{END}\\n"'
END_IN_LINE = r"/<\/parameter>\n?/"
# Where a parameter may follow that the tool does not declare: its reader takes it for one on a new line only.
END_OF_LINE = r"/<\/parameter>\n/"


class NotExpressible(Exception):
    """A schema says what these grammars can't say."""


@dataclass(frozen=True)
class Value:
    """One parameter's value: its schema as the grammar shall have it (lean, with all that it refers to), and
    as the reader has it. `end` is the terminal that ends it in its tag's line."""

    schema: Mapping[str, Any]
    read: Schema
    strict: bool
    end: str = END_IN_LINE


def free_text(rules: Rules, siblings: Iterable[str], end: str = END_IN_LINE) -> str:
    """The rule for a free string, with its end, in a function with these parameters.

    Its segments are calm, or they `open` what certain tags would go on with, or `close` a call that a
    </tool_call> would end.
    """
    declared = "|".join(re.escape(name).replace("/", r"\/") for name in siblings)
    opens = rules.terminal(r"/<(\/parameter\/?|function=\w[\w.:\/-]*)>[ \t\r\n]*/")
    closes = rules.terminal(r"/<\/function\/?>[ \t\r\n]*/")
    calm = rules.terminal(rf"/<[^<]*/ & ~({opens} | {closes} | /<parameter=({declared})>[^<]*/)")
    after_opens = rules.terminal(rf"{calm} & ~/<(parameter=|\/function|\/tool_call)[^<]*/")
    after_closes = rules.terminal(rf"{calm} & ~/<\/tool_call[^<]*/")
    more = rules.rule(
        f"({calm} | {closes}* {opens} {opens}* {after_opens} | {closes} {closes}* {after_closes})* "
        f"{closes}* {opens}*"
    )
    laid, inline = rules.terminal(r"/\n[^<]*/"), rules.terminal(r"/[^<\r\n][^<]*/")
    return rules.rule(f"{laid} {more} {LAID_END} | {inline}? {more} {rules.terminal(end)}")


def written(value: Value, rules: Rules, free: str) -> str:
    """The rule for a value with its end. `free` is the one for a free string. Raises NotExpressible."""
    schema, types = value.schema, value.read.types or ("string",)
    if "enum" in schema or "const" in schema:
        return rules.rule(" | ".join(_literals(value, rules)))
    plain = plain_types(schema)
    if "string" not in types:
        if plain and plain <= SCALARS.keys():
            return rules.rule(_lexemes(rules, value.end, [SCALARS[name] for name in sorted(plain)]))
        if "type" not in schema and STRUCTURES & schema.keys():
            schema = {**schema, "type": list(types)}  # properties alone allow a number, too
        structure = rules.rule(embed(schema, strict=value.strict))
        inline = "" if {"object", "array"} & {*types} else f" | {structure} {rules.terminal(value.end)}"
        return rules.rule(f"{NEWLINE} {structure} {NEWLINE}? {LAID_END}{inline}")
    earlier = types[: types.index("string")]
    text = _text(schema, schema, MAX_REFERENCES)
    if text == "" and not earlier:
        return free
    alternatives = []
    if structures := [name for name in earlier if name in ("object", "array")]:
        wanted = _narrowed(schema, structures)
        structure = rules.rule(embed(wanted, strict=value.strict))
        alternatives.append(f"{NEWLINE} {structure} {NEWLINE}? {LAID_END}")
    parts = [SCALARS[name] for name in (*earlier, "null") if name in SCALARS and name in plain]
    if text is not None:
        read_otherwise = {READ_AS[name] for name in earlier if name in READ_AS}
        if value.read.nullable:
            read_otherwise.add(READ_AS["null"])
        terms = ["/[^<]*/", *([text] if text else []), *(f"~{pattern}" for pattern in sorted(read_otherwise))]
        parts.append(" & ".join(terms))
    if parts:
        alternatives.append(_lexemes(rules, value.end, parts))
    if not alternatives:
        raise NotExpressible("no text is such a value")
    return rules.rule(" | ".join(alternatives))


def _lexemes(rules: Rules, end: str, texts: list[str]) -> str:
    """Any of these texts, in both layouts. In one lexeme with its end: a lexer never goes back."""
    text = rules.terminal(" | ".join(f"({text})" for text in texts))
    laid = rules.terminal(rf"{text} /\n<\/parameter>\n/")
    inline = rules.terminal(rf"({text} & /[^\r\n<]([^<]*[^\n<])?/) {end}")
    return f"{NEWLINE} {laid} | {inline}"


def _literals(value: Value, rules: Rules) -> list[str]:
    """The values of an enumeration that the reader reads as they are meant."""
    schema = value.schema
    alternatives = []
    for literal in [schema["const"]] if "const" in schema else schema["enum"]:
        text = literal if isinstance(literal, str) else json_text(literal)
        if TAGS.search(text) or json_text(value.read.read(text)) != json_text(literal):
            continue
        if (allowed := _types(schema)) and not {*_type_names(literal)} & {*allowed}:
            continue
        alternatives.append(json.dumps(f"\n{text}\n{END}\n"))
        if text and not text.startswith(("\r", "\n")) and not text.endswith("\n"):
            alternatives.append(f"{json.dumps(text)} {rules.terminal(value.end)}")
    if not alternatives:
        raise NotExpressible("none of its values can be written")
    return alternatives


def _text(schema: Any, root: Any, references: int) -> str | None:
    """The strings that a schema allows, as a term of Lark: "" for all, None for none."""
    if schema is True or schema == {}:
        return ""
    if not isinstance(schema, Mapping) or references < 0:
        raise NotExpressible("it refers to itself")
    for keyword in NOT_SUPPORTED:
        if keyword in schema:
            raise NotExpressible(f"{keyword} is not supported")
    if (types := _types(schema)) and "string" not in types:
        return None
    terms: list[str | None] = []
    if "$ref" in schema:
        terms.append(_text(follow(schema["$ref"], root), root, references - 1))
    if "const" in schema or "enum" in schema:
        values = [schema["const"]] if "const" in schema else schema["enum"]
        texts = [json.dumps(one) for one in values if isinstance(one, str)]
        terms.append(f"({' | '.join(texts)})" if texts else None)
    if "pattern" in schema:
        terms.append(_pattern(schema["pattern"]))
    if "minLength" in schema or "maxLength" in schema:
        terms.append(f"/(?s:.{{{schema.get('minLength', 0)},{schema.get('maxLength', '')}}})/")
    terms += [_text(one, root, references - 1) for one in schema.get("allOf", ())]
    for keyword in ("anyOf", "oneOf"):
        if keyword in schema:
            terms.append(_union([_text(one, root, references - 1) for one in schema[keyword]], keyword))
    if None in terms:
        return None
    kept = [term for term in terms if term]
    return f"({' & '.join(kept)})" if kept else ""


def _union(texts: list[str | None], keyword: str) -> str | None:
    possible = [text for text in texts if text is not None]
    if keyword == "oneOf" and len(possible) > 1:
        raise NotExpressible("oneOf with more than one kind of string is not supported; say anyOf")
    if not possible:
        return None
    return "" if "" in possible else f"({' | '.join(possible)})"


def _pattern(pattern: str) -> str:
    """A regular expression that is searched for, as one that matches the whole text."""
    from llguidance import regex_to_lark

    anything, branches = "(?s:.*)", []
    for branch in _branches(pattern):
        starts = branch.startswith("^")
        ends = len(branch) > starts and re.search(r"(?<!\\)(?:\\\\)*\$\Z", branch) is not None
        body = branch[starts : len(branch) - ends]
        if any(mark in "^$" for mark in re.findall(r"\\.|\[(?:\\.|[^\]])*\]|.", body, re.DOTALL)):
            raise NotExpressible("a pattern's ^ and $ must stand at its ends")
        branches.append(f"{'' if starts else anything}(?:{body}){'' if ends else anything}")
    return f"/{regex_to_lark('|'.join(branches), 'dw')}/"


def _branches(pattern: str) -> list[str]:
    """The alternatives of a regular expression, those that no parentheses hold together."""
    depth, start, branches = 0, 0, []
    for match in re.finditer(r"\\.|\[(?:\\.|[^\]])*\]|[()|]", pattern, re.DOTALL):
        mark = match.group()
        depth += (mark == "(") - (mark == ")")
        if mark == "|" and depth == 0:
            branches.append(pattern[start : match.start()])
            start = match.end()
    return [*branches, pattern[start:]]


def _narrowed(schema: Mapping[str, Any], types: list[str]) -> dict[str, Any]:
    """The schema for these types alone. Definitions stay at the top, where references look for them."""
    inner = {key: one for key, one in schema.items() if key != "$defs"}
    definitions = {"$defs": schema["$defs"]} if "$defs" in schema else {}
    return {"allOf": [inner, {"type": types}], **definitions}


def plain_types(schema: Any) -> set[str]:
    """The types that a schema allows, where it says nothing else. Nothing where it does."""
    if not isinstance(schema, Mapping):
        return set()
    if schema.keys() == {"type"}:
        return {*_types(schema)}
    if schema.keys() == {"anyOf"} and isinstance(schema["anyOf"], list):
        found = [plain_types(one) for one in schema["anyOf"]]
        return set().union(*found) if all(found) else set()
    return set()


def _types(schema: Mapping[str, Any]) -> tuple[str, ...]:
    declared = schema.get("type", [])
    return tuple(map(str, declared if isinstance(declared, list) else [declared]))


def _type_names(literal: Any) -> tuple[str, ...]:
    names = Schema({"const": literal}).types or ("null",)
    return (*names, "number") if "integer" in names else names
