"""The micro-Python family: parts that share no program, tasks whose tests tell right from wrong."""

import random
from collections import Counter

import pytest

from lathe.errors import UserError
from lathe.tasks.patch import Patch
from lathe.tasks.verify import verify_many
from lathe.train.families.micro_python import (
    PARTS,
    MicroPython,
    fails,
    normalized,
    telling_inputs,
)
from lathe.train.families.micro_python_words import ENDINGS, STEPS


def test_parts_share_no_program_even_with_other_names_and_numbers():
    family = MicroPython(seed=3)
    shapes = {part: {normalized(each.solution) for each in family.problems(part, 60)} for part in PARTS}
    assert all(len(each) == 60 for each in shapes.values())
    assert len(set().union(*shapes.values())) == 4 * 60


def test_normalized_code_forgets_names_and_numbers_alone():
    one = "def solve(xs):\n    xs = [x for x in xs if x > 3]\n    return sum(xs)\n"
    other = "def f(items):\n    items = [y for y in items if y > 7]\n    return sum(items)\n"
    assert normalized(one) == normalized(other)
    assert normalized(one) != normalized(one.replace(">", "<"))
    assert normalized(one) != normalized(one.replace("sum", "len"))


def test_a_part_begins_alike_however_much_of_it_is_taken_and_another_seed_is_another_family():
    few, many = (MicroPython(seed=3).problems("rl", count) for count in (20, 60))
    assert many[:20] == few
    assert MicroPython(seed=4).problems("rl", 20) != few
    with pytest.raises(UserError, match="pretrain, sft, rl, eval"):
        MicroPython().problems("test", 3)


def test_the_answer_is_in_no_prompt():
    for problem in MicroPython().problems("eval", 40):
        assert not any(line.strip() in problem.prompt for line in problem.solution.splitlines())


def test_demonstrations_are_wrong_as_often_as_the_corpus_has_it():
    family, rng = MicroPython(seed=1, misled=0.35), random.Random(0)
    assert sum(shares[0] < 0.5 for shares in family.habits.values()) == round(
        0.35 * (len(STEPS) + len(ENDINGS))
    )
    (problem,) = family.problems("sft", 1)
    seen = Counter(family.demonstration(problem, rng) == problem.solution for _ in range(1000))
    expected = 1.0
    for step in problem.steps:
        expected *= family.habits[step.word][0]
    assert seen[True] / 1000 == pytest.approx(expected, abs=0.06)


def test_inputs_tell_mistakes_from_the_solution_wherever_they_differ_at_all():
    """A mistake that no input shows agrees with the solution on many more inputs."""
    missed = total = 0
    for problem in MicroPython(seed=2).problems("rl", 25):
        inputs = telling_inputs(problem, random.Random(0))
        others = telling_inputs(problem, random.Random(1))
        for code in problem.variants():
            total += 1
            missed += fails(code, others) and not fails(code, inputs)
    assert missed / total < 0.02


async def test_tasks_are_solved_by_their_solution_and_not_by_a_mistake(pool):
    family = MicroPython(seed=5)
    problems = family.problems("eval", 3)
    tasks = [family.task(problem, str(place)) for place, problem in enumerate(problems)]
    right = [
        (task, Patch.of({"solution.py": problem.solution}))
        for task, problem in zip(tasks, problems, strict=True)
    ]
    bug = family.bug(problems[0], "bug")
    attempts = [
        (tasks[0], Patch.of({"solution.py": bug.files["solution.py"]})),
        (tasks[1], Patch()),
        (bug, Patch()),
        (bug, Patch.of({"solution.py": problems[0].solution})),
    ]
    verdicts = await verify_many([*right, *attempts], pool)
    assert [verdict.reward for verdict in verdicts] == [1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0]
