"""`lathe code` as a process of its own, on a served model."""

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

from serving import serve

from lathe.jsonl import read_rollouts
from lathe.testing import ScriptedModel


def words(folder: Path, *options: object) -> list[str]:
    return [sys.executable, "-m", "lathe.cli", "code", "--cwd", str(folder), *map(str, options)]


def environment(folder: Path) -> dict[str, str]:
    state = folder.parent / "state"
    return {**os.environ, "XDG_STATE_HOME": str(state), "NO_COLOR": "1", "COLUMNS": "120"}


def code(folder: Path, *options: object, given: str = "") -> subprocess.CompletedProcess:
    return subprocess.run(
        words(folder, *options),
        env=environment(folder),
        input=given,
        capture_output=True,
        text=True,
        timeout=100,
    )


@contextmanager
def served(*replies, **options):
    with serve(ScriptedModel(*replies, prefix_cache=True, **options)) as url:
        yield url


def rollout_of(folder: Path):
    (path,) = (folder.parent / "state" / "lathe" / "sessions").rglob("*.jsonl")
    (rollout,) = read_rollouts(path)
    return rollout
