"""Right but different: the same function written another way, by changes that keep what it does.

A test that refuses one of these asks for more than the contract. Each change is only made where the syntax
tree shows that it is safe for Python's own types.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable

Rewrite = Callable[[ast.FunctionDef], bool]


def rewrites_of(tree: ast.Module, name: str) -> dict[str, str]:
    """Other texts of the program, by what was done to its function: each change alone, and all of them."""
    found = {}
    for what, change in REWRITES.items():
        if (text := rewritten(tree, name, change)) is not None:
            found[what] = text
    if len(found) > 1:
        whole = tree
        for what in found:
            text = rewritten(whole, name, REWRITES[what])
            whole = ast.parse(text) if text is not None else whole
        found["all of them"] = ast.unparse(whole) + "\n"
    return found


def rewritten(tree: ast.Module, name: str, change: Rewrite) -> str | None:
    tree = copy.deepcopy(tree)
    function = [each for each in tree.body if isinstance(each, ast.FunctionDef) and each.name == name][-1]
    if not change(function):
        return None
    text = ast.unparse(ast.fix_missing_locations(tree)) + "\n"
    try:
        compile(text, "<rewrite>", "exec", dont_inherit=True)
    except SyntaxError:
        return None
    return text


def names_in(node: ast.AST) -> set[str]:
    names = {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}
    return names | {each.arg for each in ast.walk(node) if isinstance(each, ast.arg)}


def rename_locals(function: ast.FunctionDef) -> bool:
    """Its own variables, but for arguments."""
    inner = [each for each in ast.walk(function) if each is not function]
    binders = ast.Match | ast.ClassDef | ast.Import | ast.ImportFrom | ast.Nonlocal | ast.Global
    if any(isinstance(each, binders) for each in inner):
        return False
    kept = {each.arg for each in ast.walk(function) if isinstance(each, ast.arg)}
    kept |= {each.name for each in inner if isinstance(each, ast.FunctionDef)}
    own = {each.id for each in inner if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)} - kept
    taken = names_in(function)
    new = {name: fresh(f"v_{name}", taken) for name in own}
    for each in inner:
        if isinstance(each, ast.Name) and each.id in new:
            each.id = new[each.id]
        elif isinstance(each, ast.ExceptHandler) and each.name in new:
            each.name = new[each.name]
    return bool(new)


def fresh(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def for_to_while(function: ast.FunctionDef) -> bool:
    taken = names_in(function)

    class Change(ast.NodeTransformer):
        done = False

        def visit_For(self, node: ast.For) -> ast.AST | list[ast.stmt]:
            self.generic_visit(node)
            if node.orelse:
                return node
            self.done = True
            items = fresh("items", taken)
            begin = ast.Assign([ast.Name(items, ast.Store())], call("iter", node.iter))
            step = ast.Assign([node.target], call("next", ast.Name(items, ast.Load())))
            end = ast.ExceptHandler(ast.Name("StopIteration", ast.Load()), None, [ast.Break()])
            return [begin, ast.While(ast.Constant(True), [ast.Try([step], [end], [], []), *node.body], [])]

    return changed(Change(), function)


def call(name: str, *args: ast.expr) -> ast.Call:
    return ast.Call(ast.Name(name, ast.Load()), list(args), [])


def changed(change: ast.NodeTransformer, function: ast.FunctionDef) -> bool:
    function.body = [new for each in function.body for new in as_list(change.visit(each))]
    return bool(change.done)  # type: ignore[attr-defined]


def as_list(value: ast.stmt | list[ast.stmt]) -> list[ast.stmt]:
    return value if isinstance(value, list) else [value]


def comprehension_to_loop(function: ast.FunctionDef) -> bool:
    """A list comprehension that is all of an assignment or a return."""
    taken = names_in(function)
    counts = [each.id for each in ast.walk(function) if isinstance(each, ast.Name)]
    arguments = {each.arg for each in ast.walk(function) if isinstance(each, ast.arg)}

    class Change(ast.NodeTransformer):
        done = False

        def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
            return node

        visit_Lambda = visit_FunctionDef  # type: ignore[assignment]

        def visit_statement(self, node: ast.Assign | ast.Return) -> ast.AST | list[ast.stmt]:
            value = node.value
            if not isinstance(value, ast.ListComp) or len(value.generators) != 1:
                return node
            (loop,) = value.generators
            inside = [each.id for each in ast.walk(value) if isinstance(each, ast.Name)]
            own = {each.id for each in ast.walk(loop.target) if isinstance(each, ast.Name)}
            deep = any(isinstance(each, ast.Lambda | ast.NamedExpr) for each in ast.walk(value))
            if deep or own & arguments or any(counts.count(name) != inside.count(name) for name in own):
                return node  # the loop's variable would be seen by others
            self.done = True
            name = fresh("collected", taken)
            add = ast.Expr(
                ast.Call(ast.Attribute(ast.Name(name, ast.Load()), "append", ast.Load()), [value.elt], [])
            )
            body: list[ast.stmt] = [add]
            for test in reversed(loop.ifs):
                body = [ast.If(test, body, [])]
            begin = ast.Assign([ast.Name(name, ast.Store())], ast.List([], ast.Load()))
            node.value = ast.Name(name, ast.Load())
            return [begin, ast.For(loop.target, loop.iter, body, []), node]

        visit_Assign = visit_statement
        visit_Return = visit_statement

    return changed(Change(), function)


def swap_branches(function: ast.FunctionDef) -> bool:
    class Change(ast.NodeTransformer):
        done = False

        def visit_If(self, node: ast.If) -> ast.AST:
            self.generic_visit(node)
            if node.orelse:
                self.done = True
                return ast.If(ast.UnaryOp(ast.Not(), node.test), node.orelse, node.body)
            return node

        def visit_IfExp(self, node: ast.IfExp) -> ast.AST:
            self.generic_visit(node)
            self.done = True
            return ast.IfExp(ast.UnaryOp(ast.Not(), node.test), node.orelse, node.body)

    return changed(Change(), function)


def name_the_result(function: ast.FunctionDef) -> bool:
    result = fresh("result", names_in(function))

    class Change(ast.NodeTransformer):
        done = False

        def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
            return node

        def visit_Return(self, node: ast.Return) -> ast.AST | list[ast.stmt]:
            if node.value is None:
                return node
            self.done = True
            return [
                ast.Assign([ast.Name(result, ast.Store())], node.value),
                ast.Return(ast.Name(result, ast.Load())),
            ]

    return changed(Change(), function)


MIRRORED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.Gt, ast.Gt: ast.Lt, ast.LtE: ast.GtE, ast.GtE: ast.LtE, ast.Eq: ast.Eq, ast.NotEq: ast.NotEq,
}  # fmt: skip


def mirror_comparisons(function: ast.FunctionDef) -> bool:
    """`a < b` as `b > a`, where neither side does anything."""

    class Change(ast.NodeTransformer):
        done = False

        def visit_Compare(self, node: ast.Compare) -> ast.AST:
            self.generic_visit(node)
            sides = [node.left, *node.comparators]
            if (
                len(sides) == 2
                and type(node.ops[0]) in MIRRORED
                and all(isinstance(each, ast.Name | ast.Constant) for each in sides)
            ):
                self.done = True
                return ast.Compare(sides[1], [MIRRORED[type(node.ops[0])]()], [sides[0]])
            return node

    return changed(Change(), function)


def add_dead_code(function: ast.FunctionDef) -> bool:
    name = fresh("unused", names_in(function))
    dead = ast.parse(f"{name} = 0\nif {name}:\n    {name} += 1\n").body
    place = 1 if ast.get_docstring(function) is not None else 0
    function.body[place:place] = dead
    return True


def reorder_statements(function: ast.FunctionDef) -> bool:
    """Neighbours that set different names from constants, names and arithmetic that can't fail."""

    def is_plain(node: ast.stmt) -> bool:
        match node:
            case ast.Assign(targets=[ast.Name()], value=value):
                return isinstance(value, ast.Constant | ast.Name) or (
                    isinstance(value, ast.List | ast.Tuple | ast.Dict) and not list(ast.walk(value))[3:]
                )
        return False

    done = False
    for node in ast.walk(function):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            for place in range(len(body) - 1):
                one, other = body[place : place + 2]
                if is_plain(one) and is_plain(other) and not names_in(one.targets[0]) & names_in(other) \
                        and not names_in(other.targets[0]) & names_in(one):  # fmt: skip
                    # A name that is not yet bound would raise later than before: only constants are sure.
                    if isinstance(one.value, ast.Name) and isinstance(other.value, ast.Name):
                        continue
                    body[place], body[place + 1] = other, one
                    done = True
                    break
    return done


REWRITES: dict[str, Rewrite] = {
    "variables renamed": rename_locals,
    "loops written with while": for_to_while,
    "comprehensions written as loops": comprehension_to_loop,
    "branches swapped": swap_branches,
    "results named": name_the_result,
    "comparisons mirrored": mirror_comparisons,
    "dead code added": add_dead_code,
    "statements reordered": reorder_statements,
}
