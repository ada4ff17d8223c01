"""Which values a function's arguments may have: types as annotations write them, from what the corpus says.

In the order of trust: the annotation, values that the corpus passes (doctests, calls), the default, what the
body does with the argument. Where these leave several, all are tried, and the reference decides.
"""

from __future__ import annotations

import ast
import doctest
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from lathe.synth.corpus import SourceFile

MAX_TYPES = 5
MAX_OBSERVED = 40
COMMON = ("str", "int", "list[int]", "float", "list[str]", "dict[str, int]", "list[tuple[int, int]]", "bytes",
          "set[int]", "list[list[int]]", "tuple[int, int]", "list[float]", "bool")  # fmt: skip
METHODS = {
    "str": "lower upper strip split splitlines startswith endswith replace join isdigit isalpha encode title "
           "lstrip rstrip partition rpartition isspace casefold capitalize zfill ljust rjust isidentifier "
           "expandtabs translate swapcase isalnum removeprefix removesuffix format isupper islower find",
    "bytes": "decode hex startswith",
    "list": "append extend sort insert pop reverse",
    "dict": "items keys values get setdefault update pop",
    "set": "add union intersection difference issubset discard isdisjoint",
    "int": "bit_length to_bytes bit_count",
    "float": "is_integer as_integer_ratio hex",
}  # fmt: skip


@dataclass(frozen=True)
class Observed:
    """A call that the corpus makes, its arguments as source text."""

    args: tuple[str, ...]
    kwargs: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Parameter:
    """`types` are candidates, the likeliest first. `is_needed`: it has no default."""

    name: str
    types: tuple[str, ...]
    is_needed: bool
    is_keyword: bool = False


# Calls in the corpus


def calls_in(files: Iterable[SourceFile]) -> dict[str, list[Observed]]:
    """The calls with plain arguments by the name of what is called: in the code, and in doctests."""
    found: dict[str, list[Observed]] = defaultdict(list)
    for file in files:
        if file.tree is not None:
            for tree in (file.tree, *_doctests(file.tree)):
                for name, call in _calls(tree):
                    if len(found[name]) < MAX_OBSERVED and call not in found[name]:
                        found[name].append(call)
    return found


def _doctests(tree: ast.Module) -> Iterator[ast.Module]:
    parser = doctest.DocTestParser()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            text = ast.get_docstring(node)
            try:
                examples = parser.get_examples(text) if text and ">>>" in text else []
                for example in examples:
                    yield ast.parse(example.source)
            except (SyntaxError, ValueError):
                continue


def _calls(tree: ast.Module) -> Iterator[tuple[str, Observed]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (node.args or node.keywords):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
            given = [*node.args, *(each.value for each in node.keywords)]
            if name and all(each.arg for each in node.keywords) and all(map(is_plain, given)):
                kwargs = tuple((str(each.arg), ast.unparse(each.value)) for each in node.keywords)
                yield name, Observed(tuple(map(ast.unparse, node.args)), kwargs)


def is_plain(node: ast.expr) -> bool:
    """Does the expression write out a value?"""
    try:
        ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return False
    return len(ast.unparse(node)) <= 400


# Types


def parameters_of(function: ast.FunctionDef, observed: Sequence[Observed]) -> list[Parameter] | None:
    """The parameters that can be given a value. None where one is needed whose type nobody can make."""
    found: list[Parameter] = []
    arguments = function.args
    plain = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(plain) - len(arguments.defaults)) + [*arguments.defaults]
    rows = [(arg, default, False) for arg, default in zip(plain, defaults, strict=True)]
    rows += [
        (arg, default, True) for arg, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    ]
    for place, (arg, default, is_keyword) in enumerate(rows):
        seen = [each.args[place] for each in observed if not is_keyword and place < len(each.args)]
        seen += [value for each in observed for name, value in each.kwargs if name == arg.arg]
        types = types_of(arg, default, function, seen)
        if types:
            found.append(Parameter(arg.arg, types, default is None, is_keyword))
        elif default is None:
            return None
        elif not is_keyword and place < len(plain):
            break  # what follows could only be given by name
    return found


def types_of(
    arg: ast.arg, default: ast.expr | None, function: ast.FunctionDef, seen: Sequence[str]
) -> tuple[str, ...]:
    if arg.annotation is not None:
        written = written_type(arg.annotation)
        if written is None:
            return ()
        if written != "Any":
            return (written,)
    types = list(dict.fromkeys(type_of_literal(ast.parse(value, mode="eval").body) for value in seen))
    if default is not None and not (isinstance(default, ast.Constant) and default.value is None):
        if not is_plain(default):
            return ()
        types.append(type_of_literal(default))
    used = types_of_use(arg.arg, function)
    if isinstance(default, ast.Constant) and default.value is None:
        return tuple(dict.fromkeys([*types, *used]))[:2]
    if types and len(set(types)) >= 1 and seen:
        return tuple(dict.fromkeys(types))[:MAX_TYPES]
    return tuple(dict.fromkeys([*types, *used, *(() if types or used else COMMON)]))[:MAX_TYPES]


ALIASES = {
    "Sequence": "list", "Iterable": "list", "Iterator": "list", "Collection": "list", "List": "list",
    "MutableSequence": "list", "Container": "list", "Mapping": "dict", "MutableMapping": "dict",
    "Set": "set", "AbstractSet": "set", "MutableSet": "set", "FrozenSet": "frozenset", "Tuple": "tuple",
    "Text": "str", "LiteralString": "str", "AnyStr": "str", "Hashable": "str", "NormalizedName": "str",
    "SupportsIndex": "int", "Integral": "int", "Real": "float", "Number": "float", "ReadableBuffer": "bytes",
    "object": "Any", "Dict": "dict",
}  # fmt: skip
KNOWN = {
    "int", "str", "float", "bool", "bytes", "bytearray", "complex", "None", "list", "dict", "set",
    "frozenset", "tuple", "Any", "Literal", "Optional", "Union", "range",
}  # fmt: skip


def written_type(annotation: ast.expr) -> str | None:
    """The annotation in Python's own types. "Any" where it says nothing, None where it names others."""
    match annotation:
        case ast.Constant(value=None):
            return "None"
        case ast.Constant(value=str() as text):
            try:
                return written_type(ast.parse(text, mode="eval").body)
            except SyntaxError:
                return None
        case ast.Attribute(attr=name):
            return written_type(ast.Name(name))
        case ast.Name(id=name):
            name = ALIASES.get(name, name)
            if len(name) <= 2 or name.startswith("_T"):
                return "Any"  # a type variable
            return name if name in KNOWN else None
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _union([left, right])
        case ast.Subscript(value=value, slice=inner):
            outer = written_type(value)
            parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
            if outer == "Literal":
                return f"Literal[{', '.join(map(ast.unparse, parts))}]"
            if outer == "Optional":
                return _union([*parts, ast.Constant(None)])
            if outer == "Union":
                return _union(parts)
            written = [
                "..." if isinstance(each, ast.Constant) and each.value is ... else written_type(each)
                for each in parts
            ]
            if outer in ("list", "dict", "set", "frozenset", "tuple") and None not in written:
                return f"{outer}[{', '.join('int' if each == 'Any' else str(each) for each in written)}]"
    return None


def _union(parts: Sequence[ast.expr]) -> str | None:
    """Those of the parts that can be made; None if that is no more than None."""
    written = [each for each in map(written_type, parts) if each not in (None, "Any")]
    flat = list(dict.fromkeys(part for each in written for part in str(each).split(" | ")))
    return " | ".join(flat) if set(flat) - {"None"} else None


def type_of_literal(node: ast.expr) -> str:
    return type_of_value(ast.literal_eval(node))


def type_of_value(value: object) -> str:
    """The type of a plain value, with what it holds."""
    if value is None:
        return "None"
    if isinstance(value, tuple) and 0 < len(value) <= 4:
        return f"tuple[{', '.join(map(type_of_value, value))}]"
    if isinstance(value, list | set | frozenset | tuple):
        inner = list(dict.fromkeys(map(type_of_value, value))) or ["int"]
        ends = ", ..." if isinstance(value, tuple) else ""
        return f"{type(value).__name__}[{' | '.join(sorted(inner))}{ends}]"
    if isinstance(value, dict):
        sides = [
            " | ".join(sorted(set(map(type_of_value, side)))) or "str" for side in (value, value.values())
        ]
        return f"dict[{sides[0]}, {sides[1]}]"
    return type(value).__name__


def types_of_use(name: str, function: ast.FunctionDef) -> list[str]:
    """What the body does with the argument, as types that could bear it; none where nothing is seen."""
    scores: dict[str, int] = defaultdict(int)
    for node in ast.walk(function):
        match node:
            case ast.Attribute(value=ast.Name(id=id), attr=attr) if id == name:
                kinds = [kind for kind, methods in METHODS.items() if attr in methods.split()]
                if not kinds:
                    return ["object"]
                for kind in kinds:
                    scores[kind] += 3
            case ast.Subscript(value=ast.Name(id=id)) if id == name:
                scores["list"] += 2
                scores["str"] += 1
            case ast.For(iter=ast.Name(id=id)) | ast.comprehension(iter=ast.Name(id=id)) if id == name:
                scores["list"] += 2
                scores["str"] += 1
            case ast.Call(func=ast.Name(id=called), args=args):
                if any(isinstance(each, ast.Name) and each.id == name for each in args):
                    for kind in CALLED.get(called, ()):
                        scores[kind] += 2
                if called == "isinstance" and len(args) == 2 and getattr(args[0], "id", None) == name:
                    for each in ast.walk(args[1]):
                        if isinstance(each, ast.Name) and each.id in FILLED:
                            scores[each.id] += 3
            case ast.BinOp(left=left, right=right):
                sides = [left, right]
                if any(isinstance(each, ast.Name) and each.id == name for each in sides):
                    other = next((each for each in sides if isinstance(each, ast.Constant)), None)
                    kind = type(other.value).__name__ if other is not None else "int"
                    scores[kind if kind in METHODS else "int"] += 2
                    if kind == "int":
                        scores["float"] += 1
            case ast.Compare(left=ast.Name(id=id), comparators=[ast.Constant(value=value)]) if id == name:
                if type(value).__name__ in METHODS:
                    scores[type(value).__name__] += 2
    ordered = sorted(scores, key=lambda kind: -scores[kind])
    return [full for kind in ordered for full in FILLED[kind]]


CALLED: Mapping[str, tuple[str, ...]] = {
    "len": ("str", "list"), "range": ("int",), "ord": ("str",), "chr": ("int",), "sum": ("list",),
    "sorted": ("list",), "min": ("list",), "max": ("list",), "abs": ("int", "float"), "int": ("str", "float"),
    "enumerate": ("list",), "zip": ("list",), "iter": ("list",), "set": ("list",), "float": ("float", "str"),
    "reversed": ("list",), "divmod": ("int",), "round": ("float",), "any": ("list",), "all": ("list",),
    "dict": ("dict",), "bin": ("int",), "hex": ("int",), "bytes": ("bytes",), "tuple": ("list",),
}  # fmt: skip
FILLED: Mapping[str, tuple[str, ...]] = {
    "list": ("list[int]", "list[str]", "list[tuple[int, int]]"), "set": ("set[int]",),
    "dict": ("dict[str, int]", "dict[int, list[int]]"), "str": ("str",), "bytes": ("bytes",),
    "int": ("int",), "float": ("float",), "bool": ("bool",), "tuple": ("tuple[int, ...]",),
}  # fmt: skip
