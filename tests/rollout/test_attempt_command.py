"""`lathe attempt`: a real process of its own, a real server with a scripted model, and kills in mid-run."""

import dataclasses
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rollout_tasks import solver, word_task
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


def plain(path: Path) -> dict:
    """What a file's rollouts say, without the ids and times that differ from run to run."""

    def conversation(trajectory):
        messages = [
            dataclasses.replace(
                each,
                tool_call_id=None,
                tool_calls=tuple(dataclasses.replace(call, id="") for call in each.tool_calls),
            )
            for each in trajectory.messages
        ]
        return dataclasses.replace(trajectory, id="", messages=tuple(messages))

    found = {}
    for rollout in read_rollouts(path):
        info = {name: value for name, value in rollout.info.items() if name != "seconds"}
        key = rollout.task, info["attempt"]
        assert key not in found
        found[key] = (
            [conversation(each) for each in rollout.trajectories],
            rollout.stop_reason,
            rollout.verdict.reward,
            rollout.verdict.reason,
            info,
        )
    return found


def test_a_run_that_is_killed_again_and_again_ends_as_one_that_is_not(tasks, tmp_path):
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    model = ScriptedModel(answer=solver(turns=8))
    with serve(model) as url:
        options = (tasks, "--model", url, "--concurrency", 2, "--attempts", 2)
        code, out, error = attempt(*options, "--out", whole)
        assert code == 0, error
        assert "pass@1" in out and "100.0%" in out and "6" in out
        expected = plain(whole)
        assert len(expected) == 6
        num_asked = len(model.engine.prompts)
        for moment in range(3, 40, 7):  # in requests; the last runs may be through before
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
    assert plain(cut) == expected
    assert num_again < 2 * num_asked, "a killed run begins anew"
    assert not cut.with_name("cut.jsonl.unfinished").exists()
