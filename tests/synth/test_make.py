"""`lathe make`, from a folder to a file of tasks."""

import json

import pytest
from typer.testing import CliRunner

from lathe.cli import app
from lathe.sandbox.probe import probe
from lathe.synth.gates import gates_of
from lathe.tasks.store import read_tasks

LIBRARY = '''
def digits(number: int) -> list[int]:
    """The decimal digits of a number, the last one first. Its sign makes no difference.

    >>> digits(205)
    [5, 0, 2]
    """
    number = abs(number)
    found = []
    while number >= 10:
        found.append(number % 10)
        number = number // 10
    found.append(number)
    return found


def today(path):
    return open(path).read()
'''


def lathe(*arguments):
    result = CliRunner().invoke(app, ["make", "functions", *map(str, arguments)])
    return result.exit_code, result.output + (result.stderr if result.stderr_bytes else "")


@pytest.fixture
def library(tmp_path):
    folder = tmp_path / "library"
    folder.mkdir()
    (folder / "numbers.py").write_text(LIBRARY)
    return folder


@pytest.mark.skipif(probe().auto is None, reason="this machine refuses sandboxes of every kind")
def test_a_folder_becomes_a_file_of_tasks_and_is_not_read_twice(library, tmp_path):
    out = tmp_path / "tasks.jsonl"
    asked = [
        library,
        "--out",
        out,
        "--licence",
        "MIT",
        "--no-humaneval",
        "--gold",
        1,
        "--where",
        "mutation > 0.3",
    ]
    code, text = lathe(*asked)
    assert code == 0, text
    assert "tasks a minute" in text and "depends on more than its arguments" in text
    tasks = list(read_tasks(out))
    assert {task.info["kind"] for task in tasks} >= {"write", "fix", "complete"}
    assert all(gates_of(task).flake == 0.0 and task.licence == "MIT" for task in tasks)
    lines = [json.loads(line) for line in (tmp_path / "tasks.jsonl.drops").read_text().splitlines()[1:]]
    assert {line["candidate"].split(":")[-1] for line in lines} == {"digits", "today"}
    before = out.read_bytes()
    code, text = lathe(*asked)
    assert code == 0 and "2 of them before" in text and out.read_bytes() == before


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["no_such_package"], "no file, no folder, and no installed Python package"),
        (["textwrap", "--kinds", "write,paint"], "paint is no kind of task"),
        (["textwrap", "--where", "mutatoin > 1"], "Did you mean mutation"),
        (["textwrap", "--backend", "cardboard"], "cardboard is no backend"),
        (["textwrap", "--benchmark", "nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_mistakes_are_named(arguments, said, tmp_path):
    code, text = lathe(*arguments, "--out", tmp_path / "tasks.jsonl", "--no-humaneval")
    assert code == 1 and said in " ".join(text.split())
    assert not (tmp_path / "tasks.jsonl").exists()
