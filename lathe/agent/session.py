"""Sessions: a person's conversations with the agent, one file each, which can be taken up again.

A file is a `Rollout` in parts (see `jsonl.py`), so trainers and `lathe show` read it as it is; its
trajectories are token for token what the model saw and said. What a session knows beyond that stands in
each part's `info`: the folder, and the *points*, one before each turn of the person, to which conversation
and files can go back. Files only grow. A last line that is torn, as a crash or a full disk leaves it, is
dropped.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lathe.agent.project import project_name
from lathe.agent.shadow import Snapshot
from lathe.errors import RecordError, UserError
from lathe.jsonl import Continues, Part, from_json, join, part_from_line, part_to_line, to_json
from lathe.types import Rollout, Trajectory

TITLE_CHARS = 80


@dataclass(frozen=True)
class Point:
    """The moment before a person's turn. `prompt` is what they then said; `trajectory`, of which the first
    `num_messages` and `num_tokens` were there, is the conversation. `before` and `after` are the files around
    the turn, None where they were not kept; `after` also as long as the turn goes on."""

    number: int
    prompt: str
    trajectory: str
    num_messages: int
    num_tokens: int
    before: Snapshot | None = None
    after: Snapshot | None = None


@dataclass(frozen=True)
class SessionInfo:
    """A session as a list shows it. `changed_s` is in seconds since 1970."""

    id: str
    title: str
    model: str | None
    changed_s: float
    num_bytes: int
    path: Path


class Session:
    """One conversation, and its file. Opened by `SessionStore`; nobody else writes to it meanwhile.

    `trajectory` is where it stands, None before the first turn.
    """

    def __init__(self, path: Path, id: str, folder: Path, model: str | None = None):
        self.path, self.id, self.folder, self.model = path, id, folder, model
        self.points: list[Point] = []
        self.title = ""
        self.trajectory: Trajectory | None = None
        self._saved: dict[str, Trajectory] = {}
        self._file: int | None = None
        self._joined: Part | None = None

    # Writing

    def begin_turn(self, prompt: str, trajectory: Trajectory, files: Snapshot | None) -> Point:
        """A person is about to say `prompt` to `trajectory`."""
        self._save(trajectory)
        self.title = self.title or title_of(prompt)
        number = self.points[-1].number + 1 if self.points else 1
        point = Point(
            number, prompt, trajectory.id, len(trajectory.messages), len(trajectory.token_ids), files
        )
        self.points.append(point)
        self._write((), {"point": to_json(point)})
        return point

    def save(self, trajectory: Trajectory, stop_reason: str | None = None) -> None:
        """The conversation has come so far: after each reply and each round of results."""
        self._save(trajectory, stop_reason)

    def end_turn(self, trajectory: Trajectory, files: Snapshot | None, stop_reason: str) -> None:
        """The agent is done with the person's turn."""
        self._save(trajectory, stop_reason)
        if self.points and files is not None:
            self.points[-1] = replace(self.points[-1], after=files)
            self._write((), {"after": to_json(files)})

    def rewind(self, point: Point) -> Trajectory:
        """The conversation as it was before a point's turn, as a new trajectory that names the old one."""
        trajectory = branch(self._saved[point.trajectory], point.num_messages, point.num_tokens)
        self.points = [other for other in self.points if other.number < point.number]
        self._write((), {"rewound_to": point.number})
        self._save(trajectory)
        return trajectory

    def clear(self) -> None:
        """Forget the conversation; the file keeps it. No point before this can be gone back to."""
        self.points, self.trajectory = [], None
        if self._joined is not None:
            self._write((), {"rewound_to": 0})

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _save(self, trajectory: Trajectory, stop_reason: str | None = None) -> None:
        before = self._saved.get(trajectory.id)
        self.trajectory = trajectory
        if before == trajectory and stop_reason is None:
            return
        new, continues = trajectory, {}
        if before is not None and extends(trajectory, before):
            num_messages = len(before.messages)
            continues = {trajectory.id: Continues(num_messages, len(before.token_ids))}
            new = Trajectory(
                trajectory.messages[num_messages:],
                token_ids=trajectory.token_ids[len(before.token_ids) :],
                loss_mask=trajectory.loss_mask[len(before.token_ids) :],
                logprobs=trajectory.logprobs[len(before.token_ids) :],
                segments=trajectory.segments[len(before.segments) :],
                id=trajectory.id,
            )
        self._write((new,), {}, stop_reason, continues)
        self._saved[trajectory.id] = trajectory

    def _write(
        self,
        trajectories: Sequence[Trajectory],
        info: dict[str, Any],
        stop_reason: str | None = None,
        continues: dict[str, Continues] | None = None,
    ) -> None:
        about = {"folder": str(self.folder), "title": self.title}
        rollout = Rollout(tuple(trajectories), stop_reason, model=self.model, id=self.id, info=about | info)
        number = 0 if self._joined is None else (self._joined.number or 0) + 1
        part = Part(rollout, number, continues or {})
        self._append(part_to_line(part))
        self._joined = replace(part, continues={}, rollout=replace(rollout, trajectories=()))

    def _append(self, line: bytes) -> None:
        if self._file is None:
            self._open()
        assert self._file is not None
        size = os.fstat(self._file).st_size
        try:
            view = memoryview(line)
            while view:
                view = view[os.write(self._file, view) :]
        except OSError as error:
            os.ftruncate(self._file, size)
            raise UserError(f"The session can't be kept in {self.path}: {error.strerror}.") from error

    def _open(self) -> None:
        try:
            # What people say to a model is nobody else's business.
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise UserError(f"Sessions can't be kept in {self.path.parent}: {error.strerror}.") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.close()
            raise UserError(
                f"The session {self.id} is open in another terminal: leave it there, or go on with a copy "
                "of it (--fork)."
            ) from error

    # Reading

    def _read(self) -> None:
        """All that the file says; its torn end is cut off."""
        whole = 0
        for number, line in enumerate(lines_of(self.path), 1):
            if not line.endswith(b"\n"):
                break
            whole += len(line)
            if line.strip():
                self._read_line(line, number)
        if self._file is not None and whole < os.fstat(self._file).st_size:
            os.ftruncate(self._file, whole)
        if self._joined is None:
            raise UserError(f"The session {self.id} is empty: nothing was said in it.")

    def _read_line(self, line: bytes, number: int) -> None:
        try:
            part = part_from_line(line)
            if self._joined is not None and part.rollout.id != self._joined.rollout.id:
                raise ValueError("id: it belongs to another session")
            info = part.rollout.info
            last = part.rollout.trajectories[-1].id if part.rollout.trajectories else None
            self._joined = join(self._joined, part)
            self._saved = {each.id: each for each in self._joined.rollout.trajectories}
            if "point" in info:
                self.points.append(from_json(Point, info["point"], "info.point"))
            if "after" in info and self.points:
                after = from_json(Snapshot, info["after"], "info.after")
                self.points[-1] = replace(self.points[-1], after=after)
            if "rewound_to" in info:
                number_left = from_json(int, info["rewound_to"], "info.rewound_to")
                self.points = [point for point in self.points if point.number < number_left]
                self.trajectory = self.trajectory if number_left else None
            if last is not None:
                self.trajectory = self._saved[last]
            self.title = str(info.get("title", "")) or self.title
            self.model = part.rollout.model or self.model
        except (ValueError, KeyError) as error:
            raise RecordError(
                f"{self.path}, line {number}: {error}. The session is damaged; the lines before that one can "
                "be saved with head."
            ) from error


def extends(after: Trajectory, before: Trajectory) -> bool:
    """Is it the same conversation, with more of it? Tokens are compared by their number: they only grow."""
    return (
        after.messages[: len(before.messages)] == before.messages
        and len(after.token_ids) >= len(before.token_ids)
        and after.segments[: len(before.segments)] == before.segments
    )


def branch(trajectory: Trajectory, num_messages: int, num_tokens: int) -> Trajectory:
    """A new trajectory that begins as an old one did. It repeats the old one's tokens unmasked: each sampled
    token is marked once."""
    return Trajectory(
        trajectory.messages[:num_messages],
        trajectory.tools,
        trajectory.token_ids[:num_tokens],
        (False,) * num_tokens,
        (0.0,) * num_tokens,
        parent=trajectory.id,
        template_kwargs=trajectory.template_kwargs,
    )


def title_of(prompt: str) -> str:
    line = next((line.strip() for line in prompt.splitlines() if line.strip()), "")
    return line if len(line) <= TITLE_CHARS else line[: TITLE_CHARS - 1] + "…"


def lines_of(path: Path) -> Iterator[bytes]:
    with path.open("rb") as lines:
        yield from lines


class SessionStore:
    """The sessions of one project's folder, under `state` (see `project.state_folder`)."""

    def __init__(self, state: Path, folder: Path):
        self.project = folder
        self.folder = state / "sessions" / project_name(folder)

    def create(self, model: str | None = None) -> Session:
        """A new session. Its file is made when something is said."""
        id = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
        return Session(self.folder / f"{id}.jsonl", id, self.project, model)

    def list(self) -> list[SessionInfo]:
        """All there are, the one used last first. Of each file, only the first lines are read."""
        found = [self._info(path) for path in self.folder.glob("*.jsonl")]
        return sorted((info for info in found if info), key=lambda info: (-info.changed_s, info.id))

    def find(self, id: str | None) -> SessionInfo:
        """A session by its id or the beginning of it; None means the last one. Raises UserError."""
        known = self.list()
        if id is None:
            if not known:
                raise UserError(f"No session of {self.project} can be gone on with: there is none yet.")
            return known[0]
        found = [info for info in known if info.id == id] or [i for i in known if id and i.id.startswith(id)]
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(info.id for info in found[:8])
            raise UserError(f"{id} is the beginning of {len(found)} sessions: {names}. Write more of it.")
        hint = ", ".join(info.id for info in known[:5])
        some = f" The last ones are {hint}." if known else " It has none yet."
        raise UserError(f"{self.project} has no session {id}.{some}")

    def resume(self, id: str | None = None) -> Session:
        """Take up a session; None means the last one. Raises UserError, RecordError for a damaged file."""
        info = self.find(id)
        session = Session(info.path, info.id, self.project)
        session._open()
        try:
            session._read()
        except BaseException:
            session.close()
            raise
        return session

    def fork(self, id: str | None = None) -> Session:
        """A new session that begins where another one stands; that one is left as it is."""
        info = self.find(id)
        old = Session(info.path, info.id, self.project)
        old._read()
        new = self.create(old.model)
        new.title = old.title
        if (trajectory := old.trajectory) is None:
            return new
        copy = branch(trajectory, len(trajectory.messages), len(trajectory.token_ids))
        new._save(copy)
        # Points in older trajectories (from before a compaction) are not copied: they are not in this file.
        for point in old.points:
            if point.trajectory == trajectory.id:
                new.points.append(replace(point, trajectory=copy.id))
                new._write((), {"point": to_json(new.points[-1])})
        return new

    def _info(self, path: Path) -> SessionInfo | None:
        title, model = "", None
        try:
            status = path.stat()
            with path.open("rb") as lines:
                for _, line in zip(range(4), lines, strict=False):  # the title is known with the first turn
                    data = json.loads(line)
                    title = title or str(data.get("info", {}).get("title", ""))
                    model = model or data.get("model")
        except (OSError, ValueError, AttributeError):
            title = title or "(damaged)"
        return SessionInfo(path.stem, title, model, status.st_mtime, status.st_size, path)
