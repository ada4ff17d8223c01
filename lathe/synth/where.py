"""Queries over tasks: `mutation >= 0.8 and difficulty < 0.5` keeps what is easy to verify and hard to solve.

A query is a Python expression of names, numbers, texts, comparisons, `and`, `or`, `not` and arithmetic; it is
read here and never executed.
"""

from __future__ import annotations

import ast
import difflib
import operator
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from lathe.errors import UserError
from lathe.synth.gates import Gates, gates_of
from lathe.types import Task

Query = Callable[[Task], bool]

COMPARISONS: dict[type, Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
    ast.Eq: operator.eq, ast.NotEq: operator.ne,
    ast.In: lambda one, other: one in other, ast.NotIn: lambda one, other: one not in other,
}  # fmt: skip
ARITHMETIC: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
}  # fmt: skip
FIELDS = ("id", "language", "source", "licence")
GATES = tuple(each.name for each in fields(Gates))


def parse_query(text: str, names: Mapping[str, type] | None = None) -> Query:
    """A test of tasks. It knows the gates' numbers, `id`, `language`, `source`, `licence`, and what the maker
    wrote into `info` as plain values (`kind`, `importable` …); `names` are those that it may use.

    A comparison with a number that was not measured is false, whichever way it is asked. Raises UserError for
    anything that is no such query.
    """
    known = sorted({*GATES, *FIELDS, *(names or ("kind", "importable"))})
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"--where {text!r} can't be read: {getattr(error, 'msg', error)}.") from error
    _check(tree, known, text)

    def holds(task: Task) -> bool:
        try:
            return bool(_value(tree, values_of(task)))
        except (TypeError, ArithmeticError) as error:
            raise UserError(f"--where {text!r} can't be asked of the task {task.id}: {error}.") from error

    return holds


def values_of(task: Task) -> dict[str, Any]:
    """What a query sees of a task."""
    plain = {name: value for name, value in task.info.items() if isinstance(value, (str, int, float, bool))}
    return {**plain, **{name: getattr(task, name) for name in FIELDS}, **vars(gates_of(task))}


def _check(node: ast.expr, known: list[str], text: str) -> None:
    match node:
        case ast.Name(id=name) if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"Did you mean {near[0]}?" if near else f"There are {', '.join(known)}."
            raise UserError(f"--where {text!r} asks for {name}, which no task has. {hint}")
        case ast.Name() | ast.Constant(value=str() | int() | float() | None):
            inner: list[ast.expr] = []
        case ast.BoolOp(values=inner) | ast.Tuple(elts=inner) | ast.List(elts=inner):
            pass
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
            inner = [operand]
        case ast.BinOp(left=left, right=right, op=op) if type(op) in ARITHMETIC:
            inner = [left, right]
        case ast.Compare(left=left, comparators=others, ops=ops) if all(
            type(op) in COMPARISONS for op in ops
        ):
            inner = [left, *others]
        case _:
            raise UserError(
                f"--where {text!r}: {ast.unparse(node)!r} is more than a query may say. It has names, "
                "numbers, comparisons, and, or, not."
            )
    for each in inner:
        _check(each, known, text)


def _value(node: ast.expr, values: Mapping[str, Any]) -> Any:
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id=name):
            return values.get(name)
        case ast.Tuple(elts=items) | ast.List(elts=items):
            return [_value(each, values) for each in items]
        case ast.BoolOp(op=op, values=parts):
            return (all if isinstance(op, ast.And) else any)(_value(each, values) for each in parts)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return not _value(operand, values)
        case ast.UnaryOp(operand=operand):
            value = _value(operand, values)
            return None if value is None else -value
        case ast.BinOp(left=left, op=op, right=right):
            one, other = _value(left, values), _value(right, values)
            return None if one is None or other is None else ARITHMETIC[type(op)](one, other)
        case ast.Compare(left=left, ops=ops, comparators=others):
            sides = [_value(each, values) for each in (left, *others)]
            return all(
                one is not None and other is not None and COMPARISONS[type(op)](one, other)
                for op, one, other in zip(ops, sides, sides[1:], strict=False)
            )
    raise AssertionError(ast.dump(node))  # _check let nothing else in
