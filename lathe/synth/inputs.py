"""Inputs for a function by typed strategies: hypothesis draws, constants of the program and values of the
corpus among what it draws from."""

from __future__ import annotations

import ast
import random
import re
import string
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from lathe.errors import MissingExtra
from lathe.synth.argument_types import Observed, Parameter
from lathe.synth.inside.lab import text_of

MAX_INPUT_CHARS = 300
Strategy = Any  # hypothesis is an extra


@dataclass(frozen=True)
class Constants:
    """What a program's own text suggests: its numbers and theirs neighbours, its texts, their characters."""

    ints: tuple[int, ...] = ()
    floats: tuple[float, ...] = ()
    texts: tuple[str, ...] = ()
    patterns: tuple[tuple[str, int], ...] = ()  # regular expressions, with their flags

    @classmethod
    def of(cls, tree: ast.AST) -> Constants:
        values = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
        docs = [ast.get_docstring(node, clean=False) for node in ast.walk(tree)
                if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module)]  # fmt: skip
        ints = {
            near
            for each in values
            if type(each) is int and abs(each) < 10**6
            for near in (each - 1, each, each + 1)
        }
        floats = {each for each in values if type(each) is float and each - each == 0}
        texts = {each for each in values if type(each) is str and 0 < len(each) <= 40 and each not in docs}
        patterns = dict.fromkeys(patterns_of(tree))
        return cls(
            tuple(sorted(ints))[:60],
            tuple(sorted(floats))[:30],
            tuple(sorted(texts))[:60],
            tuple(patterns)[:8],
        )


def patterns_of(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """The regular expressions that a program compiles or asks for."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("re.") and node.args:
            pattern = node.args[0]
            if (
                isinstance(pattern, ast.Constant)
                and isinstance(pattern.value, str)
                and len(pattern.value) < 1000
            ):
                said = ast.unparse(node)
                named = ("VERBOSE", "IGNORECASE", "MULTILINE", "DOTALL", "ASCII")
                flags = sum(int(re.RegexFlag[name]) for name in named if f"re.{name}" in said)
                try:
                    re.compile(pattern.value, flags)
                except (re.error, RecursionError, OverflowError):
                    continue
                yield pattern.value, flags


class CantMake(Exception):
    """No strategy makes values of such a type."""


def draw(strategy: Strategy, count: int, seed: int) -> list[Any]:
    """So many values, simple ones among them; the same for the same seed. Raises MissingExtra."""
    hypothesis = import_hypothesis()
    drawn: list[Any] = []

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(strategy)
    def note(value: Any) -> None:
        drawn.append(value)

    state = random.getstate()
    try:
        with no_constants_of_modules():
            note()
    finally:
        random.setstate(state)
    return drawn


@contextmanager
def no_constants_of_modules() -> Iterator[None]:
    """hypothesis also draws constants of whatever modules of one's own are imported: a seed would give other
    values in another process. No setting turns that off."""
    from hypothesis.internal.conjecture import providers

    kept = providers._get_local_constants, providers.CONSTANTS_CACHE
    providers._get_local_constants = providers.Constants
    providers.CONSTANTS_CACHE = type(providers.CONSTANTS_CACHE)(1024)  # what it had knows such constants
    try:
        yield
    finally:
        providers._get_local_constants, providers.CONSTANTS_CACHE = kept


def import_hypothesis() -> Any:
    try:
        import hypothesis
    except ImportError:
        raise MissingExtra("synth") from None
    return hypothesis


def strategy_of(kind: str, known: Constants) -> Strategy:
    """Values of a type that is written as in an annotation. Raises CantMake."""
    import_hypothesis()
    return _strategy(ast.parse(kind, mode="eval").body, known)


def _strategy(node: ast.expr, known: Constants) -> Strategy:
    from hypothesis import strategies as st

    match node:
        case ast.Constant(value=None):
            return st.none()
        case ast.Name(id=name):
            if name in ("list", "set", "frozenset", "tuple"):
                node = ast.parse(f"{name}[int, ...]" if name == "tuple" else f"{name}[int]", mode="eval").body
                return _strategy(node, known)
            if name == "dict":
                return _strategy(ast.parse("dict[str, int]", mode="eval").body, known)
            made = scalars(known).get(name)
            if made is None:
                raise CantMake(name)
            return made
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return st.one_of(_strategy(left, known), _strategy(right, known))
        case ast.Subscript(value=ast.Name(id="Literal"), slice=inner):
            values = [
                ast.literal_eval(each) for each in (inner.elts if isinstance(inner, ast.Tuple) else [inner])
            ]
            return st.sampled_from(values)
        case ast.Subscript(value=ast.Name(id=name), slice=inner):
            parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
            is_open = isinstance(parts[-1], ast.Constant) and parts[-1].value is ...
            inside = [_strategy(each, known) for each in (parts[:-1] if is_open else parts)]
            return _container(name, inside, is_open)
    raise CantMake(ast.unparse(node))


def _container(name: str, inside: list[Strategy], is_open: bool) -> Strategy:
    from hypothesis import strategies as st

    first = inside[0]
    try:
        match name:
            case "list":
                return lists(first)
            case "tuple" if is_open:
                return lists(first).map(tuple)
            case "tuple":
                return st.tuples(*inside)
            case "set":
                return st.sets(first, max_size=6)
            case "frozenset":
                return st.frozensets(first, max_size=6)
            case "dict" if len(inside) == 2:
                return st.dictionaries(first, inside[1], max_size=5)
    except Exception as error:  # hypothesis refuses what can't be hashed
        raise CantMake(name) from error
    raise CantMake(name)


def lists(inner: Strategy) -> Strategy:
    """Also sorted ones and ones with repeated items, which chance seldom makes."""
    from hypothesis import strategies as st

    plain = st.lists(inner, max_size=8)
    few = st.lists(inner, min_size=1, max_size=3).flatmap(
        lambda some: st.lists(st.sampled_from(some), max_size=8)
    )
    return st.one_of(plain, plain, few, plain.map(in_order))


def in_order(items: list[Any]) -> list[Any]:
    try:
        return sorted(items)
    except TypeError:
        return items


def scalars(known: Constants) -> dict[str, Strategy]:
    from hypothesis import strategies as st

    small = st.integers(-10, 10)
    ints = [small, st.integers(0, 30), st.integers(-1000, 1000), st.integers(1900, 2100)]
    if known.ints:
        ints.append(st.sampled_from(known.ints))
    halves = st.integers(-40, 40).map(lambda number: number / 4)
    floats = [halves, st.floats(0, 1, width=16), st.floats(-1000, 1000, width=32), small.map(float)]
    if known.floats:
        floats.append(st.sampled_from(known.floats))
    return {
        "int": st.one_of(*ints),
        "float": st.one_of(*floats),
        "str": texts(known),
        "bool": st.booleans(),
        "bytes": st.one_of(st.binary(max_size=8), texts(known).map(lambda text: text.encode()[:40])),
        "bytearray": st.binary(max_size=8).map(bytearray),
        "complex": st.tuples(halves, halves).map(lambda pair: complex(*pair)),
        "range": st.tuples(small, small).map(lambda pair: range(*sorted(pair))),
        "Any": st.one_of(*ints),
        "None": st.none(),
    }


def texts(known: Constants) -> Strategy:
    """Words, spaces and digits; and the program's own texts and characters, alone and between others."""
    from hypothesis import strategies as st

    alphabet = st.characters(max_codepoint=126)
    own = "".join(sorted({char for text in known.texts for char in text}))[:60]
    letters = st.text(string.ascii_letters, min_size=1, max_size=6)
    words = st.lists(st.text("abcAB", min_size=1, max_size=4), max_size=4).map(" ".join)
    line = st.tuples(st.sampled_from(["", " ", "  ", "    ", "\t"]), st.text("abc, ", max_size=6)).map(
        "".join
    )
    lines = st.lists(line, min_size=1, max_size=4).map("\n".join)
    mixed = st.text(own + "ab1 \n", max_size=12)
    kinds = [
        letters,
        st.characters(min_codepoint=32, max_codepoint=126),
        words,
        lines,
        mixed,
        st.text("0123456789.-+", max_size=6),
        st.text(string.printable[:95], max_size=10),
    ]
    if known.texts:
        piece = st.one_of(
            st.sampled_from(known.texts), letters, st.text("0123456789", min_size=1, max_size=3)
        )
        kinds += [st.sampled_from(known.texts), st.lists(piece, max_size=5).map("".join)]
    kinds += [
        st.from_regex(re.compile(pattern, flags), alphabet=alphabet, fullmatch=whole)
        for pattern, flags in known.patterns
        for whole in (True, False)
    ]
    return st.one_of(*kinds)


# Whole calls


def call_text(args: Sequence[str], kwargs: Sequence[tuple[str, str]] = ()) -> str:
    """A call's arguments as the lab reads them: the source of (args, kwargs)."""
    named = ", ".join(f"{name!r}: {value}" for name, value in kwargs)
    return f"(({''.join(f'{each}, ' for each in args)}), {{{named}}})"


def drawn_calls(
    parameters: Sequence[Parameter], types: Sequence[str], known: Constants, count: int, seed: int
) -> list[str]:
    """Calls whose arguments have these types, without repetition. Raises CantMake, MissingExtra.

    Not for threads: CPython 3.11 keeps one depth of syntax trees for all of them (python/cpython#106905), and
    parsing in two at once is a SystemError.
    """
    import_hypothesis()
    from hypothesis import strategies as st

    whole = st.tuples(*(strategy_of(kind, known) for kind in types))
    found: dict[str, None] = {}
    for number, values in enumerate(draw(whole, count, seed)):
        if number % 2:
            values = equally_long(values)
        sources = [text_of(value) for value in values]
        plain = [text for each, text in zip(parameters, sources, strict=True) if not each.is_keyword]
        named = [(each.name, text) for each, text in zip(parameters, sources, strict=True) if each.is_keyword]
        text = call_text(plain, named)
        if len(text) <= MAX_INPUT_CHARS:
            found[text] = None
    return list(found)


def equally_long(values: Sequence[Any]) -> list[Any]:
    """Lists that belong together have one length, which chance seldom gives them."""
    lengths = [len(each) for each in values if isinstance(each, list)]
    return [each[: min(lengths)] if isinstance(each, list) else each for each in values]


def observed_calls(observed: Sequence[Observed]) -> list[str]:
    """The corpus' own calls."""
    return list(dict.fromkeys(call_text(each.args, each.kwargs) for each in observed))
