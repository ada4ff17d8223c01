"""Finished and unfinished runs, read back for people: what was set, what was measured, and what it means."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lathe.errors import RecordError
from lathe.log import read_metrics

Unit = Literal["number", "share", "tokens", "rate", "seconds"]


@dataclass(frozen=True)
class Metric:
    """What a metric is called, how it is written, and what a reader should know of it."""

    name: str
    title: str
    unit: Unit = "number"
    about: str = ""


@dataclass(frozen=True)
class Line:
    """One run's values of a metric, by step. Values may be infinite, or no numbers."""

    name: str
    steps: tuple[int, ...]
    values: tuple[float, ...]


# Sections of a report, in their order. Metrics that stand in none are drawn under the last.
SECTIONS: Mapping[str, Sequence[Metric]] = {
    "Does it get better?": (
        Metric("eval_pass_rate", "Held-out pass rate", "share", "Problems that training never sees."),
        Metric(
            "eval_greedy_pass_rate", "Held-out pass rate, greedy", "share", "The likeliest token each time."
        ),
        Metric("pass_rate", "Pass rate in training", "share", "Attempts of the step that passed."),
        Metric("solved", "Solved in training", "share", "Attempts of the step that earned all."),
        Metric("reward", "Reward", "number", "Mean of the step's valid attempts."),
        Metric("loss", "Loss"),
        Metric("eval_loss", "Held-out loss"),
    ),
    "Does it stay healthy?": (
        Metric("entropy", "Entropy", "number", "Nats a token. Near 0, nothing new is tried."),
        Metric("clip_share", "Clipped", "share", "Tokens whose gradient the objective cut off."),
        Metric("clipped", "Clipped", "share", "Tokens whose bound decides."),
        Metric("grad_norm", "Gradient norm", "number", "Before clipping."),
        Metric("kl_old", "KL from before the step", "number", "Nats a token."),
        Metric("kl_reference", "KL from the reference", "number", "Nats a token."),
        Metric("ratio", "Ratio", "number", "Trained policy over the one before the step."),
        Metric("lr", "Learning rate"),
    ),
    "Can it be trusted?": (
        Metric("mismatch", "Mismatch", "number", "Largest difference of engine's and trainer's logprobs."),
        Metric(
            "largest_mismatch", "Mismatch", "number", "Largest difference of engine's and trainer's logprobs."
        ),
        Metric("masked", "Masked", "share", "Tokens that a correction takes out."),
        Metric("invalid_share", "Invalid attempts", "share", "The machine failed: they train nothing."),
        Metric("invalid", "Invalid attempts", "share", "The machine failed: they train nothing."),
        Metric("suspect", "Suspect attempts", "share", "Signs of cheating: they earn nothing."),
        Metric(
            "skipped_groups", "Skipped groups", "number", "All attempts earned the same: nothing to learn."
        ),
        Metric("staleness", "Staleness", "number", "Updates between sampling and training."),
    ),
    "What does it write?": (
        Metric("reply_tokens", "Reply length", "tokens", "Sampled tokens an attempt."),
        Metric("truncated", "Cut off", "share", "Attempts that a limit ended."),
        Metric("trajectories", "Trajectories", "number", "An attempt's conversations."),
    ),
    "How fast?": (
        Metric("tokens_per_s", "Speed", "rate", "Tokens a second."),
        Metric("seconds", "Time", "seconds", "Of a step."),
    ),
    "Also measured": (),
}
KNOWN = {metric.name: metric for metrics in SECTIONS.values() for metric in metrics}


@dataclass(frozen=True)
class Run:
    """A run's folder, read. `settings` are its recipe's, flat: "train.lr" to its value in TOML's types."""

    name: str
    folder: Path
    settings: Mapping[str, Any]
    steps: Sequence[Mapping[str, float]]

    def line(self, metric: str) -> Line:
        pairs = [(int(step["step"]), float(step[metric])) for step in self.steps if metric in step]
        return Line(self.name, tuple(step for step, _ in pairs), tuple(value for _, value in pairs))

    @property
    def seconds(self) -> float:
        """How long its steps took, in all."""
        return sum(value for value in self.line("seconds").values if math.isfinite(value))

    def tokenizer_folders(self) -> list[str]:
        """Where a run keeps its model's tokenizer, if it made the model itself."""
        folders = (self.folder / "start", self.folder / "export", self.folder)
        return [str(folder) for folder in folders if (folder / "tokenizer.json").is_file()]

    def rollout_files(self) -> dict[int, Path]:
        """The files of attempts that were kept, by step."""
        files = sorted((self.folder / "rollouts").glob("step-*.jsonl"))
        numbers = ((path.stem.removeprefix("step-"), path) for path in files)
        return {int(number): path for number, path in numbers if number.isdecimal()}


def read_run(folder: Path | str, name: str | None = None) -> Run:
    """The run in a folder. Raises RecordError where there is none, or it is damaged."""
    folder = Path(folder)
    steps = read_metrics(folder) if (folder / "metrics.jsonl").exists() else []
    try:
        recipe = tomllib.loads((folder / "recipe.toml").read_text(encoding="utf-8"))
    except FileNotFoundError:
        recipe = {}
        if not (folder / "metrics.jsonl").exists():
            raise RecordError(f"{folder} is no run: it holds no recipe.toml and no metrics.jsonl.") from None
    except (OSError, ValueError) as error:
        raise RecordError(f"{folder / 'recipe.toml'} can't be read: {error}") from None
    return Run(name or folder.resolve().name, folder, dict(_flat(recipe, ())), steps)


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Several, each by the shortest end of its path that no other has. A folder given twice is read once."""
    paths = list(dict.fromkeys(folder.resolve() for folder in folders))
    depth = 1
    while len({path.parts[-depth:] for path in paths}) < len(paths):
        depth += 1
    return [read_run(path, "/".join(path.parts[-depth:])) for path in paths]


def _flat(table: Mapping[str, Any], place: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, (*place, name))
        else:
            yield ".".join((*place, name)), value


def sections(runs: Sequence[Run]) -> dict[str, list[Metric]]:
    """What these runs measured, by section; those without a metric are left out."""
    measured = dict.fromkeys(name for run in runs for step in run.steps for name in step if name != "step")
    found = {title: [each for each in known if each.name in measured] for title, known in SECTIONS.items()}
    last = next(reversed(found))
    for name in (name for name in measured if name not in KNOWN):
        found["How fast?" if name.startswith("seconds") else last].append(metric_of(name))
    return {title: metrics for title, metrics in found.items() if metrics}


def metric_of(name: str) -> Metric:
    """A metric by its name; of one that nobody described, the name says the unit."""
    title = name.replace("seconds_", "time: ").replace("_", " ")
    return KNOWN.get(name) or Metric(name, title[:1].upper() + title[1:], _unit_of(name))


def _unit_of(name: str) -> Unit:
    if name.endswith(("pass_rate", "_share")):
        return "share"
    if name.endswith("_per_s"):
        return "rate"
    return "seconds" if name.startswith("seconds") or name.endswith("_s") else "number"


# Numbers for people


def scale_label(value: float, unit: Unit) -> str:
    """A number on a scale, where the unit is known."""
    text = written(value, unit) if unit == "share" else short(value).replace("-", "−")
    return f"{text} s" if unit == "seconds" else text


def written(value: float, unit: Unit = "number") -> str:
    """A value with its unit, short: "41.2%", "8.1k/s", "0.0132"."""
    return _written(value, unit).replace("-", "−")


def _written(value: float, unit: Unit) -> str:
    if not math.isfinite(value):
        return {math.inf: "∞", -math.inf: "−∞"}.get(value, "not a number")
    if unit == "share":
        return f"{value:.1%}".replace(".0%", "%")
    if unit == "seconds":
        return duration(value)
    return short(value) + {"rate": "/s", "tokens": " tokens"}.get(unit, "")


def short(value: float) -> str:
    """Three digits that count, as a person writes them: 12, 0.0132, 8.1k, 1e-5."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size * 0.9995:
            return f"{value / size:.3g}{letter}" if abs(value) < 1e12 else f"{value:.2e}"
    if value != 0 and abs(value) < 0.001:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{value:.3g}"


def duration(seconds: float) -> str:
    """ "2.3 s", "41 s", "3 min 20 s", "2 h 5 min"."""
    if seconds < 60:
        return f"{seconds:.3g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"
