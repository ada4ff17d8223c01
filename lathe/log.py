"""A run's folder: what was asked for, what happened at each step, and what the model wrote meanwhile.

    recipe.toml                the settings, defaults written out
    metrics.jsonl              one JSON object a step: {"step": 12, "reward": 0.41, …}
    rollouts/step-00012.jsonl  the step's attempts, by `jsonl.py`
    checkpoints/               the trainer's

Strict JSON: a float that is no number, or infinite, stands in metrics.jsonl as the text "nan", "inf" or
"-inf", as in files of rollouts, and `read_metrics` gives the float back.
"""

from __future__ import annotations

import fcntl
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from lathe import config, jsonl
from lathe.errors import ConfigError, RecordError
from lathe.types import Rollout

Metrics = dict[str, float]

# What a step's line says of a metric, in this order. Others follow, then the rate and the time; seconds_*,
# the time's parts, are left to the file.
WORDS: Mapping[str, Callable[[float], str]] = {
    "reward": lambda value: f"reward {value:.2f}",
    "pass_rate": lambda value: f"pass {value:.0%}",
    "eval_pass_rate": lambda value: f"eval {value:.1%}",
    "eval_greedy_pass_rate": lambda value: f"greedy {value:.1%}",
    "loss": lambda value: f"loss {_short(value)}",
    "eval_loss": lambda value: f"eval loss {_short(value)}",
    "entropy": lambda value: f"entropy {_short(value)}",
    "reply_tokens": lambda value: f"reply {value:.0f} tok",
    "clip_share": lambda value: f"clip {value:.1%}",
    "mismatch": lambda value: f"mismatch {_short(value)}",
    "invalid_share": lambda value: f"invalid {value:.1%}",
    "skipped_groups": lambda value: f"skipped {value:.0f}",
    "grad_norm": lambda value: f"grad {_short(value)}",
    "lr": lambda value: f"lr {_short(value)}",
}
LAST_WORDS: Mapping[str, Callable[[float], str]] = {
    "tokens_per_s": lambda value: f"{_thousands(value)} tok/s",
    "seconds": lambda value: f"{_short(value) if value < 10 else f'{value:.0f}'} s",
}


class RunLog:
    """The log of one run. `recipe` is its dataclass; `say` hears one line a step, by default the console.

    A folder that holds another run, or anything else, is refused with a ConfigError. With `resume` a run goes
    on in its folder, or begins where there is none. What a kill left half written is dropped; a recipe that
    has changed since takes the old one's place, which stays as recipe.1.toml. A run has one writer at a time.
    """

    def __init__(
        self,
        folder: Path | str,
        recipe: Any,
        *,
        resume: bool = False,
        say: Callable[[str], None] | None = None,
    ):
        self.folder = Path(folder)
        self.say = say or _to_console
        _check(self.folder, resume)
        self.rollouts_folder.mkdir(parents=True, exist_ok=True)
        self.checkpoints_folder.mkdir(exist_ok=True)
        self._lock = _locked(self.folder)
        _save_recipe(self.folder / "recipe.toml", config.dump(recipe))
        self.last_step = max((int(each["step"]) for each in self._mend()), default=-1)
        self._metrics: BinaryIO = self.metrics_file.open("ab")

    @property
    def metrics_file(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def rollouts_folder(self) -> Path:
        return self.folder / "rollouts"

    @property
    def checkpoints_folder(self) -> Path:
        return self.folder / "checkpoints"

    def checkpoint(self, step: int) -> Path:
        """Where the state after that step belongs. The trainer makes it."""
        return self.checkpoints_folder / step_name(step)

    def step(self, number: int, **metrics: float | None) -> None:
        """What a step measured: a line on disk, out of this process's hands, and one for people.

        A metric that is None was not measured. Numbers of PyTorch and NumPy will do. Raises ValueError for a
        step that is logged already.
        """
        if number <= self.last_step:
            raise ValueError(
                f"step {number} follows step {self.last_step}: truncate_after comes before a resume"
            )
        known = {name: _number(name, value) for name, value in metrics.items() if value is not None}
        self._metrics.write(_line({"step": number, **known}))
        self._metrics.flush()
        self.last_step = number
        self.say(console_line(number, known))

    def rollouts(self, step: int, rollouts: Iterable[Rollout]) -> Path:
        """Keep a step's attempts. The file is there when it is whole."""
        path = self.rollouts_folder / f"{step_name(step)}.jsonl"
        unfinished = path.with_suffix(".unfinished")
        jsonl.write_rollouts(unfinished, rollouts)
        return unfinished.replace(path)

    def truncate_after(self, step: int) -> None:
        """Forget what was logged beyond a step: a run goes on from that step's checkpoint."""
        kept = [each for each in read_metrics(self.folder) if each["step"] <= step]
        self._metrics.close()
        _replace(self.metrics_file, b"".join(map(_line, kept)))
        self._metrics = self.metrics_file.open("ab")
        for path in self.rollouts_folder.glob("step-*.jsonl"):
            if int(path.stem.removeprefix("step-")) > step:
                path.unlink()
        self.last_step = max((int(each["step"]) for each in kept), default=-1)

    def close(self) -> None:
        self._metrics.close()
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _mend(self) -> Sequence[Metrics]:
        """The steps so far. A last line that was torn is cut off: the next one begins in its place."""
        for path in self.rollouts_folder.glob("*.unfinished"):
            path.unlink()
        if not self.metrics_file.exists():
            return []
        whole, newline, torn = self.metrics_file.read_bytes().rpartition(b"\n")
        if torn:
            _replace(self.metrics_file, whole + newline)
        return read_metrics(self.folder)


class SilentLog:
    """A run's log for the processes that train with the one that writes it: the same places, and no word."""

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        self.rollouts_folder = self.folder / "rollouts"
        self.checkpoints_folder = self.folder / "checkpoints"

    def say(self, line: str) -> None: ...

    def step(self, number: int, **metrics: float | None) -> None: ...

    def truncate_after(self, step: int) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...


def read_metrics(folder: Path | str) -> list[Metrics]:
    """A run's steps in their order, each with "step" and what it measured. A last line without its end is
    left out: it is just being written. Raises RecordError where there is no run, or a line is damaged."""
    path = Path(folder) / "metrics.jsonl"
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except (FileNotFoundError, NotADirectoryError):
        raise RecordError(f"{folder} is no run: it holds no metrics.jsonl.") from None
    steps = []
    for number, line in enumerate(lines, 1):
        try:
            data = json.loads(line)
            if not isinstance(data, dict) or type(data.get("step")) is not int:
                raise ValueError("it is no JSON object with a step")
            steps.append({name: _read_number(name, value) for name, value in data.items()})
        except (ValueError, RecursionError) as error:
            raise RecordError(f"{path}, line {number}: {error}") from None
    return steps


def is_run(folder: Path | str) -> bool:
    """Whether the folder is that of a run that has begun."""
    return (Path(folder) / "recipe.toml").is_file() or (Path(folder) / "metrics.jsonl").is_file()


def step_name(step: int) -> str:
    """How a step is named in files: they sort by it."""
    return f"step-{step:05d}"


def console_line(step: int, metrics: Mapping[str, float]) -> str:
    """One line for people: `step 12  reward 0.41  loss 0.0132  8.1k tok/s  31 s`."""
    known = {*WORDS, *LAST_WORDS}
    others = [name for name in metrics if name not in known and not name.startswith("seconds_")]
    words = [WORDS[name](metrics[name]) for name in WORDS if name in metrics]
    words += [f"{name} {_short(metrics[name])}" for name in others]
    words += [LAST_WORDS[name](metrics[name]) for name in LAST_WORDS if name in metrics]
    return "  ".join([f"step {step}", *words])


# The folder


def _check(folder: Path, resume: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file: a run needs a folder.")
    if is_run(folder):
        if not resume:
            raise ConfigError(f"{folder} holds a run already: name another folder, or resume that run.")
    elif folder.exists() and any(each.name != "lock" for each in folder.iterdir()):
        raise ConfigError(f"{folder} holds files that are no run: name another folder.")


def _locked(folder: Path) -> BinaryIO:
    # A record lock is this process's own: a child that outlives it keeps none, and a killed one's is gone.
    file = (folder / "lock").open("ab")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.close()
        raise ConfigError(f"Another process is writing the run {folder}: end it first.") from None
    except OSError:  # a network's file system without locks
        pass
    return file


def _save_recipe(path: Path, text: str) -> None:
    if path.exists() and path.read_text(encoding="utf-8") != text:
        path.replace(next(each for each in _numbered(path) if not each.exists()))
    _replace(path, text.encode())


def _numbered(path: Path) -> Iterator[Path]:
    number = 1
    while True:
        yield path.with_suffix(f".{number}{path.suffix}")
        number += 1


def _replace(path: Path, data: bytes) -> None:
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_bytes(data)
    unfinished.replace(path)


def _to_console(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


# Numbers


def _line(metrics: Mapping[str, float]) -> bytes:
    data = {name: value if math.isfinite(value) else str(value) for name, value in metrics.items()}
    return json.dumps(data, allow_nan=False).encode() + b"\n"


def _number(name: str, value: Any) -> float:
    plain = value.item() if hasattr(value, "item") else value
    if isinstance(plain, int | float):
        return plain  # bool too: 0 or 1
    raise TypeError(f"the metric {name} is no number: {value!r:.80}")


def _read_number(name: str, value: Any) -> float:
    if value in ("inf", "-inf", "nan") or type(value) in (int, float, bool):
        return float(value) if isinstance(value, str) else value
    raise ValueError(f"{name}: {value!r:.80} is no number")


def _short(value: float) -> str:
    """Three digits that count."""
    return f"{value:.0f}" if math.isfinite(value) and 1000 <= abs(value) < 1e6 else f"{value:.3g}"


def _thousands(value: float) -> str:
    return f"{value / 1000:.1f}k" if value >= 1000 else f"{value:.0f}"
