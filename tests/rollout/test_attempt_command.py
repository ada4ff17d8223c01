"""`lathe attempt`: a real process of its own, a real server with a scripted model, and kills in mid-run."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from rollout_tasks import plain, solver, word_task
from serving import serve

from lathe.jsonl import read_rollouts
from lathe.tasks.store import write_tasks
from lathe.testing import ScriptedModel

WORDS = ("apple", "birch", "cedar")


@pytest.fixture
def tasks(pool, tmp_path) -> Path:
    """`pool` skips where there can be none."""
    path = tmp_path / "tasks.jsonl"
    write_tasks(path, [word_task(word, setup=("echo set > setup.txt",)) for word in WORDS])
    return path


def start(*arguments, **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "lathe.cli", "attempt", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def attempt(*arguments) -> tuple[int, str, str]:
    process = start(*arguments)
    out, error = process.communicate(timeout=100)
    return process.returncode, out, error


def rollouts(path: Path) -> dict:
    """What a file's attempts say, by task and number."""
    found = {}
    for rollout in read_rollouts(path):
        key = rollout.task, rollout.info["attempt"]
        assert key not in found
        found[key] = plain(rollout)
    return found


@pytest.mark.parametrize(
    ("turns", "moments"),
    [(4, (2, 9)), pytest.param(8, range(1, 48, 3), marks=[pytest.mark.slow, pytest.mark.timeout(500)])],
    ids=["twice", "again and again"],
)
def test_a_run_that_is_killed_ends_as_one_that_is_not(tasks, tmp_path, turns, moments):
    """Each process is killed when it has asked for so many replies; the last ones may be through before."""
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    model = ScriptedModel(answer=solver(turns=turns))
    with serve(model) as url:
        options = (tasks, "--model", url, "--concurrency", 2, "--attempts", 2)
        code, out, error = attempt(*options, "--out", whole)
        assert code == 0, error
        assert "pass@1" in out and "100.0%" in out and "6" in out
        expected = rollouts(whole)
        assert len(expected) == 6
        num_asked = len(model.engine.prompts)
        for moment in moments:
            enough = len(model.engine.prompts) + moment
            process = start(*options, "--out", cut)
            while process.poll() is None and len(model.engine.prompts) < enough:
                time.sleep(0.002)
            process.kill()
            process.wait()
            process.stdout.close()
            process.stderr.close()
        with cut.open("ab") as file:
            file.write(b'{"trajectories":[{"messa')
        code, out, error = attempt(*options, "--out", cut)
        assert code == 0, error
        assert "torn" in error
        num_again = len(model.engine.prompts) - num_asked
    assert rollouts(cut) == expected
    assert num_again <= num_asked + 4 * len(moments), "what was said once is not asked again"
    assert not cut.with_name("cut.jsonl.unfinished").exists()
