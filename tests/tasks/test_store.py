"""Tasks come back from files as they were, and what is wrong in a file is named with its line."""

import json

import pytest

from lathe.errors import TaskError
from lathe.tasks.store import read_tasks, task_digest, write_tasks
from lathe.types import HiddenTests, Limits, Task

TASK = Task(
    id="add",
    prompt="Größer → schöner",
    tests=HiddenTests(report="stdio", command=("python3", "a.py"), cases=(("1\n", "2\n"), ("", ""))),
    files={"a.py": "x = 1\n"},
    protected=("*.lock",),
    limits=Limits(memory_bytes=None),
    info={"difficulty": 0.5},
)
PLAIN = Task("plain", "", HiddenTests(files={"test_a.py": ""}))


def test_there_and_back(tmp_path):
    write_tasks(tmp_path / "a.jsonl", [TASK, PLAIN])
    assert list(read_tasks(tmp_path / "a.jsonl")) == [TASK, PLAIN]
    assert list(read_tasks(tmp_path)) == [TASK, PLAIN]


def test_what_a_task_is_does_not_hang_on_its_name():
    assert task_digest(TASK) == task_digest(Task(**{**vars(TASK), "id": "other", "info": {}}))
    assert task_digest(TASK) != task_digest(Task(**{**vars(TASK), "prompt": "else"}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"promt": "x"}, "promt: Task has no such field"),
        ({"tests": {"report": "magic"}}, "tests.report"),
        ({"tests": {}}, "tests.files: empty"),
        ({"tests": {"report": "stdio", "command": ["a"]}}, "tests.cases: empty"),
        ({"tests": {"report": "stdio", "cases": [["1", "2"]]}}, "tests.command: empty"),
        ({"tests": {"report": "lines", "command": ["a"]}}, "tests.must_pass: empty"),
        ({"files": {"../up": ""}}, "files: '../up' is no path inside"),
        ({"files": {"/etc/passwd": ""}}, "no path inside"),
        ({"files": {".git/config": ""}}, "no path inside"),
        ({"files": {"a": 3}}, "files.a: no text"),
        ({"workdir": "work"}, "no absolute path"),
        ({"id": ""}, "id: empty"),
        ({"limits": {"memory": 3}}, "limits.memory: Limits has no such field"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, change, words):
    good = {"id": "x", "prompt": "", "tests": {"files": {"test_a.py": ""}}}
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps({**good, "id": "first"}) + "\n\n" + json.dumps({**good, **change}) + "\n")
    with pytest.raises(TaskError, match=r"t\.jsonl, line 3") as error:
        list(read_tasks(path))
    assert words in str(error.value)


def test_two_of_one_name_and_no_file(tmp_path):
    write_tasks(tmp_path / "a.jsonl", [PLAIN])
    write_tasks(tmp_path / "b.jsonl", [PLAIN])
    with pytest.raises(TaskError, match=r"b\.jsonl, line 1: the task 'plain' stands in .*a\.jsonl, line 1"):
        list(read_tasks(tmp_path))
    (tmp_path / "empty").mkdir()
    for path in ("missing.jsonl", "empty"):
        with pytest.raises(TaskError, match="There are no tasks"):
            list(read_tasks(tmp_path / path))
    (tmp_path / "torn.jsonl").write_text('{"id": "a"')
    with pytest.raises(TaskError, match=r"torn\.jsonl, line 1"):
        list(read_tasks(tmp_path / "torn.jsonl"))
