"""Micro-Python: short functions over lists of whole numbers, asked for in words, judged by hidden tests.

A problem is one to three steps and an ending, such as "keep the even numbers, then double each number, then
return the sum". Its words say all that is wanted; the answer is in no prompt, and no test is shown.

Demonstrations are noisy, as code that people wrote is: a word comes out wrong now and then, and for some
words more often wrong than right. A model that imitates them writes each word as often right as they do.
Which way is right, only running the code tells.

Problems come in parts (to pretrain on, to imitate, to reinforce, to evaluate). No two parts share a program:
two programs are the same when their syntax trees are, names and numbers aside.
"""

from __future__ import annotations

import ast
import builtins
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

from lathe.errors import UserError
from lathe.train.families.micro_python_words import ENDINGS, STEPS, Word
from lathe.types import HiddenTests, Limits, Task

FUNCTION = "solve"
PARTS = ("pretrain", "sft", "rl", "eval")
LIMITS = Limits(memory_bytes=512 << 20, num_processes=16, disk_bytes=16 << 20)
MAX_INPUTS = 12

Shape = tuple[str, ...]


@dataclass(frozen=True)
class Step:
    """A word with its number, and which of its ways to say it is used."""

    word: Word
    way: int
    number: int | None

    def filled(self, text: str) -> str:
        return text if self.number is None else text.replace("{k}", str(self.number))

    @property
    def ask(self) -> str:
        return self.filled(self.word.asks[self.way])


@dataclass(frozen=True)
class Problem:
    """Steps, the last of which is an ending."""

    steps: tuple[Step, ...]

    @property
    def prompt(self) -> str:
        return f"Write {FUNCTION}(xs): {', then '.join(step.ask for step in self.steps)}."

    @cached_property
    def solution(self) -> str:
        return written([step.filled(step.word.code) for step in self.steps])

    def variants(self) -> Iterator[str]:
        """The solution with one mistake, each there is."""
        for place, step in enumerate(self.steps):
            for mistake in step.word.mistakes:
                lines = [each.filled(each.word.code) for each in self.steps]
                lines[place] = step.filled(mistake)
                yield written(lines)


def written(expressions: list[str]) -> str:
    """A function of these expressions, each over what the one before gave."""
    lines = [f"    xs = {each}" for each in expressions[:-1]]
    return "\n".join([f"def {FUNCTION}(xs):", *lines, f"    return {expressions[-1]}", ""])


@cache
def normalized(code: str) -> str:
    """What two programs share that differ in their own names and numbers alone: the shape of their syntax
    tree."""

    class Anonymous(ast.NodeTransformer):
        def __init__(self) -> None:
            self.names: dict[str, str] = {}

        def rename(self, name: str) -> str:
            if hasattr(builtins, name):
                return name
            return self.names.setdefault(name, f"n{len(self.names)}")

        def visit_Name(self, node: ast.Name) -> ast.AST:
            return ast.Name(self.rename(node.id), node.ctx)

        def visit_arg(self, node: ast.arg) -> ast.AST:
            return ast.arg(self.rename(node.arg))

        def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
            node.name = "f"
            return self.generic_visit(node)

        def visit_Constant(self, node: ast.Constant) -> ast.AST:
            return ast.Constant(0) if type(node.value) in (int, float) else node

    return ast.dump(Anonymous().visit(ast.parse(code)))


@dataclass(frozen=True)
class MicroPython:
    """A family of problems, decided by its seed: which word is mistaken how often, and what is in which part.

    Of the words, a share of `misled` is mostly demonstrated wrong.
    """

    seed: int = 0
    max_steps: int = 3
    misled: float = 0.25

    def problems(self, part: str, count: int) -> list[Problem]:
        """The first `count` problems of a part, all of different programs. Raises UserError for no part."""
        if part not in PARTS:
            raise UserError(f"The family has no part {part!r}. Its parts are {', '.join(PARTS)}.")
        rng = random.Random(f"{self.seed} {part}")
        found: dict[Shape, Problem] = {}
        while len(found) < count:
            problem = self._draw(rng)
            shape = tuple(normalized(step.filled(step.word.code)) for step in problem.steps)
            if self._part_of(shape) == part:
                found.setdefault(shape, problem)
        return list(found.values())

    def demonstration(self, problem: Problem, rng: random.Random) -> str:
        """How somebody answers it: each word right or not, as often as this corpus has it."""
        chosen = []
        for step in problem.steps:
            ways = (step.word.code, *step.word.mistakes)
            (way,) = rng.choices(ways, self.habits[step.word])
            chosen.append(step.filled(way))
        return written(chosen)

    @cached_property
    def habits(self) -> dict[Word, list[float]]:
        """How often each word is written right, and in each of the mistaken ways."""
        rng = random.Random(f"{self.seed} habits")
        words = [*STEPS, *ENDINGS]
        misled = set(rng.sample(range(len(words)), round(self.misled * len(words))))
        habits = {}
        for place, word in enumerate(words):
            right = rng.uniform(0.2, 0.45) if place in misled else rng.uniform(0.75, 0.95)
            shares = [rng.uniform(0.2, 1.0) for _ in word.mistakes]
            habits[word] = [right, *((1 - right) * share / sum(shares) for share in shares)]
        return habits

    def task(self, problem: Problem, id: str) -> Task:
        """The problem with hidden tests: inputs on which every single mistake shows, where it can."""
        rng = random.Random(f"{self.seed} {problem.prompt}")
        inputs = telling_inputs(problem, rng)
        asserts = [f"    assert {FUNCTION}({given}) == {answer!r}" for given, answer in inputs]
        lines = [f"from solution import {FUNCTION}", "", "", f"def test_{FUNCTION}():", *asserts, ""]
        return Task(
            id=id,
            prompt=problem.prompt,
            tests=HiddenTests(
                report="python", files={f"test_{FUNCTION}.py": "\n".join(lines)}, timeout_s=20.0
            ),
            limits=LIMITS,
            language="python",
            source="micro-python",
            info={"entry_point": FUNCTION, "answer_file": "solution.py", "deterministic": True},
        )

    def bug(self, problem: Problem, id: str) -> Task:
        """The same as a repository whose program has one mistake: to be found and mended."""
        rng = random.Random(f"{self.seed} {problem.prompt} bug")
        inputs = telling_inputs(problem, rng)
        mistaken = [code for code in problem.variants() if fails(code, inputs)]
        asked = ", then ".join(step.ask for step in problem.steps)
        readme = f"{FUNCTION}(xs) in solution.py takes a list of whole numbers. It should {asked}.\n"
        return replace(
            self.task(problem, id),
            prompt=f"{readme}It does something else: find the mistake in solution.py and mend it.",
            files={"README.md": readme, "solution.py": rng.choice(mistaken)},
        )

    def _draw(self, rng: random.Random) -> Problem:
        words = [rng.choice(STEPS) for _ in range(rng.randint(1, self.max_steps))] + [rng.choice(ENDINGS)]
        return Problem(
            tuple(
                Step(word, rng.randrange(len(word.asks)), rng.choice(word.numbers) if word.numbers else None)
                for word in words
            )
        )

    def _part_of(self, shape: Shape) -> str:
        return random.Random(f"{self.seed} {shape}").choices(PARTS, (6, 4, 5, 1))[0]


def telling_inputs(problem: Problem, rng: random.Random) -> list[tuple[list[int], Any]]:
    """Inputs with the solution's outputs: the empty list, some at random, and those that tell its mistakes
    apart."""
    solve = function_of(problem.solution)
    mistaken = [function_of(code) for code in problem.variants()]
    chosen: list[tuple[list[int], Any]] = []
    for attempt in range(80):
        given = [] if attempt == 0 else random_list(rng)
        answer = solve(given)
        seen = [each for each in mistaken if outcome(each, given) != answer]
        if attempt < 4 or seen:
            chosen.append((given, answer))
            mistaken = [each for each in mistaken if each not in seen]
        if (not mistaken and len(chosen) >= 6) or len(chosen) == MAX_INPUTS:
            break
    return chosen


def fails(code: str, inputs: Sequence[tuple[list[int], Any]]) -> bool:
    """Whether a program gives something else on one of the inputs."""
    solve = function_of(code)
    return any(outcome(solve, given) != answer for given, answer in inputs)


def random_list(rng: random.Random) -> list[int]:
    """Short, with zeros, repeats and both signs."""
    bound = rng.choice((3, 10, 20))
    return [rng.randint(-bound, bound) for _ in range(rng.randint(1, 9))]


def function_of(code: str) -> Any:
    """This file's own code, so it may run here."""
    space: dict[str, Any] = {}
    exec(code, space)
    return space[FUNCTION]


def outcome(solve: Any, given: list[int]) -> Any:
    try:
        return solve(list(given))
    except Exception as error:
        return type(error)
