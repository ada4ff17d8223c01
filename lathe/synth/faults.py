"""Which small faults a function can have: one slip of an author each, found in its syntax tree."""

from __future__ import annotations

import ast
import re
from itertools import pairwise
from typing import Literal

from lathe.synth.mutations import Edit, Function, FunctionNode, Mutation, Text

Kind = Literal["operator", "condition", "boundary", "constant", "arguments", "statement", "branch", "return"]
KINDS: tuple[Kind, ...] = (
    "operator", "condition", "boundary", "constant", "arguments", "statement", "branch", "return",
)  # fmt: skip

OPERATORS: dict[type[ast.operator], tuple[str, tuple[str, ...]]] = {
    ast.Add: ("+", ("-",)), ast.Sub: ("-", ("+",)), ast.Mult: ("*", ("+", "//")), ast.Div: ("/", ("*", "//")),
    ast.FloorDiv: ("//", ("/", "*")), ast.Mod: ("%", ("//",)), ast.Pow: ("**", ("*",)),
    ast.BitAnd: ("&", ("|",)), ast.BitOr: ("|", ("&",)), ast.BitXor: ("^", ("|",)),
    ast.LShift: ("<<", (">>",)), ast.RShift: (">>", ("<<",)),
}  # fmt: skip
COMPARISONS: dict[type[ast.cmpop], tuple[str, str, Kind]] = {
    ast.Lt: ("<", "<=", "boundary"), ast.LtE: ("<=", "<", "boundary"),
    ast.Gt: (">", ">=", "boundary"), ast.GtE: (">=", ">", "boundary"),
    ast.Eq: ("==", "!=", "condition"), ast.NotEq: ("!=", "==", "condition"),
    ast.Is: ("is", "is not", "condition"), ast.IsNot: ("is not", "is", "condition"),
    ast.In: ("in", "not in", "condition"), ast.NotIn: ("not in", "in", "condition"),
}  # fmt: skip


def mutations_of(source: str, function: Function) -> list[Mutation]:
    """All single faults that are known for a function of the source, by line. Not each one makes a program:
    `mutate` tells."""
    finder = Finder(Text(source))
    for part in (function.node.args, *function.node.body):
        finder.visit(part)
    finder.find_in_blocks(function.node)
    return sorted(finder.found, key=lambda each: (each.line, each.edits[0].start, each.note))


class Finder(ast.NodeVisitor):
    """Collects the faults of the expressions that it visits."""

    def __init__(self, text: Text):
        self.text = text
        self.found: list[Mutation] = []

    def add(self, kind: Kind, node: ast.expr | ast.stmt, note: str, *edits: Edit) -> None:
        self.found.append(Mutation(kind, node.lineno, edits, note))

    def replace_operator(
        self, kind: Kind, node: ast.expr | ast.stmt, left: ast.expr, right: ast.expr, was: str, now: str
    ) -> None:
        place = self.text.token(was, self.text.end(left), self.text.start(right))
        if place is not None:
            self.add(kind, node, f"{was} became {now}", Edit(place.start, place.end, now))

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """Before Python 3.12 nobody knows where the parts of an f-string stand."""

    def visit_arg(self, node: ast.arg) -> None:
        """Annotations decide nothing."""

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_Expr(self, node: ast.Expr) -> None:
        if not isinstance(node.value, ast.Constant):  # docstrings
            self.visit(node.value)

    def visit_Raise(self, node: ast.Raise) -> None:
        """The text of an error is seldom what a test asks for."""

    def visit_BinOp(self, node: ast.BinOp) -> None:
        was, others = OPERATORS.get(type(node.op), ("", ()))
        for now in others:
            if not isinstance(node.left, ast.Constant | ast.JoinedStr) or not isinstance(node.op, ast.Mod):
                self.replace_operator("operator", node, node.left, node.right, was, now)
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        was, others = OPERATORS.get(type(node.op), ("", ()))
        for now in others:
            self.replace_operator("operator", node, node.target, node.value, was + "=", now + "=")
        self.visit(node.value)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        word = {ast.Not: "not", ast.USub: "-"}.get(type(node.op))
        if word and not isinstance(node.operand, ast.Constant):
            start = self.text.start(node)
            length = 4 if word == "not" and self.text.data[start + 3 : start + 4] == b" " else len(word)
            kind: Kind = "condition" if word == "not" else "operator"
            self.add(kind, node, f"{word} is gone", Edit(start, start + length, ""))
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        operands = [node.left, *node.comparators]
        for place, op in enumerate(node.ops):
            if type(op) in COMPARISONS:
                was, now, kind = COMPARISONS[type(op)]
                self.replace_operator(kind, node, operands[place], operands[place + 1], was, now)
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        was, now = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in pairwise(node.values):
            self.replace_operator("condition", node, left, right, was, now)
        self.generic_visit(node)

    def visit_If(self, node: ast.If) -> None:
        self.negate(node.test)
        self.generic_visit(node)

    def visit_While(self, node: ast.While) -> None:
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self.negate(node.test)
        self.swap("branch", node, node.body, node.orelse, "the two arms of an expression are swapped")
        self.generic_visit(node)

    def negate(self, test: ast.expr) -> None:
        if isinstance(test, ast.Name | ast.Attribute | ast.Call | ast.Subscript):
            start = self.text.start(test)
            self.add("condition", test, "a condition is negated", Edit(start, start, "not "))

    def swap(self, kind: Kind, node: ast.expr, one: ast.expr, other: ast.expr, note: str) -> None:
        if ast.dump(one) == ast.dump(other):
            return
        edits = [
            Edit(self.text.start(here), self.text.end(here), self.text.of(there))
            for here, there in ((one, other), (other, one))
        ]
        self.add(kind, node, note, *edits)

    def visit_Constant(self, node: ast.Constant) -> None:
        for now in other_constants(node.value):
            text = self.text.of(node)
            self.add(
                "constant",
                node,
                f"{text} became {now}",
                Edit(self.text.start(node), self.text.end(node), now),
            )

    def visit_Call(self, node: ast.Call) -> None:
        plain = [each for each in node.args if not isinstance(each, ast.Starred)]
        if len(plain) == len(node.args) and ast.unparse(node.func) not in ("isinstance", "issubclass"):
            for one, other in pairwise(plain):
                self.swap("arguments", node, one, other, "two arguments are swapped")
        if isinstance(node.func, ast.Name) and node.func.id == "range" and plain and not node.keywords:
            stop = plain[0] if len(plain) == 1 else plain[1]
            end = self.text.end(stop)
            if isinstance(stop, ast.Name | ast.Call | ast.Attribute):
                for more in (" + 1", " - 1"):
                    self.add("boundary", node, f"a range ends at{more}", Edit(end, end, more))
        for keyword in node.keywords:
            if (
                keyword.arg
                and isinstance(keyword.value, ast.Constant)
                and isinstance(keyword.value.value, bool)
            ):
                self.visit_Constant(keyword.value)
        self.generic_visit(node)

    def visit_Slice(self, node: ast.Slice) -> None:
        for bound in (node.lower, node.upper):
            if isinstance(bound, ast.Name | ast.Call | ast.Attribute):
                end = self.text.end(bound)
                self.add("boundary", bound, "a slice's end is moved", Edit(end, end, " + 1"))
        self.generic_visit(node)

    def visit_Return(self, node: ast.Return) -> None:
        value = node.value
        if value is None or (isinstance(value, ast.Constant) and value.value is None):
            return
        place = (self.text.start(value), self.text.end(value))
        self.add("return", node, "nothing is returned", Edit(*place, "None"))
        if isinstance(value, ast.Tuple) and len(value.elts) == 2:
            one, other = value.elts
            self.swap("return", value, one, other, "the two values returned are swapped")
        if isinstance(value, ast.Compare | ast.BoolOp) or (isinstance(value, ast.Call) and _asks(value)):
            self.add("return", node, "the opposite is returned", Edit(*place, f"not ({self.text.of(value)})"))
        if isinstance(value, ast.Call) and len(value.args) == 1 and not value.keywords:
            inner = value.args[0]
            if not isinstance(inner, ast.Starred | ast.GeneratorExp | ast.Constant):
                self.add("return", node, "a last step is left out", Edit(*place, self.text.of(inner)))
        self.visit(value)

    def find_in_blocks(self, function: FunctionNode) -> None:
        """Statements that can be left out, and branches."""
        known = {each.arg for each in ast.walk(function.args) if isinstance(each, ast.arg)}
        blocks = [node for node in ast.walk(function) if isinstance(node, ast.stmt | ast.excepthandler)]
        for node in blocks:
            for name in ("body", "orelse", "finalbody"):
                block = getattr(node, name, None)
                if isinstance(block, list) and not isinstance(node, ast.ClassDef):
                    for statement in block:
                        self.leave_out(statement, block, known)
                        known |= _names_set_by(statement)
            if isinstance(node, ast.If) and node.orelse:
                self.leave_out_else(node)

    def leave_out(self, node: ast.stmt, block: list[ast.stmt], known: set[str]) -> None:
        if not _is_dispensable(node, known):
            return
        start, end = self.text.start(node), self.text.end(node)
        is_elif = self.text.data[start : start + 4] == b"elif"
        if is_elif or (isinstance(node, ast.If) and node.orelse):
            return
        if len(block) > 1 and self.text.owns_lines(node):
            edit = Edit(*self.text.whole_lines(node.lineno, node.end_lineno or 0), "")
        else:
            edit = Edit(start, end, "pass")
        self.add("statement", node, f"left out: {self.text.of(node).splitlines()[0]}", edit)

    def leave_out_else(self, node: ast.If) -> None:
        last = node.body[-1]
        first_line, last_line = (last.end_lineno or 0) + 1, node.end_lineno or 0
        if last_line >= first_line and self.text.owns_lines(node.orelse[-1]):
            edit = Edit(*self.text.whole_lines(first_line, last_line), "")
            self.found.append(Mutation("branch", first_line, (edit,), "what is done otherwise is left out"))


def _asks(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    return bool(re.match(r"(is|has|any|all|startswith|endswith|issubset|issuperset)", name))


def _names_set_by(node: ast.stmt) -> set[str]:
    return {
        each.id for each in ast.walk(node) if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)
    }


def _is_dispensable(node: ast.stmt, known: set[str]) -> bool:
    """Can a program go on without it, to a wrong result rather than to an unknown name?"""
    match node:
        case ast.Expr(ast.Call() | ast.Yield() | ast.YieldFrom() | ast.Await()) | ast.AugAssign():
            return True
        case ast.Continue() | ast.Delete():
            return True
        case ast.If(orelse=[]):
            return True
        case ast.Assign(targets=[target]):
            return not isinstance(target, ast.Name) or target.id in known
    return False


def other_constants(value: object) -> list[str]:
    """What a slip would write in the place of a constant, as source text."""
    if isinstance(value, bool):
        return [repr(not value)]
    if isinstance(value, int):
        return [repr(value + 1)] if value == 0 else [repr(value + 1), repr(value - 1)]
    if isinstance(value, float) and value == value and abs(value) < 1e300:
        return [repr(value + 1.0)]
    if isinstance(value, str) and 0 < len(value) <= 40:
        return ["''"] if len(value) == 1 else ["''", repr(value[:-1])]
    return []
