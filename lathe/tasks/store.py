"""Tasks in files: one JSON object a line, with the fields of `types.Task`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from lathe.errors import TaskError
from lathe.jsonl import from_json, to_json
from lathe.types import Task


def read_tasks(path: Path | str) -> Iterator[Task]:
    """The tasks of a file, or of all .jsonl files of a folder by name. Raises TaskError, which says where."""
    path = Path(path)
    if not path.exists():
        raise TaskError(f"There are no tasks at {path}: no such file or folder.")
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    if not files:
        raise TaskError(f"There are no tasks in {path}: it holds no .jsonl file.")
    seen: dict[str, str] = {}
    for file in files:
        for place, line in enumerate(file.read_bytes().splitlines(), 1):
            if not line.strip():
                continue
            where = f"{file}, line {place}"
            task = _read(line, where)
            if task.id in seen:
                raise TaskError(f"{where}: the task {task.id!r} stands in {seen[task.id]} already.")
            seen[task.id] = where
            yield task


def _read(line: bytes, where: str) -> Task:
    try:
        task = from_json(Task, json.loads(line), "")
        assert isinstance(task, Task)
        check_task(task)
    except ValueError as error:
        raise TaskError(f"{where}: {error}") from error
    return task


def write_tasks(path: Path | str, tasks: Iterable[Task]) -> None:
    """One file of tasks, whole lines only."""
    Path(path).write_text(
        "".join(json.dumps(to_json(task), ensure_ascii=False, allow_nan=False) + "\n" for task in tasks),
        "utf-8",
    )


def task_digest(task: Task) -> str:
    """What a task is, whatever its id: equal for tasks that are the same problem with the same tests."""
    content = {name: value for name, value in to_json(task).items() if name not in ("id", "info", "source")}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def check_task(task: Task) -> None:
    """Raises ValueError for a task that could never be judged, naming the field."""
    tests = task.tests
    if not task.id:
        raise ValueError("id: empty")
    if not task.workdir.startswith("/"):
        raise ValueError(f"workdir: {task.workdir!r} is no absolute path")
    for field, files in (("files", task.files), ("tests.files", tests.files)):
        for path, text in files.items():
            if not isinstance(text, str):
                raise ValueError(f"{field}.{path}: no text")
            parts = Path(path).parts
            if not parts or path.startswith("/") or ".." in parts or "\0" in path or parts[0] == ".git":
                raise ValueError(f"{field}: {path!r} is no path inside the workdir")
    if tests.report in ("pytest", "python") and not tests.files:
        raise ValueError(f"tests.files: empty, and {tests.report!r} needs at least one")
    if tests.report == "stdio" and not tests.cases:
        raise ValueError("tests.cases: empty, and 'stdio' needs at least one")
    if tests.report in ("stdio", "lines") and not tests.command:
        raise ValueError(f"tests.command: empty, and {tests.report!r} needs one")
    if tests.report == "lines" and not tests.must_pass:
        raise ValueError("tests.must_pass: empty, and 'lines' can't know which tests there are")
    if any(len(case) != 2 for case in tests.cases):
        raise ValueError("tests.cases: each is an input and an output")
