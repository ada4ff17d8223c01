"""A small set of tests out of many inputs, and its text."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from lathe.synth.lab import Outcome, inside

KILLED = "0t"
COMPARE_FILE = "same.py"


@dataclass(frozen=True)
class Case:
    """An input, as the source of (args, kwargs), and what the reference gives for it."""

    given: str
    wanted: Outcome

    @property
    def cost(self) -> int:
        """Short cases are read more easily."""
        return len(self.given) + len(self.wanted.value or "") + 40 * bool(self.wanted.raises)


def choose_cases(
    cases: Sequence[Case], letters: Sequence[str], *, cover: int = 2, min_cases: int = 5, max_cases: int = 24
) -> list[int]:
    """Which cases to keep: each program that any case rejects is rejected by `cover` of them, if so many do.

    Greedy set cover (Chvátal 1979): at most ln n times as many as the fewest possible. `letters` is what
    became of each program, case by case. Answers that need no program, always the same one or the first
    argument, are to be rejected, too. Where this takes fewer than `min_cases`, those that reject most are
    added.
    """
    rows = [[letter in KILLED for letter in row] for row in letters] + lazy_answers(cases)
    columns = [[place for place, row in enumerate(rows) if row[case]] for case in range(len(cases))]
    left = [min(cover, sum(row)) for row in rows]
    chosen: list[int] = []

    def gain(case: int) -> tuple[int, int, int]:
        new = cases[case].wanted not in [cases[each].wanted for each in chosen]
        return sum(left[row] > 0 for row in columns[case]), new, -cases[case].cost

    while len(chosen) < min(max_cases, len(cases)):
        best = max((case for case in range(len(cases)) if case not in chosen), key=gain)
        if gain(best)[0] == 0 and len(chosen) >= min_cases:
            break
        chosen.append(best)
        for row in columns[best]:
            left[row] -= 1
    return sorted(chosen)


def lazy_answers(cases: Sequence[Case]) -> list[list[bool]]:
    """The cases that reject each answer that computes nothing: the commonest outcomes, the first argument."""
    outcomes = [(case.wanted.value, case.wanted.raises[:1]) for case in cases]
    rows = [[outcome != common for outcome in outcomes] for common, _ in Counter(outcomes).most_common(2)]
    echoed = [ast.unparse(first) if (first := first_argument(case.given)) else None for case in cases]
    rows.append(
        [outcome[0] is None or outcome[0] != echo for outcome, echo in zip(outcomes, echoed, strict=True)]
    )
    return [row for row in rows if any(row)]


def first_argument(given: str) -> ast.expr | None:
    args, _ = arguments_of(given)
    return args[0] if args else None


def arguments_of(given: str) -> tuple[list[ast.expr], list[tuple[str, ast.expr]]]:
    tree = ast.parse(given, mode="eval").body
    if isinstance(tree, ast.List):  # the arguments as JSON
        return tree.elts, []
    assert isinstance(tree, ast.Tuple)
    args, kwargs = tree.elts
    assert isinstance(args, ast.Tuple) and isinstance(kwargs, ast.Dict)
    names = [str(key.value) for key in kwargs.keys if isinstance(key, ast.Constant)]
    return args.elts, list(zip(names, kwargs.values, strict=True))


def call_of(name: str, given: str) -> str:
    """The call as one writes it: `f([1], key=2)`."""
    args, kwargs = arguments_of(given)
    parts = [*map(ast.unparse, args), *(f"{key}={ast.unparse(value)}" for key, value in kwargs)]
    return f"{name}({', '.join(parts)})"


def is_inexact(text: str) -> bool:
    """Is there a floating-point number in the value?"""
    return any(
        (isinstance(node, ast.Constant) and isinstance(node.value, float | complex))
        or (isinstance(node, ast.Name) and node.id in ("float", "complex"))
        for node in ast.walk(ast.parse(text, mode="eval"))
    )


def hidden_files(name: str, cases: Sequence[Case]) -> dict[str, str]:
    """The hidden files: one plain test function a case, for the judge "python"."""
    tests = [hidden_test(name, case, place) for place, case in enumerate(cases, 1)]
    body = "\n\n".join(tests)
    helpers = [helper for helper in ("raised", "same") if f"{helper}(" in body]
    lines = [f"from same import {', '.join(helpers)}"] if helpers else []
    text = "\n".join([*lines, f"from solution import {name}"]) + "\n\n\n" + body
    return {f"test_{name}.py": text, **({COMPARE_FILE: inside("same.py")} if helpers else {})}


def hidden_test(name: str, case: Case, number: int) -> str:
    wanted, lines = case.wanted, []
    args, kwargs = arguments_of(case.given)
    sources = [ast.unparse(each) for each in args]
    for place in wanted.after:
        lines.append(f"argument_{place} = {sources[place]}")
        sources[place] = f"argument_{place}"
    named = [f"{key}={ast.unparse(value)}" for key, value in kwargs]
    if wanted.raises:
        inner = ", ".join([f"({wanted.raises[0]},)", name, *sources, *named])
        lines.append(f"assert raised({inner})")
    else:
        call = f"{name}({', '.join([*sources, *named])})"
        lines.append(f"assert {equation(str(wanted.value), f'list({call})' if wanted.is_lazy else call)}")
    lines += [f"assert {equation(text, f'argument_{place}')}" for place, text in wanted.after.items()]
    return f"def test_{number}():\n" + "".join(f"    {line}\n" for line in lines)


def equation(wanted: str, got: str) -> str:
    if is_inexact(wanted):
        return f"same({wanted}, {got})"
    return f"{got} is {wanted}" if wanted == "None" else f"{got} == {wanted}"
