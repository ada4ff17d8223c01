"""Rollouts as lines of JSON, both directions: what evals log, trainers read and the server records.

A line is one `Rollout`: an object with the fields of the dataclasses in `types.py`, in their order, those at
their default left out. Strict JSON in UTF-8; `loss_mask` is written in 0 and 1, an infinite float as the text
"-inf". What is read equals what was written, floats to the last bit, with one exception that is JSON's own:
a high surrogate followed by a low one comes back as the character that they stand for.

A conversation that grows is written in *parts*, so that each turn costs only what is new: lines that say
`"part": 0, 1, 2 …` and hold the same rollout's id. A trajectory that was begun in an earlier part says
`"continues": {"num_messages": 4, "num_tokens": 812}`, and what it holds comes behind that many. Readers join
the parts of a file; who reads `Rollout`s never sees them.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from lathe.errors import RecordError
from lathe.types import Rollout, Trajectory

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Continues:
    """How much of an earlier part's trajectory stands: what comes next follows it."""

    num_messages: int
    num_tokens: int


@dataclass(frozen=True)
class Part:
    """What one line says. `number` is None when it is a whole rollout. `continues` is by trajectory's id."""

    rollout: Rollout
    number: int | None = None
    continues: Mapping[str, Continues] = field(default_factory=dict)


def to_line(rollout: Rollout) -> bytes:
    """A whole rollout, with the newline. Raises ValueError when it holds what JSON has no word for."""
    return part_to_line(Part(rollout))


def from_line(line: bytes) -> Rollout:
    """The rollout of a line that holds it whole. Raises ValueError, which names the field."""
    part = part_from_line(line)
    if part.number is not None:
        raise ValueError("part: the line holds a part of a rollout; read its file")
    return part.rollout


def part_to_line(part: Part) -> bytes:
    """The line of a part, or of a whole rollout."""
    data = to_json(part.rollout)
    for trajectory in data["trajectories"]:
        if where := part.continues.get(trajectory["id"]):
            trajectory["continues"] = to_json(where)
    if part.number is not None:
        data = {"part": part.number, **data}
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # A lone surrogate is no UTF-8; backslashreplace writes \ud800, which is JSON's own escape for it.
    return text.encode("utf-8", "backslashreplace") + b"\n"


def part_from_line(line: bytes) -> Part:
    """What a line says. Raises ValueError, which names the field."""
    try:
        data = json.loads(line)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(data, dict) or not isinstance(data.get("trajectories"), list):
        raise ValueError("it is no JSON object with trajectories")
    number = from_json(int | None, data.pop("part", None), "part")
    continues = {}
    for place, trajectory in enumerate(data["trajectories"]):
        if isinstance(trajectory, dict) and "continues" in trajectory:
            where = f"trajectories.{place}.continues"
            continues[str(trajectory.get("id"))] = from_json(Continues, trajectory.pop("continues"), where)
    if continues and number is None:
        raise ValueError("part: missing, though a trajectory continues another line's")
    rollout = from_json(Rollout, data, "")
    for place, trajectory in enumerate(rollout.trajectories):
        lengths = {len(trajectory.token_ids), len(trajectory.loss_mask), len(trajectory.logprobs)}
        if len(lengths) > 1:
            raise ValueError(f"trajectories.{place}: token_ids, loss_mask and logprobs differ in length")
    return Part(rollout, number, continues)


# Files


def write_rollouts(path: Path | str, rollouts: Iterable[Rollout]) -> None:
    """A file of whole rollouts, one a line. Replaces what is there."""
    with Path(path).open("wb") as file:
        file.writelines(map(to_line, rollouts))


def read_rollouts(path: Path | str) -> Iterator[Rollout]:
    """The rollouts of a file, or of every .jsonl in a folder, file by file in the order of their names.

    Whole rollouts leave as they are read. Those in parts leave at the end of their file, joined; the memory
    is theirs. A last line that is torn (a crash, or a server that is just writing) is reported in the log and
    skipped. Raises RecordError, with file and line, for any other line that is no rollout.
    """
    path = Path(path)
    if not path.exists():
        raise RecordError(f"{path} does not exist: name a file of rollouts, or a folder of .jsonl files.")
    for file in sorted(path.rglob("*.jsonl")) if path.is_dir() else [path]:
        yield from _read_file(file)


def _read_file(path: Path) -> Iterator[Rollout]:
    joined: dict[str, Part] = {}
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                part = part_from_line(line)
                if part.number is not None:
                    joined[part.rollout.id] = join(joined.get(part.rollout.id), part)
            except ValueError as error:
                if not line.endswith(b"\n"):
                    log.warning("%s, line %d: skipped, because it is torn: its end is missing", path, number)
                    continue
                raise RecordError(f"{path}, line {number}: {error}") from error
            if part.number is None:
                yield part.rollout
    for part in joined.values():
        yield part.rollout


def join(before: Part | None, part: Part) -> Part:
    """All that is known after a rollout's next part. What the part says of the rollout itself counts, what it
    leaves out stays. Raises ValueError when a part is missing between the two."""
    expected = 0 if before is None else (before.number or 0) + 1
    if part.number != expected:
        raise ValueError(f"part: {part.number}, but {expected} is next for the rollout {part.rollout.id}")
    if before is None:
        if part.continues:
            raise ValueError("continues: this is the rollout's first part")
        return part
    trajectories = {trajectory.id: trajectory for trajectory in before.rollout.trajectories}
    for trajectory in part.rollout.trajectories:
        where = part.continues.get(trajectory.id)
        if where is not None:
            if trajectory.id not in trajectories:
                raise ValueError(f"continues: the trajectory {trajectory.id} was not begun")
            trajectory = _continued(trajectories[trajectory.id], trajectory, where)
        trajectories[trajectory.id] = trajectory
    said = {name: value for name, value in vars(part.rollout).items() if value not in (None, {})}
    return replace(
        part, rollout=replace(before.rollout, **said | {"trajectories": (*trajectories.values(),)})
    )


def _continued(before: Trajectory, new: Trajectory, where: Continues) -> Trajectory:
    if len(before.token_ids) != where.num_tokens or len(before.messages) < where.num_messages:
        raise ValueError(f"continues: the trajectory {before.id} has not that many messages or tokens")
    return replace(
        before,
        messages=before.messages[: where.num_messages] + new.messages,
        token_ids=before.token_ids + new.token_ids,
        loss_mask=before.loss_mask + new.loss_mask,
        logprobs=before.logprobs + new.logprobs,
        segments=before.segments + new.segments,
    )


# Dataclasses as JSON


def to_json(value: Any) -> Any:
    """Plain data from a dataclass: fields at their default are left out, booleans in a tuple are 0 and 1."""
    if is_dataclass(value):
        pairs = ((each, getattr(value, each.name)) for each in fields(value))
        return {each.name: to_json(item) for each, item in pairs if not _is_default(each, item)}
    if isinstance(value, tuple):
        # A conversation has 100,000 tokens; its ids, mask and log-probabilities need no call for each.
        kinds = set(map(type, value))
        if kinds <= {bool, int}:
            return list(map(int, value))
        if kinds == {float} and all(map(math.isfinite, value)):
            return list(value)
        return [to_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _is_default(where: Field[Any], value: Any) -> bool:
    if where.default_factory is not MISSING:
        return bool(value == where.default_factory())  # an id's never is
    return where.default is not MISSING and bool(value == where.default)


def from_json(kind: Any, value: Any, where: str) -> Any:
    """A value of that type (a dataclass, a tuple, a literal, a union …) from plain data. Raises ValueError,
    which names the place. A field that the dataclass has not is an error, too."""
    if kind is Any:
        return value
    if is_dataclass(kind):
        return _dataclass_from_json(kind, value, where)
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        if value is None and NoneType in inner:
            return None
        return from_json(next(each for each in inner if each is not NoneType), value, where)
    if origin is Literal:
        if value not in inner:
            raise ValueError(f"{where}: {value!r:.80} is none of {', '.join(map(str, inner))}")
        return value
    if origin is tuple:
        return _tuple_from_json(inner[0], _of_type(list, value, where), where)
    if kind is float:
        return _float_from_json(value, where)
    return _of_type(dict if origin is not None else kind, value, where)


def _dataclass_from_json(kind: Any, value: Any, where: str) -> Any:
    prefix = f"{where}." if where else ""
    hints = _hints(kind)
    given = _of_type(dict, value, where or "the line")
    if unknown := given.keys() - hints.keys():
        raise ValueError(f"{prefix}{min(unknown)}: {kind.__name__} has no such field")
    values = {name: from_json(hints[name], item, prefix + name) for name, item in given.items()}
    needed = [
        each.name
        for each in fields(kind)
        if each.default is MISSING and each.default_factory is MISSING and each.name not in values
    ]
    if needed:
        raise ValueError(f"{prefix}{needed[0]}: missing")
    try:
        return kind(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _tuple_from_json(kind: Any, values: list[Any], where: str) -> tuple[Any, ...]:
    types = set(map(type, values))
    if kind in (int, float) and types <= {kind}:
        return tuple(values)
    if kind is bool and types <= {int, bool} and set(values) <= {0, 1}:
        return tuple(map(bool, values))
    return tuple(from_json(kind, item, f"{where}.{place}") for place, item in enumerate(values))


def _float_from_json(value: Any, where: str) -> float:
    if value in ("inf", "-inf", "nan") or type(value) in (int, float):
        return float(value)
    raise ValueError(f"{where}: {value!r:.80} is no number")


def _of_type(kind: type, value: Any, where: str) -> Any:
    if type(value) is not kind:  # not isinstance: true is no number
        raise ValueError(f"{where}: {value!r:.80} is no {JSON_NAMES[kind]}")
    return value


JSON_NAMES = {str: "text", int: "whole number", bool: "true or false", dict: "object", list: "list"}


@cache
def _hints(kind: type) -> Mapping[str, Any]:
    return get_type_hints(kind)
