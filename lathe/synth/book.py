"""The files of a making: the tasks that were kept, and beside them what became of every candidate.

tasks.jsonl         the kept tasks, one a line; `info.candidate` says which candidate a task is from
tasks.jsonl.drops   a first line with the settings, then one line for each finished candidate: how many of
                    its tasks were kept, each drop with its reason, and the seconds it took
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lathe.errors import UserError
from lathe.jsonl import from_json, to_json
from lathe.types import Task


@dataclass(frozen=True)
class Drop:
    """A task that was not made, or not kept. `reason` is one of few, to be counted; `detail` is this one's.

    `kind` is the kind of task, None where the whole candidate came to nothing.
    """

    reason: str
    detail: str = ""
    kind: str | None = None


@dataclass(frozen=True)
class Made:
    """What became of one candidate."""

    candidate: str
    tasks: tuple[Task, ...] = ()
    drops: tuple[Drop, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True)
class Finished:
    """A line of the second file."""

    candidate: str
    kept: int = 0
    drops: tuple[Drop, ...] = ()
    seconds: float = 0.0


class Book:
    """Opened with `open_book`. `finished` are the candidates that need not be looked at again."""

    def __init__(self, path: Path):
        self.path = path
        self.drops_path = path.with_name(path.name + ".drops")
        self.finished: dict[str, Finished] = {}

    def tasks(self) -> Iterator[Task]:
        """The tasks that were kept."""
        if self.path.exists():
            with self.path.open("rb") as lines:
                for line in lines:
                    yield from_json(Task, json.loads(line), "")

    def add(self, made: Made) -> None:
        """Write a candidate down. Killed in the middle of it, the candidate is not finished, and what was
        written of it is taken back by the next `open_book`."""
        named = [_with_candidate(task, made.candidate) for task in made.tasks]
        line = Finished(made.candidate, len(named), made.drops, round(made.seconds, 3))
        _append(self.path, [to_json(task) for task in named])
        _append(self.drops_path, [to_json(line)])
        self.finished[made.candidate] = line


@contextmanager
def open_book(path: Path, settings: Mapping[str, Any]) -> Iterator[Book]:
    """The files of a making with these settings, new or to go on with; nobody else writes them meanwhile.

    Raises UserError when another process does, when the files are another making's, or can't be written.
    """
    book = Book(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(book.drops_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise UserError(f"{path} can't be written: {error.strerror}. Choose another --out.") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"Another lathe make is writing {path}. Wait, or choose another --out.") from None
        _read_finished(book, json.loads(json.dumps(settings)))
        _cut_unfinished(book)
        yield book
    finally:
        os.close(lock)


def _read_finished(book: Book, settings: Mapping[str, Any]) -> None:
    end = 0
    with book.drops_path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.endswith(b"\n"):
                break
            try:
                data = json.loads(line)
                if number == 1:
                    _check_settings(book, data["settings"], settings)
                else:
                    done = from_json(Finished, data, "")
                    book.finished[done.candidate] = done
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f"{book.drops_path}, line {number}, is none of a making's: {error}. Choose another --out."
                ) from error
            end += len(line)
    os.truncate(book.drops_path, end)
    if end == 0:
        if book.path.exists() and book.path.stat().st_size:
            raise UserError(f"{book.path} is there already, and is no making's. Choose another --out.")
        _append(book.drops_path, [{"settings": settings}])


def _check_settings(book: Book, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for name in sorted({*found, *wanted}):
        if found.get(name) != wanted.get(name):
            raise UserError(
                f"{book.path} was begun with another {name} ({found.get(name)!r}, now {wanted.get(name)!r}). "
                f"Go on with the same options, choose another --out, or delete it and {book.drops_path.name}."
            )


def _cut_unfinished(book: Book) -> None:
    """Tasks stand before their candidate's line: those of a candidate without one are the file's end."""
    if not book.path.exists():
        return
    end = 0
    with book.path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                candidate = json.loads(line)["info"]["candidate"] if line.endswith(b"\n") else None
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{book.path}, line {number}: no made task. Choose another --out.") from error
            if candidate not in book.finished:
                break
            end += len(line)
    os.truncate(book.path, end)


def _with_candidate(task: Task, candidate: str) -> Task:
    return replace(task, info={**task.info, "candidate": candidate})


def _append(path: Path, lines: list[Any]) -> None:
    data = "".join(json.dumps(each, ensure_ascii=False, allow_nan=False) + "\n" for each in lines)
    try:
        with path.open("ab") as file:
            file.write(data.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise UserError(f"{path} can't be written: {error.strerror}.") from error
