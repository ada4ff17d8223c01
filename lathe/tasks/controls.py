"""Negative controls: a test that can't fail says nothing.

Hidden tests are run twice, in two sandboxes. Both times each comparison also asks the solution's value
whether it equals something else; at the end of the *spoiled* run's tests stands a failure, unless such a
question was answered with yes. So each test must pass in one run and fail in the other. Whoever makes all
tests pass, by whatever trick, passes the spoiled ones, too; so does a value that equals everything. Which run
it is stands in one constant of the tests' code.
"""

from __future__ import annotations

import ast
import secrets
from collections.abc import Iterator, Sequence

# The judge puts functions of its own in the place of these constants: no name leads to them.
PROBE, END, EQUAL, WITHIN = "<lathe probe>", "<lathe end>", "<lathe equal>", "<lathe within>"
NUM_QUESTIONS = 6
ASSERTIONS = frozenset(
    {"assertEqual", "assertListEqual", "assertDictEqual", "assertTupleEqual", "assertSetEqual"}
)
Function = ast.FunctionDef | ast.AsyncFunctionDef


def tests_of(tree: ast.Module) -> Iterator[tuple[str, Function]]:
    """The tests of a file by their names, as pytest finds them: functions test*, and methods test* of classes
    that are named Test* or derive from a TestCase."""
    for node in tree.body:
        if isinstance(node, Function) and node.name.startswith("test"):
            yield node.name, node
        elif isinstance(node, ast.ClassDef) and (
            node.name.startswith("Test") or any("TestCase" in ast.unparse(base) for base in node.bases)
        ):
            for each in node.body:
                if isinstance(each, Function) and each.name.startswith("test"):
                    yield f"{node.name}::{each.name}", each


def with_controls(text: str, *, spoiled: bool) -> str:
    """The tests of a file with probes in them, spoiled or not."""
    tree = ast.parse(text)
    # A test may itself expect what equals anything.
    has_wildcards = any(
        "ANY" in (getattr(node, "id", ""), getattr(node, "attr", "")) or getattr(node, "name", "") == "__eq__"
        for node in ast.walk(tree)
    )
    for _, function in tests_of(tree):
        inserter = Inserter(has_wildcards)
        body = [statement for each in function.body for statement in inserter.statements(each)]
        found = _assign(inserter.found, ast.List([], ast.Load()))
        end = _call(END, [_load(inserter.found), ast.Constant(int(spoiled))])
        function.body = [found, ast.Try(body, [], [], [end])]
    return ast.unparse(ast.fix_missing_locations(tree))


class Inserter(ast.NodeTransformer):
    """Puts a probe beside each comparison of a test."""

    def __init__(self, has_wildcards: bool):
        names = [f"_{secrets.token_hex(4)}" for _ in range(3)]
        self.found, self.left, self.right = names
        self._has_wildcards = has_wildcards

    def statements(self, node: ast.stmt) -> list[ast.stmt]:
        made = self.visit(node)
        return made if isinstance(made, list) else [made]

    def visit_Assert(self, node: ast.Assert) -> list[ast.stmt]:
        match node.test:
            case ast.Compare(left, [ast.Eq()], [right]):
                test = ast.Compare(_load(self.left), [ast.Eq()], [_load(self.right)])
                return self._probed(self.visit(left), self.visit(right), ast.Assert(test, node.msg))
        return [ast.Assert(self.visit(node.test), node.msg)]

    def visit_Expr(self, node: ast.Expr) -> list[ast.stmt]:
        match node.value:
            case ast.Call(ast.Attribute(_, name) as function, [left, right, *others], keywords) if (
                name in ASSERTIONS and not any(isinstance(each, ast.Starred) for each in (left, right))
            ):
                call = ast.Call(function, [_load(self.left), _load(self.right), *others], keywords)
                return self._probed(self.visit(left), self.visit(right), ast.Expr(call))
        return [ast.Expr(self.visit(node.value))]

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        """Within other expressions a comparison is made by the judge, which asks more."""
        self.generic_visit(node)
        match node:
            case ast.Compare(left, [(ast.Eq() | ast.In()) as how], [right]) if not self._has_wildcards:
                name = EQUAL if isinstance(how, ast.Eq) else WITHIN
                return ast.Call(ast.Constant(name), [_load(self.found), left, right, self._order()], [])
        return node

    def _order(self) -> ast.expr:
        """Both questions, equally often, in no order that a value can count on which says now yes, now no."""
        places = secrets.SystemRandom().sample(range(NUM_QUESTIONS), NUM_QUESTIONS // 2)
        return ast.Constant(sum(1 << place for place in places) | 1 << NUM_QUESTIONS)

    def _probed(self, left: ast.expr, right: ast.expr, then: ast.stmt) -> list[ast.stmt]:
        values = [_assign(self.left, left), _assign(self.right, right)]
        if self._has_wildcards:
            return [*values, then]
        names = [_load(each) for each in (self.found, self.left, self.right)]
        is_first = secrets.randbits(1)
        known = [] if is_first else [ast.Constant(True)]  # behind the assertion, they are equal
        probe = _call(PROBE, [*names, self._order(), *known])
        return [*values, *([probe, then] if is_first else [then, probe])]

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.JoinedStr:
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        return node

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AsyncFunctionDef:
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        return node


def _load(name: str) -> ast.expr:
    return ast.Name(name, ast.Load())


def _assign(name: str, value: ast.expr) -> ast.stmt:
    return ast.Assign([ast.Name(name, ast.Store())], value)


def _call(constant: str, args: Sequence[ast.expr]) -> ast.stmt:
    return ast.Expr(ast.Call(ast.Constant(constant), list(args), []))
