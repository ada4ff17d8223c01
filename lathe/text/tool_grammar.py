"""Tool calls as a grammar: a model that must call a tool can say nothing but valid calls, in its own syntax.

What the grammar lets through is what `tool_calls.parse` reads as complete calls of tools on offer, with
arguments that satisfy their schemas. One exception: a number past the range of a double stays text, as ever.
Parameters may come in any order in Qwen3-Coder's XML, in that of their declaration in Qwen3's JSON; each at
most once, all required ones, and no others unless `additionalProperties` says so.

Schemas are other people's, and an odd one must not take the tool away: what can't be imposed is free, a value
of its type or any text. A tool that is `strict` is refused instead.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lathe.errors import GrammarError
from lathe.text.schema_grammar import MAX_CHARACTERS, SELF, VALUES, Rules, embed, lean, renamed
from lathe.text.tool_arguments import Schema, follow
from lathe.text.tool_call_text import FUNCTION, PARAMETER
from lathe.text.tool_calls import Dialect
from lathe.text.value_grammar import (
    END_IN_LINE,
    END_OF_LINE,
    NotExpressible,
    Value,
    free_text,
    plain_types,
    written,
)
from lathe.types import Grammar, Tool

MAX_CALLS = 16  # of one reply; a model that can't stop must
MAX_PARAMETERS = 60  # of one call: which were written is kept in 64 bits

TYPES = {"string", "integer", "number", "boolean", "null", "object", "array"}

# What an object's own schema may say beside its properties and can't be imposed on a call.
ODD = (
    "anyOf", "oneOf", "not", "if", "then", "else", "enum", "const", "patternProperties", "propertyNames",
    "minProperties", "maxProperties", "dependentRequired", "dependentSchemas", "unevaluatedProperties",
)  # fmt: skip


def tool_grammar(
    tools: Sequence[Tool],
    dialect: Dialect,
    *,
    name: str | None = None,
    parallel: bool = True,
    answer: Grammar | None = None,
) -> Grammar:
    """Calls of these tools and nothing else: one, or up to 16 if `parallel`; one of `name` if that is given.
    With `answer`, a reply that keeps to that grammar will do as well.

    Raises GrammarError, which names the tool, when one is strict and can't be imposed, when no tool's name
    can be written, or when the schemas are too large.
    """
    rules = Rules()
    call = call_rule(tools, dialect, rules, name=name)
    newline = rules.terminal('"\\n"')
    more = "" if name or not parallel else f" ({newline}? {call}){{0,{MAX_CALLS - 1}}}"
    if answer is None:
        return Grammar("lark", rules.text(call + more))
    return Grammar("lark", rules.text(f"{call}{more} | lathe_answer") + renamed(answer, "lathe_answer"))


def call_rule(tools: Sequence[Tool], dialect: Dialect, rules: Rules, *, name: str | None = None) -> str:
    """The rule for one call, with its wrapper."""
    offered = [tool for tool in tools if name is None or tool.name == name]
    if dialect == "qwen3_coder":
        offered = [tool for tool in offered if re.fullmatch(FUNCTION, tool.name)]
    if not offered:
        raise GrammarError(
            "There is no tool whose name a call could hold: letters, digits and _.:/- are allowed."
        )
    arguments = [_arguments(tool) for tool in offered]
    if (size := sum(one.size for one in arguments)) > MAX_CHARACTERS:
        raise GrammarError(
            f"The tools' schemas have {size:,} characters without their descriptions, too many for a grammar "
            f"(at most {MAX_CHARACTERS:,}). Offer fewer tools, or leave the choice to the model."
        )
    write = _xml_call if dialect == "qwen3_coder" else _json_call
    calls = rules.rule(" | ".join(write(one, rules) for one in arguments))
    newline = rules.terminal('"\\n"')
    return rules.rule(f'"<tool_call>" {newline}? {calls} {newline}? "</tool_call>"')


@dataclass(frozen=True)
class _Arguments:
    """A tool's parameters, lean, with references that lead from the top of any schema they are put in.

    `more` is the schema of parameters that are not declared, None where there may be none.
    """

    tool: Tool
    properties: dict[str, Any]
    required: list[str]
    more: Any
    definitions: dict[str, Any]
    read: Schema  # as the parser reads it

    @property
    def size(self) -> int:
        return len(json.dumps([self.properties, self.more, self.definitions]))

    def standalone(self, schema: Any) -> Any:
        """The schema of a parameter with all that it refers to."""
        needs = isinstance(schema, Mapping) and self.definitions and '"$ref"' in json.dumps(schema)
        return {**schema, "$defs": self.definitions} if needs else schema

    @property
    def end(self) -> str:
        """What ends a value in its tag's line."""
        return END_IN_LINE if self.more is None else END_OF_LINE


def _arguments(tool: Tool) -> _Arguments:
    try:
        root = _rebased(lean(tool.parameters or {}))
    except GrammarError as error:
        raise GrammarError(f"The tool {tool.name} can't be imposed on a call. {error}") from None
    properties: dict[str, Any] = {}
    required: list[str] = []
    more: Any = None
    for schema, is_certain in _merged(root):
        if tool.strict and (odd := [keyword for keyword in ODD if keyword in schema]):
            raise GrammarError(f"The tool {tool.name} is strict, but {odd[0]} can't be imposed on a call.")
        if "additionalProperties" in schema:
            extra = schema["additionalProperties"]
            more = {} if extra is True else extra if isinstance(extra, Mapping) else None
        for key, inner in _mapping(schema.get("properties")).items():
            known = properties.get(key)
            combined = {"allOf" if is_certain else "anyOf": [known, inner]}
            properties[key] = inner if known is None else combined
        if is_certain and isinstance(schema.get("required"), list):
            required += [key for key in schema["required"] if isinstance(key, str)]
    required = list(dict.fromkeys(required))
    for key in required:
        properties.setdefault(key, more or {})
    return _Arguments(tool, properties, required, more, {"root": root}, Schema(tool.parameters or {}))


def _merged(root: Any) -> Iterator[tuple[Mapping[str, Any], bool]]:
    """An object's schema, those that hold as well ($ref, allOf), and those that may hold (anyOf, oneOf)."""
    waiting, seen = [(root, True)], set()
    while waiting:
        schema, is_certain = waiting.pop()
        if not isinstance(schema, Mapping) or id(schema) in seen:
            continue
        seen.add(id(schema))
        yield schema, is_certain
        inner = []
        if isinstance(schema.get("$ref"), str):
            inner.append((follow(schema["$ref"], {"$defs": {"root": root}}), is_certain))
        for keyword in ("allOf", "anyOf", "oneOf"):
            if isinstance(schema.get(keyword), list):
                inner += [(one, is_certain and keyword == "allOf") for one in schema[keyword]]
        waiting += reversed(inner)


def _rebased(schema: Any) -> Any:
    """The schema with its references, which count from its own top, led through "$defs/root"."""
    if isinstance(schema, list):
        return [_rebased(one) for one in schema]
    if not isinstance(schema, Mapping):
        return schema
    rebased = {}
    for key, inner in schema.items():
        if key == "$ref" and isinstance(inner, str) and inner.startswith("#"):
            rebased[key] = f"#/$defs/root{inner[1:]}"
        else:
            rebased[key] = inner if key in VALUES else _rebased(inner)
    return rebased


def _json_call(arguments: _Arguments, rules: Rules) -> str:
    tool = arguments.tool
    properties = {
        name: _imposed(arguments, name, inner, rules) for name, inner in arguments.properties.items()
    }
    more = False if arguments.more is None else _imposed(arguments, "", arguments.more, rules)
    schema = {
        "type": "object",
        "properties": {
            "name": {"const": tool.name},
            "arguments": {
                "type": "object",
                "properties": properties,
                "required": arguments.required,
                "additionalProperties": more,
            },
        },
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }
    return rules.rule(embed(arguments.standalone(schema), strict=tool.strict))


def _imposed(arguments: _Arguments, name: str, schema: Any, rules: Rules) -> Any:
    """The schema of a parameter, or what is left of it where it can't be imposed; that of undeclared ones
    where `name` is empty."""
    if not (reason := _problem(arguments, schema, rules)):
        return schema
    if arguments.tool.strict:
        raise _refusal(arguments.tool, name, reason)
    loose = _loose(arguments, name)
    return {} if _problem(arguments, loose, rules) else loose


def _loose(arguments: _Arguments, name: str) -> dict[str, Any]:
    """A schema that says a parameter's types and nothing else."""
    read = arguments.read.property(name)
    types = [*read.types, *(["null"] if read.nullable else [])]
    return {"type": types} if types else {}


def _problem(arguments: _Arguments, schema: Any, rules: Rules) -> str | None:
    if not isinstance(schema, Mapping):
        return "it is no schema"
    types = plain_types(schema)
    if schema == {} or (types and types <= TYPES):
        return None
    term = embed(arguments.standalone(schema), strict=arguments.tool.strict)
    return rules.problem(f"start: {term}\n")


def _refusal(tool: Tool, name: str, reason: str) -> GrammarError:
    return GrammarError(
        f"The tool {tool.name} is strict, but its parameter {name} can't be imposed: {reason}."
    )


def _xml_call(arguments: _Arguments, rules: Rules) -> str:
    """A call with its parameters in any order. Which of them are written is a number's bits, as llguidance's
    parametric rules have it: the required ones come first."""
    tool = arguments.tool
    writable = [name for name in arguments.properties if re.fullmatch(PARAMETER, name)]
    required = [name for name in writable if name in arguments.required]
    if tool.strict and len(required) < len(arguments.required):
        raise GrammarError(f"The tool {tool.name} is strict, but the name of a parameter can't be written.")
    if len(required) > MAX_PARAMETERS:
        raise GrammarError(f"The tool {tool.name} has more than {MAX_PARAMETERS} required parameters.")
    names = [*required, *(name for name in writable if name not in required)][:MAX_PARAMETERS]
    free = free_text(rules, writable, arguments.end)
    values = {name: _xml_value(arguments, name, rules, free) for name in names}

    newline = rules.terminal('"\\n"')
    first = f'"<function={tool.name}>" {newline}?'
    ends = ['"</function>"'] if not required else []
    if arguments.more is not None:
        others = " | ".join(json.dumps(f"{name}>") for name in arguments.properties) or '">"'
        values[rules.terminal(rf"/[^\s\x00-\x1f<>{{}}]{{1,128}}>/ & ~({others})")] = _xml_value(
            arguments, "", rules, free
        )
    if values:
        ends.append(f'"<parameter=" {_parameters(values, len(required), len(names), rules)}::0')
    return rules.rule(f"{first} ({' | '.join(ends)})")


def _parameters(values: Mapping[str, str], num_required: int, num_declared: int, rules: Rules) -> str:
    """The rule for parameters from behind "<parameter=" to the end of the call."""
    lines = []
    for bit, (name, value) in enumerate(values.items()):
        is_required, is_declared = bit < num_required, bit < num_declared
        has_more = num_declared < len(values)  # undeclared ones, of which there is no end
        once = [f"bit_clear({bit})"] if is_declared else []
        others = [] if has_more else [f"bit_count_lt([0:{num_declared}], {num_declared - 1})"]
        rest = []
        if is_required and num_required > 1:
            rest = [f"bit_count_ge([0:{num_required}], {num_required - 1})"]
        elif not is_required and num_required:
            rest = [f"is_ones([0:{num_required}])"]
        begin = f"{json.dumps(f'{name}>') if is_declared else name} {value}"
        following = f"set_bit({bit})" if is_declared else "_"
        if num_declared > 1 or has_more:
            lines.append(f'{begin} "<parameter=" {SELF}::{following}{_condition(once + others)}')
        lines.append(f'{begin} "</function>"{_condition(once + rest)}')
    return rules.counted("\n | ".join(lines))


def _condition(terms: list[str]) -> str:
    if not terms:
        return ""
    return f" %if {terms[0] if len(terms) == 1 else f'and({terms[0]}, {terms[1]})'}"


def _xml_value(arguments: _Arguments, name: str, rules: Rules, free: str) -> str:
    """The rule for a parameter's value and its end; for an undeclared one where `name` is empty."""
    schema = arguments.properties.get(name, arguments.more)
    for attempt in (schema, _loose(arguments, name), {}):
        try:
            rule = _checked(arguments, name, attempt, rules, free)
        except NotExpressible as error:
            if arguments.tool.strict:
                raise _refusal(arguments.tool, name, str(error)) from None
        else:
            return rule
    return free


def _checked(arguments: _Arguments, name: str, schema: Any, rules: Rules, free: str) -> str:
    if schema == {}:
        return free
    if reason := _problem(arguments, schema, rules):
        raise NotExpressible(reason)
    value = Value(
        arguments.standalone(schema), arguments.read.property(name), arguments.tool.strict, arguments.end
    )
    if "string" in (value.read.types or ("string",)):  # else the schema stands in the grammar as it is
        trial = Rules()
        rule = written(value, trial, free)
        if rule != free and (reason := rules.problem(trial.text(rule))):
            raise NotExpressible(reason)
    return written(value, rules, free)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
