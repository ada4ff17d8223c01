"""Self-contained programs from a corpus: a function with the imports, helpers and constants that it needs."""

from __future__ import annotations

import ast
import copy
import symtable
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from lathe.synth.book import Drop
from lathe.synth.corpus import SourceFile
from lathe.synth.purity import BUILTINS, impurity, is_allowed

MAX_LINES = 80
MAX_PROGRAM_LINES = 200
WORK = ast.Return | ast.Yield | ast.YieldFrom | ast.Assign | ast.AugAssign | ast.Call
CACHES = ("lru_cache", "cache", "functools.lru_cache", "functools.cache")


@dataclass(frozen=True)
class Candidate:
    """A function at the top of a file. `id` is where it stands."""

    file: SourceFile
    node: ast.FunctionDef

    @property
    def id(self) -> str:
        return f"{self.file.origin.name}/{self.file.where}:{self.node.name}"


@dataclass(frozen=True)
class Program:
    """A program that holds a function and all that it needs, and nothing else of its corpus."""

    candidate: Candidate
    source: str

    @property
    def name(self) -> str:
        return self.candidate.node.name

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.source)

    @cached_property
    def function(self) -> ast.FunctionDef:
        found = [
            each for each in self.tree.body if isinstance(each, ast.FunctionDef) and each.name == self.name
        ]
        return found[-1]

    @property
    def docstring(self) -> str | None:
        return ast.get_docstring(self.function)


class NotSelfContained(Exception):
    """`drop` says why."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}")
        self.drop = Drop(reason, detail)


class Scope:
    """A file's own names: which statements bind each, and what those need."""

    def __init__(self, file: SourceFile):
        self.file = file
        self._needs: dict[int, frozenset[str]] = {}

    @cached_property
    def bindings(self) -> dict[str, list[ast.stmt]]:
        """The statements that bind each name, also inside of `if` and `try`."""
        found: dict[str, list[ast.stmt]] = {}
        for name, node in _bindings(self.file.tree.body if self.file.tree else []):
            found.setdefault(name, []).append(node)
        return found

    def needs(self, node: ast.stmt) -> frozenset[str]:
        """The names that a statement of the file reads from it, or from builtins."""
        if id(node) not in self._needs:
            self._needs[id(node)] = frozenset(global_names(node))
        return self._needs[id(node)]


def scopes_of(files: Iterable[SourceFile]) -> dict[str, Scope]:
    """By dotted name."""
    return {file.module: Scope(file) for file in files}


def candidates_of(files: Iterable[SourceFile]) -> Iterator[Candidate]:
    """Every function at the top of a file, the last of its name, but for tests and entry points."""
    for file in files:
        if file.tree is None or file.where.split("/")[-1].startswith(("test_", "conftest")):
            continue
        found = {each.name: each for each in file.tree.body if isinstance(each, ast.FunctionDef)}
        for name, node in found.items():
            if name not in ("main", "test", "_test", "setup") and not name.startswith(("test_", "__")):
                yield Candidate(file, node)


def extract(candidate: Candidate, scopes: Mapping[str, Scope]) -> Program:
    """The candidate as a program of its own. `scopes` are the corpus' files, its own among them; what it
    imports from them is written out. Raises NotSelfContained."""
    node = candidate.node
    check_shape(node)
    collected = Collector(scopes)
    collected.add(scopes[candidate.file.module], node.name, node)
    program = Program(candidate, collected.source())
    try:
        compile(program.source, "<program>", "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        raise NotSelfContained("can't stand alone", str(error)) from error
    return program


def check_shape(node: ast.FunctionDef) -> None:
    decorators = [
        ast.unparse(each.func if isinstance(each, ast.Call) else each) for each in node.decorator_list
    ]
    if strange := [each for each in decorators if each not in CACHES]:
        raise NotSelfContained("is decorated", strange[0])
    arguments = node.args
    if arguments.vararg or arguments.kwarg:
        raise NotSelfContained("takes any number of arguments")
    if not (arguments.posonlyargs or arguments.args or arguments.kwonlyargs):
        raise NotSelfContained("takes no argument")
    num_lines = (node.end_lineno or node.lineno) - node.lineno + 1
    if num_lines > MAX_LINES:
        raise NotSelfContained("is too long", f"{num_lines} lines")
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    if not any(isinstance(each, WORK) for statement in body for each in ast.walk(statement)):
        raise NotSelfContained("does nothing")


@dataclass
class Collector:
    """Definitions, each after those that it needs. A name stands for one thing in the whole program."""

    scopes: Mapping[str, Scope]
    imports: dict[str, None] = field(default_factory=dict)
    statements: list[ast.stmt] = field(default_factory=list)
    owners: dict[str, str] = field(default_factory=dict)
    num_lines: int = 0

    def source(self) -> str:
        lines = ["from __future__ import annotations", *sorted(self.imports)]
        parts = [ast.unparse(each) for each in self.statements]
        return "\n".join(lines) + "\n\n\n" + "\n\n\n".join(parts) + "\n"

    def add(self, scope: Scope, name: str, node: ast.stmt) -> None:
        """Raises NotSelfContained where anything that it needs can't be had."""
        key = f"{scope.file.where}:{node.lineno}"
        if self.owners.setdefault(name, key) != key:
            raise NotSelfContained("needs two things of one name", name)
        if reason := impurity(node):
            raise NotSelfContained("depends on more than its arguments", f"{name} {reason}")
        self.num_lines += (node.end_lineno or node.lineno) - node.lineno + 1
        if self.num_lines > MAX_PROGRAM_LINES:
            raise NotSelfContained("needs too much of its corpus", f"{name} and more")
        for needed in sorted(scope.needs(node) - {name}):
            self.need(scope, needed)
        if node not in self.statements:  # one statement may bind several names
            self.statements.append(node)

    def need(self, scope: Scope, name: str) -> None:
        bound = scope.bindings.get(name, [])
        if not bound:
            if name in BUILTINS:
                return
            raise NotSelfContained("needs an unknown name", name)
        if len(bound) > 1 and all(isinstance(each, ast.Import) for each in bound):
            self.add_parts(scope, name, bound)
            return
        if len(bound) > 1:
            plain: list[ast.stmt] = [
                each for each in bound if isinstance(each, ast.FunctionDef | ast.ClassDef)
            ]
            if len(plain) != 1 or any(isinstance(each, ast.Assign | ast.AugAssign) for each in bound):
                raise NotSelfContained("needs what is bound twice", name)
            bound = plain
        node = bound[0]
        if isinstance(node, ast.Import | ast.ImportFrom):
            self.add_import(scope, name, node)
        elif self.owners.get(name) != f"{scope.file.where}:{node.lineno}":
            self.add(scope, name, node)

    def add_parts(self, scope: Scope, name: str, bound: Iterable[ast.stmt]) -> None:
        """Several modules of a package (`import urllib.parse`, `import urllib.error`): those that may be
        imported. A use of the others is seen when the program runs."""
        self.own(name, name)
        found = [alias.name for node in bound if isinstance(node, ast.Import) for alias in node.names]
        parts = [each for each in found if each.split(".")[0] == name and is_allowed(each)]
        if not parts:
            raise NotSelfContained("imports a module that it may not", name)
        self.imports.update(dict.fromkeys(f"import {each}" for each in parts))

    def add_import(self, scope: Scope, name: str, node: ast.Import | ast.ImportFrom) -> None:
        alias = next(each for each in node.names if (each.asname or each.name.split(".")[0]) == name)
        if isinstance(node, ast.Import):
            if not is_allowed(alias.name):
                raise NotSelfContained("imports a module that it may not", alias.name)
            self.own(name, alias.name)
            self.imports[f"import {alias.name}" + (f" as {alias.asname}" if alias.asname else "")] = None
            return
        module = absolute(scope.file, node)
        if (other := self.scopes.get(module)) is not None and not is_allowed(module, alias.name):
            if alias.name not in other.bindings:
                raise NotSelfContained("imports a module that it may not", f"{module}.{alias.name}")
            self.need(other, alias.name)
            if name != alias.name:
                self.own(name, f"{module}.{alias.name}")
                self.statements.append(ast.parse(f"{name} = {alias.name}").body[0])
        elif is_allowed(module, alias.name):
            self.own(name, f"{module}.{alias.name}")
            renamed = f" as {alias.asname}" if alias.asname else ""
            self.imports[f"from {module} import {alias.name}{renamed}"] = None
        else:
            raise NotSelfContained("imports a module that it may not", f"{module}.{alias.name}")

    def own(self, name: str, key: str) -> None:
        if self.owners.setdefault(name, key) != key:
            raise NotSelfContained("needs two things of one name", name)


def absolute(file: SourceFile, node: ast.ImportFrom) -> str:
    """The dotted name of the module that is imported from."""
    if node.level == 0:
        return node.module or ""
    parts = file.module.split(".")
    if not file.where.endswith("__init__.py"):
        parts = parts[:-1]
    parts = parts[: len(parts) - node.level + 1]
    return ".".join([*parts, *([node.module] if node.module else [])])


def _bindings(body: Iterable[ast.stmt]) -> Iterator[tuple[str, ast.stmt]]:
    for node in body:
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name, node
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                for alias in names:
                    yield alias.asname or alias.name.split(".")[0], node
            case ast.Assign(targets=targets):
                for name in {each.id for target in targets for each in ast.walk(target)
                             if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)}:  # fmt: skip
                    yield name, node
            case ast.AnnAssign(target=ast.Name(id=name), value=value) if value is not None:
                yield name, node
            case ast.AugAssign(target=ast.Name(id=name)):
                yield name, node
            case ast.If() | ast.Try() | ast.With() | ast.For() | ast.While():
                for inner in ("body", "orelse", "finalbody"):
                    yield from _bindings(getattr(node, inner, []))
                for handler in getattr(node, "handlers", []):
                    yield from _bindings(handler.body)


def global_names(node: ast.stmt) -> set[str]:
    """What a statement at the top of a file reads from its file or from builtins, annotations aside."""
    bare = _Bare().visit(copy.deepcopy(node))
    table = symtable.symtable(ast.unparse(ast.fix_missing_locations(bare)), "<statement>", "exec")
    names: set[str] = set()
    waiting = [table]
    while waiting:
        each = waiting.pop()
        for symbol in each.get_symbols():
            if symbol.is_referenced() and (symbol.is_global() or each is table):
                names.add(symbol.get_name())
        waiting.extend(each.get_children())
    return names


class _Bare(ast.NodeTransformer):
    """Without annotations: no program evaluates them here."""

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        node.returns = None
        self.generic_visit(node)
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.stmt:
        self.generic_visit(node)
        if node.value is None:
            return ast.Pass()
        return ast.Assign([node.target], node.value)
