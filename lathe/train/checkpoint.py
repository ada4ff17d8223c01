"""A run's state on disk: all that the next step depends on, so that a run that was killed goes on as if not.

    step-00012/state.pt    the trainer's state_dict: weights, optimizers, schedule, random numbers
    step-00012/loop.json   what the loop needs to know: its place in the data …

A folder of that name is whole: it is written under another one, flushed to the disk, and then renamed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lathe.errors import CheckpointError
from lathe.log import step_name

STATE, LOOP = "state.pt", "loop.json"
UNFINISHED = ".unfinished"


def save_state(
    folder: Path | str, step: int, state: Mapping[str, Any], loop: Mapping[str, Any], *, keep: int = 2
) -> Path:
    """Writes the state after a step, and removes all but the last `keep`. `loop` is JSON.

    Killed at any moment, it leaves the states of before. An older state of the same step is replaced.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / step_name(step)
    unfinished = place.with_name(place.name + UNFINISHED)
    _sweep(folder)
    unfinished.mkdir()
    with (unfinished / STATE).open("wb") as file:
        torch.save(dict(state), file)
        file.flush()
        os.fsync(file.fileno())
    with (unfinished / LOOP).open("w", encoding="utf-8") as text:
        json.dump(loop, text)
        text.flush()
        os.fsync(text.fileno())
    _flush_folder(unfinished)
    if place.exists():
        _remove(place)
    unfinished.rename(place)
    _flush_folder(folder)
    for old in saved_steps(folder)[:-keep]:
        _remove(folder / step_name(old))
    return place


def load_state(place: Path | str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The trainer's state and the loop's. Raises CheckpointError for a damaged one."""
    place = Path(place)
    try:
        state = torch.load(place / STATE, map_location="cpu", weights_only=True)
        return state, json.loads((place / LOOP).read_text(encoding="utf-8"))
    except Exception as error:  # whatever is wrong with a file, its name helps
        raise CheckpointError(f"{place} can't be read as a run's state: {error}") from error


def last_state(folder: Path | str) -> Path | None:
    """The newest whole state of a run, if there is one."""
    steps = saved_steps(Path(folder))
    return Path(folder) / step_name(steps[-1]) if steps else None


def saved_steps(folder: Path) -> list[int]:
    """The steps whose states are there, oldest first."""
    found = [re.fullmatch(r"step-(\d+)", path.name) for path in folder.glob("step-*")]
    return sorted(int(match[1]) for match in found if match)


def _remove(place: Path) -> None:
    """Half of a state must not bear a whole one's name."""
    shutil.rmtree(place.rename(place.with_name(f"{place.name}.old{UNFINISHED}")))


def _sweep(folder: Path) -> None:
    """What a kill left behind."""
    for path in folder.glob(f"*{UNFINISHED}"):
        shutil.rmtree(path)


def _flush_folder(folder: Path) -> None:
    """A name is on the disk once its folder is."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
