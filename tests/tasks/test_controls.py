"""Each hidden test must be able to fail, in whichever style it is written."""

import ast

from cheats import RIGHT, WRONG, YES

from lathe.tasks import controls
from lathe.tasks.patch import Patch
from lathe.tasks.verify import verify
from lathe.types import HiddenTests, Task

STYLES = """\
'''Kept.'''
from __future__ import annotations

import unittest
from unittest.mock import ANY, Mock

import pytest
from solution import add


class Cases(unittest.TestCase):
    def setUp(self):
        self.calls = Mock()

    def test_method(self):
        self.assertEqual(add(1, 2), 3, "a message")

    def test_parts(self):
        for number in range(3):
            with self.subTest(number=number):
                self.assertEqual(add(number, 1), number + 1)

    def test_calls(self):
        self.calls(add(1, 1))
        self.calls.assert_called_once_with(2)
        assert self.calls.call_args_list == [ANY]


class TestPlain:
    @pytest.mark.parametrize("pair", [(1, 2), (3, 4)])
    def test_pair(self, pair):
        assert (total := add(*pair)) == sum(pair), total


def test_that_returns_early(tmp_path):
    global seen
    seen = add(1, 1)
    if seen == 2:
        return
    raise AssertionError


def test_that_raises():
    with pytest.raises(TypeError):
        add(1, "a")
    assert add(0.1, 0.2) == pytest.approx(0.3)


def test_messages():
    message = f"{add(1, 2)!r:>3}"
    assert message == '  3', f"it was {message}"
"""
TASK = Task("styles", "", HiddenTests(files={"test_styles.py": STYLES}))


async def test_tests_of_every_style_pass_for_what_is_right(pool):
    verdict = await verify(TASK, Patch.of({"solution.py": RIGHT["the sum"]}), pool)
    assert (verdict.reward, verdict.suspect) == (1.0, None), verdict
    assert verdict.evidence["num_tests"] == 7


async def test_tests_of_every_style_fail_for_what_is_wrong(pool):
    verdict = await verify(TASK, Patch.of({"solution.py": WRONG}), pool)
    assert (verdict.reward, verdict.suspect) == (0.0, None)
    assert verdict.evidence["num_passed"] == 0, verdict.evidence["failed"]


async def test_what_equals_everything_is_named_with_its_tests(pool):
    names = ("Cases::test_method", "Cases::test_parts", "TestPlain::test_pair")
    names = tuple(f"test_one.py::{name}" for name in names)
    text = STYLES.replace("ANY, Mock", "Mock").replace("[ANY]", "[((2,),)]")
    tests = HiddenTests(files={"test_one.py": text}, must_pass=names)
    yes = YES + "\n\ndef add(a, b):\n    a + b\n    return Yes()\n"
    verdict = await verify(Task("one", "", tests), Patch.of({"solution.py": yes}), pool)
    assert verdict.reward == 0.0
    for name in names:
        assert f"{name} passes whatever it asks" in (verdict.suspect or ""), verdict


COMPARED = """
from solution import add


def test_and():
    assert add(1, 2) == 3 and add(2, 2) == 4


def test_all():
    assert all(add(a, b) == total for a, b, total in [(1, 2, 3), (0, 0, 0)])


def test_if():
    if add(1, 2) == 3:
        return
    raise AssertionError


def test_in():
    assert add(1, 2) in (3, 4)
    assert 3 in [add(1, 2)]
"""


async def test_comparisons_within_expressions_have_probes(pool):
    task = Task("compared", "", HiddenTests(files={"test_compared.py": COMPARED}))
    verdict = await verify(task, Patch.of({"solution.py": RIGHT["the sum"]}), pool)
    assert (verdict.reward, verdict.suspect) == (1.0, None), verdict
    yes = YES + "\n\ndef add(a, b):\n    return Yes()\n"
    verdict = await verify(task, Patch.of({"solution.py": yes}), pool)
    for name in ("and", "all", "if", "in"):
        assert f"test_{name} passes whatever it asks" in (verdict.suspect or ""), verdict


def test_probes_stand_in_tests_alone():
    text = "def helper():\n    assert 1 == 1\n\n\ndef test_it():\n    assert 1 == 1, 'no'\n    assert 2\n"
    made = controls.with_controls(text, spoiled=True)
    helper, test = ast.parse(made).body
    assert ast.unparse(helper) == "def helper():\n    assert 1 == 1"
    assert ast.unparse(test).count(controls.PROBE) == 1
    assert ast.unparse(test).count(controls.END) == 1
    assert [name for name, _ in controls.tests_of(ast.parse(made))] == ["test_it"]


def test_each_probe_asks_both_questions():
    text = "def test_it():\n    assert 1 == 1\n"
    for _ in range(200):
        made = ast.walk(ast.parse(controls.with_controls(text, spoiled=True)))
        (order,) = [
            node.value for node in made if isinstance(getattr(node, "value", None), int) and node.value > 1
        ]
        assert 64 < order < 128 and bin(order).count("1") == 4


def test_the_two_runs_differ_in_a_constant_alone():
    text = "def test_it():\n    return 1\n"
    shapes = set()
    for spoiled in (False, True):
        nodes = [
            type(node).__name__ for node in ast.walk(ast.parse(controls.with_controls(text, spoiled=spoiled)))
        ]
        shapes.add(tuple(nodes))
    assert len(shapes) == 1
