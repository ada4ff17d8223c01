"""`lathe attempt`: a real process of its own, a real server with a scripted model, and kills in mid-run."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rollout_tasks import plain, solution, solver, word_task
from serving import serve
from typer.testing import CliRunner

from lathe.cli import app
from lathe.jsonl import read_rollouts
from lathe.tasks.store import write_tasks
from lathe.testing import ScriptedModel

WORDS = ("apple", "birch")
GOOD = '{"id": "a", "prompt": "p", "tests": {"files": {"test_a.py": "def test_a(): pass"}}}\n'


@pytest.fixture
def tasks(pool, tmp_path) -> Path:
    """`pool` skips where there can be none."""
    path = tmp_path / "tasks.jsonl"
    write_tasks(path, [word_task(word, setup=("echo set > setup.txt",)) for word in WORDS])
    return path


def start(*arguments, **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "lathe.cli", "attempt", *map(str, arguments)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_interrupts,
        **options,
    )


def heed_interrupts() -> None:
    """Tests that run in a shell's background ignore them, and so would what they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


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
    [(4, (7,)), pytest.param(8, range(1, 32, 3), marks=[pytest.mark.slow, pytest.mark.timeout(500)])],
    ids=["once", "again and again"],
)
def test_a_run_that_is_killed_ends_as_one_that_is_not(tasks, tmp_path, turns, moments):
    """Each process is killed when it has asked for so many replies; the last ones may be through before."""
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    model = ScriptedModel(answer=solver(turns=turns))
    with serve(model) as url:
        options = (tasks, "--model", url, "--concurrency", 2, "--attempts", 2)
        code, out, error = attempt(*options, "--out", whole)
        assert code == 0, error
        assert "pass@1" in out and "100.0%" in out
        expected = rollouts(whole)
        assert len(expected) == 4
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


def test_one_turn(pool, tmp_path):
    tasks = tmp_path / "tasks.jsonl"
    write_tasks(tasks, [word_task("apple", files={}, info={"answer_file": "words.py"})])
    with serve(ScriptedModel(answer=lambda prompt: f"```python\n{solution('apple')}```")) as url:
        process = start(tasks, "--model", url, "--out", "out.jsonl", "--one-turn", cwd=tmp_path)
        out, error = process.communicate(timeout=100)
    assert process.returncode == 0 and "100.0%" in out, error
    ((_, _, reward, _, info),) = rollouts(tmp_path / "out.jsonl").values()
    assert reward == 1.0 and info["patch"] == {"words.py": {"text": solution("apple")}}


@pytest.mark.slow
def test_a_server_that_dies_makes_attempts_invalid_and_the_run_goes_on(tasks, tmp_path):
    model = ScriptedModel(answer=solver())
    out = tmp_path / "out.jsonl"
    write_tasks(tasks, [word_task("apple")])
    with serve(model) as url:
        process = start(tasks, "--model", url, "--out", out, "--concurrency", 1)
        while len(model.engine.prompts) < 2 and process.poll() is None:
            time.sleep(0.002)
    said, error = process.communicate(timeout=110)
    assert process.returncode == 0, error
    assert "invalid" in said and "can't be reached" in said
    assert all(reward is None for _, _, reward, _, _ in rollouts(out).values())


def test_interrupting_it_says_how_to_go_on(tasks, tmp_path):
    model = ScriptedModel(answer=solver(), delay_s=0.005)
    with serve(model) as url:
        process = start(tasks, "--model", url, "--out", tmp_path / "out.jsonl")
        while not model.engine.prompts and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
        assert process.returncode == 130 and "goes on where it was" in error, error
        assert "Traceback" not in error


@pytest.mark.parametrize(
    ("text", "options", "error"),
    [
        (None, (), "no such file or folder"),
        ("", (), "holds no task"),
        ('{"id": "a"}\n', (), "line 1: prompt: missing"),
        (GOOD, ("--one-turn",), "which file the answer is"),
        (GOOD, ("--agent", "qwen -p {prompt}"), "--model NAME --upstream URL"),
        (GOOD, ("--one-turn", "--agent", "x {prompt}"), "exclude each other"),
        (GOOD, ("--backend", "magic"), "magic"),
        (GOOD, (), "127.0.0.1:9/v1/ can't be reached"),
        (GOOD, ("--concurrency", "0"), "--concurrency"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, text, options, error):
    tasks = tmp_path / "tasks.jsonl"
    if text is not None:
        tasks.write_text(text)
    words = ("attempt", tasks, "--model", "http://127.0.0.1:9", "--out", tmp_path / "out.jsonl", *options)
    result = CliRunner().invoke(app, [*map(str, words)])
    assert result.exit_code in (1, 2) and isinstance(result.exception, SystemExit)
    assert error in " ".join(result.stderr.split()), result.output
    assert not list(tmp_path.glob("out.jsonl*")), "what did not begin leaves nothing"
