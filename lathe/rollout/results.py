"""The file of finished attempts, and the folder beside it for those on their way.

out.jsonl                one Rollout a line; `info.attempt` counts a task's attempts from 1
out.jsonl.unfinished/    run.json: what is being run; one file for each attempt on its way; the pool's
                         frozen layers. Deleted when all is done.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lathe.errors import UserError
from lathe.jsonl import from_line, to_line
from lathe.types import Rollout

log = logging.getLogger(__name__)


class Results:
    """The finished attempts of a run, in `path`. Opened with `open_results`.

    Whoever has seen the run to its end says so by `is_complete`: then `folder` is deleted.
    """

    def __init__(self, path: Path):
        self.path = path
        self.folder = path.with_name(path.name + ".unfinished")
        self.finished: set[tuple[str, int]] = set()
        self.is_complete = False

    def state_path(self, task: str, number: int) -> Path:
        """Where the state of an attempt on its way is kept. Tasks may have any name."""
        digest = hashlib.sha256(task.encode("utf-8", "surrogatepass")).hexdigest()[:12]
        return (
            self.folder / "attempts" / f"{re.sub(r'[^A-Za-z0-9_-]', '-', task)[:60]}-{digest}-{number}.json"
        )

    def read(self) -> Iterator[Rollout]:
        """The rollouts that are there already. A torn last line is cut off: its attempt was not finished.
        Raises UserError for a line that is no attempt of such a run."""
        if not self.path.exists():
            return
        end = 0
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.endswith(b"\n"):
                    log.warning("%s: its last line is torn, and is made anew", self.path)
                    break
                end += len(line)
                if line.strip():
                    yield self._checked(line, number)
        os.truncate(self.path, end)

    def forget_invalid(self) -> None:
        """Delete the attempts whose verdict is invalid, so that they are made anew."""
        if not self.path.exists():
            return
        fresh = self.folder / "without-invalid.jsonl"
        with self.path.open("rb") as lines, fresh.open("wb") as file:
            for number, line in enumerate(lines, 1):
                if not line.endswith(b"\n"):
                    break
                rollout = self._checked(line, number)
                if rollout.verdict is not None and rollout.verdict.valid:
                    file.write(line)
        fresh.replace(self.path)
        self.finished.clear()

    def _checked(self, line: bytes, number: int) -> Rollout:
        where = f"{self.path}, line {number}"
        try:
            rollout = from_line(line)
        except ValueError as error:
            raise UserError(f"{where}: {error}. Choose another --out, or move that file away.") from error
        attempt = rollout.info.get("attempt")
        if rollout.task is None or rollout.verdict is None or type(attempt) is not int:
            raise UserError(f"{where} is no attempt at a task. Choose another --out.")
        self.finished.add((rollout.task, attempt))
        return rollout

    def append(self, rollout: Rollout, number: int) -> None:
        """Add a finished attempt: all of its line, or nothing."""
        assert rollout.task is not None
        line = to_line(rollout)
        with os.fdopen(
            os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), "ab", buffering=0
        ) as file:
            size = os.fstat(file.fileno()).st_size
            try:
                written = 0
                while written < len(line):
                    written += file.write(line[written:])
            except OSError as error:
                file.truncate(size)
                raise UserError(f"{self.path} can't be written: {error.strerror}.") from error
        self.finished.add((rollout.task, number))


@contextmanager
def open_results(path: Path, settings: Mapping[str, Any]) -> Iterator[Results]:
    """The results of a run with these settings, new or to go on with; nobody else writes them meanwhile.

    Raises UserError when another process does, or when the attempts on their way began with other settings.
    """
    results = Results(path)
    try:
        (results.folder / "attempts").mkdir(parents=True, exist_ok=True)
        lock = os.open(results.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise UserError(f"Can't write beside {path}: {error.strerror}. Choose another --out.") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"Another lathe attempt is writing {path}. Wait for it, or choose another --out."
            ) from None
        _check_settings(results.folder / "run.json", settings)
        try:
            yield results
        finally:
            nothing_begun = not path.exists() and not any((results.folder / "attempts").iterdir())
            if results.is_complete or nothing_begun:
                shutil.rmtree(results.folder, ignore_errors=True)
    finally:
        os.close(lock)


def _check_settings(path: Path, settings: Mapping[str, Any]) -> None:
    wanted = json.loads(json.dumps(settings))
    try:
        found = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        path.write_text(json.dumps(wanted, indent=1), "utf-8")
        return
    for name in sorted({*found, *wanted}):
        if found.get(name) != wanted.get(name):
            raise UserError(
                f"{path.parent} holds attempts that began with another {name} ({found.get(name)!r}, now "
                f"{wanted.get(name)!r}). Go on with the same options, choose another --out, or "
                "delete that folder."
            )
