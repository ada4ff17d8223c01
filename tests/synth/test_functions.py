"""From a function to measured tasks, in real sandboxes."""

import ast
import textwrap

import pytest

from lathe.synth.argument_types import calls_in
from lathe.synth.corpus import Origin, SourceFile
from lathe.synth.extract import candidates_of, scopes_of
from lathe.synth.functions import FunctionMaker, FunctionsConfig
from lathe.synth.gates import gates_of
from lathe.synth.inside.lab import text_of
from lathe.synth.lab import open_lab
from lathe.synth.suite import hidden_files
from lathe.tasks.patch import Patch
from lathe.tasks.verify import verify
from lathe.testing import ScriptedModel

SOURCE = '''
"""A small library."""

import re
import random
from functools import lru_cache

WORD = re.compile(r"[a-z]+")


def runs(text: str) -> list[tuple[str, int]]:
    """The runs of equal characters in a text, each with its length.

    >>> runs("aab")
    [('a', 2), ('b', 1)]
    """
    found = []
    for char in text:
        if found and found[-1][0] == char:
            found[-1] = (char, found[-1][1] + 1)
        else:
            found.append((char, 1))
    return found


def longest(words, least=2):
    if least < 0:
        raise ValueError("least can't be negative")
    best = ""
    for word in words:
        if len(word) >= least and len(word) > len(best):
            best = word
    return best


def shuffled(items: list[int]) -> list[int]:
    """The items in another order."""
    return sorted(items, key=lambda item: random.random())


def unordered(items: list[str]) -> list[str]:
    """Each item once, in the order of a set."""
    found = set(items)
    return [item.upper() for item in found if len(item) + 1 > 1]


def forever(number: int) -> int:
    """Counts for too long."""
    while number != 1000000007:
        number = (number * 2 + 1) % 5
    return number + 1


def leaves(number: int) -> int:
    """Takes the process with it."""
    if number > -100000000:
        raise SystemExit(3)
    return number * 2 + 1 - 3


longest(["a", "bcd", "xyzzy"], least=3)
'''


def made_of(source, licence="MIT"):
    return [SourceFile("small.py", "small", textwrap.dedent(source), Origin("small", "1.0", licence))]


def maker_for(pool, files, **options):
    # A seed whose inputs tell enough mutants of `longest` apart: a third of the seeds keep nothing of it.
    config = FunctionsConfig(num_gold=2, seed=1)
    return FunctionMaker(pool, scopes_of(files), calls_in(files), config, **options)


@pytest.fixture(scope="module")
async def made(pool):
    files = made_of(SOURCE)
    maker = maker_for(pool, files)
    return {each.node.name: await maker.make(each) for each in candidates_of(files)}


def test_a_function_becomes_four_measured_tasks(made):
    tasks = {task.info["kind"]: task for task in made["runs"].tasks}
    assert set(tasks) == {"write", "fix", "complete", "predict"}
    gates = gates_of(tasks["write"])
    assert (gates.flake, gates.noop, gates.stub, gates.cheats, gates.tpr) == (0, 0, 0, 0, 1)
    assert (
        gates.mutation >= 0.6 and gates.num_mutants >= 10 and gates.num_right >= 4 and gates.num_cheats >= 8
    )
    assert tasks["write"].licence == "MIT" and tasks["write"].source.startswith("small 1.0: small.py, line ")


def test_no_prompt_holds_the_answer(made):
    for done in made.values():
        for task in done.tasks:
            (reference,) = task.info["reference"].values()
            assert reference not in task.prompt
            tests = set("".join(task.tests.files.values()).splitlines())
            assert not [line for line in tests if len(line.strip()) > 12 and line.strip() in task.prompt]
            if task.info["kind"] == "write":
                assert "found.append" not in task.prompt and "runs of equal" in task.prompt
            if task.info["kind"] == "complete":
                assert "here lines are missing" in task.prompt


def test_without_words_there_is_nothing_to_write_by(made):
    assert {task.info["kind"] for task in made["longest"].tasks} >= {"fix", "complete"}
    assert ("write", "nobody says what it does") in [
        (each.kind, each.reason) for each in made["longest"].drops
    ]


@pytest.mark.parametrize(
    "name, reason",
    [
        ("shuffled", "imports a module that it may not"), ("unordered", "not deterministic"),
        ("forever", "the reference takes too long"), ("leaves", "the reference ends the program"),
    ],
)  # fmt: skip
def test_what_can_t_be_judged_is_dropped_with_its_reason(made, name, reason):
    assert [drop.reason for drop in made[name].drops] == [reason]
    assert made[name].tasks == ()


async def test_the_verdicts_are_the_labs(made, pool):
    """What the lab says of a program on the tests, the judge says, too."""
    (task,) = (task for task in made["runs"].tasks if task.info["kind"] == "fix")
    assert (await verify(task, Patch.of(task.info["reference"]), pool)).reward == 1.0
    assert (await verify(task, Patch.of({}), pool)).reward == 0.0
    other = (
        "from itertools import groupby\n\n\n"
        "def runs(text):\n    return [(key, len(list(own))) for key, own in groupby(text)]\n"
    )
    assert (await verify(task, Patch.of({"solution.py": other}), pool)).reward == 1.0


async def test_a_prediction_is_a_literal_however_it_is_written(made, pool):
    (task,) = (task for task in made["runs"].tasks if task.info["kind"] == "predict")
    value = ast.literal_eval(task.info["reference"]["answer.txt"])
    spaced = str(value).replace(",", " ,").replace("'", '"')
    assert (await verify(task, Patch.of({"answer.txt": spaced}), pool)).reward == 1.0
    program = "__import__('solution').runs('aab')"
    assert (await verify(task, Patch.of({"answer.txt": program}), pool)).reward == 0.0


@pytest.mark.slow
async def test_the_same_seed_makes_the_same_tasks(made, pool):
    files = made_of(SOURCE)
    (candidate,) = (each for each in candidates_of(files) if each.node.name == "longest")
    assert (await maker_for(pool, files).make(candidate)).tasks == made["longest"].tasks


async def test_a_model_describes_proposes_and_is_measured(pool):
    files = made_of(SOURCE)
    (candidate,) = (each for each in candidates_of(files) if each.node.name == "longest")
    right = (
        "```python\ndef longest(words, least=2):\n    if least < 0:\n        raise ValueError\n"
        "    return max((w for w in words if len(w) >= least), key=len, default='')\n```"
    )

    def answer(prompt):
        if "Describe what" in prompt:
            return "Gives the first of the longest words that have at least `least` characters, or ''."
        if "calls of the function" in prompt:
            return (
                "```python\nlongest(['proposed', 'by', 'a', 'model'], 8)\nlongest(open('x'))\nnot a call\n```"
            )
        return right

    model = ScriptedModel(answer=answer)
    with model:
        made = await maker_for(pool, files, model=model).make(candidate)
    tasks = {task.info["kind"]: task for task in made.tasks}
    assert "first of the longest words" in tasks["write"].prompt
    assert gates_of(tasks["write"]).difficulty == 1.0 and gates_of(tasks["write"]).num_attempts == 4
    assert gates_of(tasks["predict"]).difficulty == 0.0


async def test_an_endless_program_or_one_that_exits_spoils_no_other(pool):
    good = "def f(a):\n    return a + 1\n"
    stubborn = "def f(a):\n  while 1:\n    try:\n      while 1: pass\n    except BaseException: pass\n"
    too_large = "def f(a):\n    return [a] * 10 ** 10\n"
    programs = [good, stubborn, "import os\nos._exit(0)\n", too_large, "def f(a) return", good]
    async with open_lab(pool) as lab:
        inputs = ["((1,), {})", "((2.5,), {})"]
        wanted = await lab.observe(good, "f", inputs)
        assert [each.value for each in wanted] == ["2", "3.5"]
        letters = await lab.compare(programs, "f", inputs, wanted)
    assert letters[0] == letters[-1] == "11"
    assert all("1" not in row for row in letters[1:-1])


async def test_changed_arguments_iterators_and_exceptions_are_outcomes(pool):
    source = (
        "def f(a):\n    if not a: raise KeyError('')\n    a.append(len(a))\n    return (n * 2 for n in a)\n"
    )
    async with open_lab(pool) as lab:
        found = await lab.observe(source, "f", ["(([1],), {})", "(([],), {})", "((object(),), {})"])
        assert await lab.compare([source], "f", ["(([1],), {})", "(([],), {})"], found[:2]) == ["11"]
    assert (found[0].value, found[0].is_lazy, found[0].after) == ("[2, 2]", True, {0: "[1, 1]"})
    assert found[1].raises[0] == "KeyError"


def test_values_have_one_text():
    assert text_of({"b", "a"}) == "{'a', 'b'}"
    assert text_of((1.5, float("inf"), None)) == "(1.5, float('inf'), None)"
    assert eval(text_of({(1,): [{2}, frozenset({3}), b"x", complex(1, -2)]})) == {
        (1,): [{2}, frozenset({3}), b"x", complex(1, -2)]
    }


def test_tests_are_plain_functions(made):
    (task,) = (task for task in made["runs"].tasks if task.info["kind"] == "write")
    (text,) = (text for path, text in task.tests.files.items() if path.startswith("test_"))
    functions = [each for each in ast.parse(text).body if isinstance(each, ast.FunctionDef)]
    assert len(functions) == gates_of(task).num_tests >= 5
    assert hidden_files("runs", []) == {"test_runs.py": "from solution import runs\n\n\n"}
