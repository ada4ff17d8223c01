"""Small faults for Python functions: where they can be put, and the text with them in it.

A mutation is a few edits of the source text, not a new syntax tree: everything else in the file, comments and
layout included, stays as its author wrote it, so nothing shows where the fault is.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Edit:
    """The bytes [start, end) of a source in UTF-8, and what stands there instead."""

    start: int
    end: int
    text: str


@dataclass(frozen=True)
class Mutation:
    """A fault: its kind, the line where it begins, its edits, and in words what became of what."""

    kind: str
    line: int
    edits: tuple[Edit, ...]
    note: str


@dataclass(frozen=True)
class Function:
    """A function or method of a file, by its qualified name, with its lines (from 1, both included).

    `start` is the line of `def`, `first` that of its first decorator.
    """

    name: str
    first: int
    start: int
    end: int
    node: FunctionNode

    @property
    def is_public(self) -> bool:
        """Does no part of its name begin with an underscore, but for names such as `__len__`?"""
        parts = self.name.split(".")
        return all(not part.startswith("_") or re.fullmatch(r"__\w+__", part) for part in parts)


def functions_of(source: str) -> list[Function]:
    """The functions of modules and classes, in their order. Functions in functions are part of the outer one.

    Raises SyntaxError."""
    return list(_functions(ast.parse(source).body, ""))


def _functions(body: Sequence[ast.stmt], prefix: str) -> Iterator[Function]:
    for node in body:
        if isinstance(node, FunctionNode):
            first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
            yield Function(prefix + node.name, first, node.lineno, node.end_lineno or node.lineno, node)
        elif isinstance(node, ast.ClassDef):
            yield from _functions(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, ast.If | ast.Try | ast.With):
            yield from _functions([each for each in ast.iter_child_nodes(node) if _is_stmt(each)], prefix)  # type: ignore[misc]


def _is_stmt(node: ast.AST) -> bool:
    return isinstance(node, ast.stmt)


def docstring_of(node: FunctionNode) -> ast.Expr | None:
    """The statement that is the function's docstring."""
    first = node.body[0]
    is_text = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    return first if is_text and isinstance(first.value.value, str) else None  # type: ignore[attr-defined,return-value]


def mutate(source: str, mutation: Mutation) -> str:
    """The source with the fault in it. Raises ValueError where edits overlap, or the result is no Python or
    the same program."""
    data = source.encode()
    last = len(data) + 1
    for edit in sorted(mutation.edits, key=lambda each: each.start, reverse=True):
        if edit.end > last or edit.start > edit.end:
            raise ValueError("two edits of a mutation overlap")
        data = data[: edit.start] + edit.text.encode() + data[edit.end :]
        last = edit.start
    text = data.decode()
    try:
        tree = ast.parse(text)
        compile(tree, "<mutant>", "exec", dont_inherit=True)
    except SyntaxError as error:
        raise ValueError(f"the mutation makes no Python: {error}") from error
    if ast.dump(tree) == ast.dump(ast.parse(source)):
        raise ValueError("the mutation changes nothing")
    return text


def combine(*mutations: Mutation) -> Mutation:
    """Several faults of one file as one. That they don't overlap is seen by `mutate`."""
    edits = tuple(edit for each in mutations for edit in each.edits)
    return Mutation(
        "+".join(sorted({each.kind for each in mutations})),
        min(each.line for each in mutations),
        edits,
        "; ".join(each.note for each in mutations),
    )


def without_body(source: str, function: Function, body: str = "raise NotImplementedError") -> Mutation:
    """The function with its signature and docstring alone, and `body` (one line) in place of the rest."""
    text = Text(source)
    docstring = docstring_of(function.node)
    rest = function.node.body[1:] if docstring else function.node.body
    if docstring is not None:
        start = text.end(docstring)
        on_one_line = docstring.lineno == function.start
        glue = "; " if on_one_line else "\n" + text.indent(docstring.lineno)
        edit = Edit(start, text.end(rest[-1]) if rest else start, glue + body)
    else:
        edit = Edit(text.start(rest[0]), text.end(rest[-1]), body)
    return Mutation("body", function.start, (edit,), f"the body of {function.name} is gone")


class Text:
    """A source as bytes: where its nodes and lines are."""

    def __init__(self, source: str):
        self.data = source.encode()
        self.lines = [0]
        self.lines += [match.end() for match in re.finditer(rb"\n", self.data)]

    def place(self, line: int, column: int) -> int:
        return self.lines[line - 1] + column

    def start(self, node: ast.expr | ast.stmt) -> int:
        return self.place(node.lineno, node.col_offset)

    def end(self, node: ast.expr | ast.stmt) -> int:
        return self.place(node.end_lineno or 0, node.end_col_offset or 0)

    def of(self, node: ast.expr | ast.stmt) -> str:
        return self.data[self.start(node) : self.end(node)].decode()

    def indent(self, line: int) -> str:
        start = self.lines[line - 1]
        return re.match(rb"[ \t]*", self.data[start:]).group().decode()  # type: ignore[union-attr]

    def whole_lines(self, first: int, last: int) -> tuple[int, int]:
        """From the start of a line to the end of another, its newline included."""
        end = self.lines[last] if last < len(self.lines) else len(self.data)
        return self.lines[first - 1], end

    def owns_lines(self, node: ast.stmt) -> bool:
        """Does the statement share its lines with nothing but comments?"""
        before = self.data[self.lines[node.lineno - 1] : self.start(node)]
        end = self.whole_lines(node.lineno, node.end_lineno or 0)[1]
        after = self.data[self.end(node) : end].strip()
        return not before.strip() and (not after or after.startswith(b"#"))

    def token(self, word: str, start: int, end: int) -> Edit | None:
        """Where an operator stands between two operands, comments and brackets aside."""
        gap = re.sub(rb"#[^\n]*", lambda match: b" " * len(match.group()), self.data[start:end])
        pattern = rb"\s+".join(re.escape(part) for part in word.encode().split())
        match = re.search(pattern, gap)
        return match and Edit(start + match.start(), start + match.end(), word)
