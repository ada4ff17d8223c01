"""JSON schemas as grammars: what a reply, or one value in it, must look like.

A `Grammar` is plain text in llguidance's dialect of Lark, in which a JSON schema stands as it is
(`%json {...}`). This module writes the parts that have to do with schemas: which keywords are left out, what
is too large, and what can't be imposed at all. llguidance itself says the last; it is asked here without any
vocabulary, before a request gets near a model.

**What is imposed** is what llguidance knows of JSON Schema (Draft 2020-12): types, enum, const, properties in
the order of their declaration, required, additionalProperties, patternProperties, items, prefixItems, lengths
and counts, bounds, multipleOf, pattern without look-around, the common formats, $ref, anyOf, allOf, and oneOf
where no two alternatives overlap. The rest (`not`, `if`, `uniqueItems` …) is refused when `strict`, and left
out when not. A format that is not known is an annotation, as the standard has it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from lathe.errors import GrammarError
from lathe.text import reasoning
from lathe.types import Grammar

# Schemas come from anybody. Within these limits the slowest that was found compiles in a few seconds.
MAX_CHARACTERS = 200_000
MAX_NODES = 10_000
MAX_PROPERTIES = 1_000  # of one object: the time to compile grows with their square
MAX_NESTING = 100

ANNOTATIONS = frozenset({
    "title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly",
    "nullable", "$comment", "$schema", "$id", "$anchor", "discriminator", "externalDocs", "xml", "x-guidance",
})  # fmt: skip
FORMATS = frozenset(
    {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"}
)
NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
VALUES = ("enum", "const", "required", "dependentRequired")

SELF = "\0"  # no character of a grammar

# White space as a model lays JSON out, but never without end: a model that can't decide would go on for ever.
SPACE = r"\r?\n[ \t]{0,64}|[ \t]{1,4}"


class Rules:
    """The rules of a grammar as they are written. The same rule is written once, whoever needs it."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._counted: set[str] = set()
        self._problems: dict[str, str | None] = {}

    def rule(self, body: str) -> str:
        """The name of a rule with this body."""
        return self._names.setdefault(body, f"r{len(self._names)}")

    def counted(self, body: str) -> str:
        """The name of a rule with a number of 64 bits, which its body may test and change (llguidance calls
        it parametric). `SELF` in the body stands for the rule itself."""
        name = self.rule(body)
        self._counted.add(name)
        return name

    def terminal(self, body: str) -> str:
        """The name of a terminal: what its body says is one lexeme."""
        return self._names.setdefault(body, f"T{len(self._names)}")

    def problem(self, lark: str) -> str | None:
        """Why a part of the grammar can't be compiled (see `problem`). Asked once: tools are much alike."""
        if lark not in self._problems:
            self._problems[lark] = problem(lark)
        return self._problems[lark]

    def text(self, start: str) -> str:
        """The grammar that begins with the rule `start`."""
        lines = [f"start: {start}"]
        for body, name in self._names.items():
            head = f"{name}::_" if name in self._counted else name
            lines.append(f"{head}: {body.replace(SELF, name)}")
        return "\n".join(lines) + "\n"


def json_grammar(schema: Any, *, strict: bool = True) -> Grammar:
    """One JSON value that satisfies `schema`. Raises GrammarError when that can't be imposed."""
    lark = f"start: {embed(lean(schema), strict=strict)}\n"
    if reason := problem(lark):
        raise GrammarError(f"The schema can't be imposed on a reply: {reason}.")
    return Grammar("lark", lark)


def to_lark(grammar: Grammar) -> str:
    """The grammar as Lark. Raises GrammarError when its source should be a JSON schema and is none."""
    from llguidance import regex_to_lark

    match grammar.kind:
        case "lark":
            return grammar.source
        case "regex":
            return f"start: /{regex_to_lark(grammar.source, '')}/\n"
        case "json_schema":
            try:
                schema = json.loads(grammar.source)
            except (ValueError, RecursionError) as error:
                raise GrammarError(f"The grammar's source is no JSON: {error}.") from None
            return f"start: {embed(lean(schema), strict=True)}\n"


def after_thought(grammar: Grammar, prompt_end: str) -> Grammar:
    """The grammar of a thinking model's reply: a free thought, and then what `grammar` wants.

    `prompt_end` is the text at the prompt's end, which says where in its thought the reply begins.
    """
    parser = reasoning.parser_after(prompt_end)
    if parser is None:
        return grammar
    thought = 'lathe_thought ("\\n" "\\n"?)?'
    if not parser.inside:
        thought = f"(/\\s{{0,8}}<think>/ {thought})?"
    start = f"start: {thought} lathe_reply\nlathe_thought[lazy]: /(?s:.*)<\\/think>/\n"
    return Grammar("lark", start + renamed(grammar, "lathe_reply"))


def renamed(grammar: Grammar, name: str) -> str:
    """The grammar as Lark, with another name for its first rule: a part of a larger one."""
    return re.sub(r"^start:", f"{name}:", to_lark(grammar), count=1, flags=re.MULTILINE)


def lean(schema: Any) -> dict[str, Any]:
    """The schema without what says nothing about the value. `True` is {}.

    Raises GrammarError when it is no schema, or when a grammar of it would take too much time or memory.
    """
    _check_nodes(schema)
    kept = _lean(schema)
    if not isinstance(kept, dict):
        raise GrammarError(f"Nothing satisfies {json.dumps(schema)[:40]}: a schema is an object.")
    if (size := len(json.dumps(kept))) > MAX_CHARACTERS:
        raise GrammarError(
            f"The schema is too large for a grammar: {size:,} characters without its descriptions, and "
            f"{MAX_CHARACTERS:,} are the most."
        )
    return kept


def _check_nodes(schema: Any) -> None:
    waiting = [(schema, 0)]  # a stack: a client may nest as deep as it likes
    num_nodes = 0
    while waiting:
        node, depth = waiting.pop()
        num_nodes += 1
        if num_nodes > MAX_NODES:
            raise GrammarError(f"The schema is too large for a grammar: more than {MAX_NODES:,} values.")
        if depth > MAX_NESTING:
            raise GrammarError(f"The schema is nested more than {MAX_NESTING} levels deep.")
        if isinstance(node, Mapping):
            properties = node.get("properties")
            if isinstance(properties, Mapping) and len(properties) > MAX_PROPERTIES:
                raise GrammarError(
                    f"The schema is too large for a grammar: an object has {len(properties):,} properties, "
                    f"and {MAX_PROPERTIES:,} are the most."
                )
            waiting += [(one, depth + 1) for one in node.values()]
        elif isinstance(node, list):
            waiting += [(one, depth + 1) for one in node]


def _lean(schema: Any) -> Any:
    if schema is True:
        return {}
    if not isinstance(schema, Mapping):
        return schema
    kept: dict[str, Any] = {}
    for key, inner in schema.items():
        if key in ANNOTATIONS or (key == "format" and str(inner) not in FORMATS):
            continue
        if key in NAMED and isinstance(inner, Mapping):
            kept[key] = {name: _lean(one) for name, one in inner.items()}
        elif key in VALUES or not isinstance(inner, (Mapping, list)):
            kept[key] = inner
        else:
            kept[key] = _lean(inner) if isinstance(inner, Mapping) else [_lean(one) for one in inner]
    return kept


def embed(schema: Mapping[str, Any], *, strict: bool) -> str:
    """A lean schema as a term of Lark."""
    options = {"whitespace_pattern": SPACE, "json_allow_general_unicode_escapes": True, "lenient": not strict}
    return f"%json {json.dumps({**schema, 'x-guidance': options})}"


def problem(lark: str) -> str | None:
    """Why this grammar can't be compiled; None if it can."""
    from llguidance import LLMatcher  # megabytes that most requests don't need

    reason = LLMatcher.validate_grammar(LLMatcher.grammar_from_lark(lark), limits=parser_limits())
    return None if not reason or reason.startswith("WARNING") else readable(reason)


def parser_limits() -> Any:
    """What llguidance may spend on a grammar and on a step in it. By its own limits, an object with 1,000
    optional properties has too many beginnings, and a pattern such as ((a{1000}){1000}){1000} holds up a step
    for seconds before it is given up."""
    from llguidance import LLParserLimits

    return LLParserLimits(
        max_items_in_row=20_000, step_max_items=200_000, initial_lexer_fuel=300_000, verbose_errors=False
    )


def readable(reason: str) -> str:
    """What llguidance says about a grammar, without the places in a text that no user has written."""
    if "oneOf constraints are not supported" in reason:
        return "oneOf with alternatives that overlap is not supported; say anyOf"
    if "recursion limit exceeded" in reason:
        return "it is nested too deeply"
    lines = [
        re.sub(r"^.*failed to compile JSON schema: |^at \d+\(\d+\): ", "", line)
        for line in reason.splitlines()
    ]
    words = [line.strip() for line in lines if line.strip(" ^") and not re.match(r"<|\s*\d+ \| ", line)]
    return " ".join(words)[:300].rstrip(".") or "it is not understood"
