"""A run's folder: what was logged is there, whatever ended the process."""

import json
import math
import signal
import subprocess
import sys
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lathe import jsonl
from lathe.config import load_recipe
from lathe.errors import ConfigError, RecordError
from lathe.log import RunLog, console_line, is_run, read_metrics
from lathe.types import Rollout, Trajectory, Verdict


@dataclass(frozen=True)
class Recipe:
    lr: float = 0.1


def begin(folder, recipe=Recipe(), **options):
    options.setdefault("say", lambda line: None)
    return RunLog(folder, recipe, **options)


def test_a_runs_folder(tmp_path):
    lines = []
    rollout = Rollout(
        (Trajectory((), token_ids=(1,), loss_mask=(True,), logprobs=(-0.5,)),), verdict=Verdict(1.0)
    )
    with begin(tmp_path / "runs" / "a", say=lines.append) as log:
        log.step(0, reward=0.41, loss=0.01321, tokens_per_s=8100, seconds=31.2, eval_pass_rate=None)
        path = log.rollouts(0, [rollout])
        assert log.checkpoint(12) == log.folder / "checkpoints" / "step-00012"
    assert lines == ["step 0  reward 0.41  loss 0.0132  8.1k tok/s  31 s"]
    assert read_metrics(log.folder) == [
        {"step": 0, "reward": 0.41, "loss": 0.01321, "tokens_per_s": 8100, "seconds": 31.2}
    ]
    assert path == log.folder / "rollouts" / "step-00000.jsonl"
    assert list(jsonl.read_rollouts(path)) == [rollout]
    assert load_recipe(Recipe, log.folder / "recipe.toml") == Recipe()
    assert is_run(log.folder) and not is_run(tmp_path)


def test_a_line_has_its_order_and_units():
    metrics = {
        "seconds": 2.345,
        "mine": 12345.6,
        "lr": 1e-4,
        "pass_rate": 0.5,
        "clip_share": 0.0213,
        "mismatch": 0.0,
        "seconds_eval": 1.0,
        "eval_greedy_pass_rate": 0.5,
    }
    assert console_line(7, metrics) == (
        "step 7  pass 50%  greedy 50.0%  clip 2.1%  mismatch 0  lr 0.0001  mine 12346  2.35 s"
    )


def test_the_console_is_where_a_line_goes(tmp_path, capsys):
    with RunLog(tmp_path / "a", Recipe()) as log:
        log.step(1, loss=math.inf)
    assert capsys.readouterr().out == "step 1  loss inf\n"


def test_another_runs_folder_is_refused(tmp_path):
    begin(tmp_path / "a").close()
    with pytest.raises(ConfigError, match="holds a run already"):
        begin(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.txt").touch()
    for resume in (False, True):
        with pytest.raises(ConfigError, match="files that are no run"):
            begin(tmp_path / "b", resume=resume)
    with pytest.raises(ConfigError, match="is a file"):
        begin(tmp_path / "b" / "thesis.txt")


def test_a_resumed_run_goes_on(tmp_path):
    with begin(tmp_path, resume=True) as log:  # nothing to resume: it begins
        log.step(0, loss=1)
    with begin(tmp_path, resume=True) as log:
        assert log.last_step == 0
        with pytest.raises(ValueError, match="step 0 follows step 0"):
            log.step(0, loss=2)
        log.step(1, loss=2)
    assert [each["loss"] for each in read_metrics(tmp_path)] == [1, 2]


def test_a_torn_line_is_dropped_on_resume(tmp_path):
    with begin(tmp_path) as log:
        log.step(0, loss=1)
        log.step(1, loss=2)
    whole = log.metrics_file.read_bytes()
    log.metrics_file.write_bytes(whole[:-4])
    (log.rollouts_folder / "step-00001.unfinished").touch()
    assert len(read_metrics(tmp_path)) == 1  # whoever reads meanwhile sees whole steps
    with begin(tmp_path, resume=True) as log:
        log.step(1, loss=2)
    assert log.metrics_file.read_bytes() == whole
    assert not list(log.rollouts_folder.iterdir())


def test_what_lies_beyond_a_checkpoint_is_forgotten(tmp_path):
    with begin(tmp_path) as log:
        for step in range(5):
            log.step(step, loss=step)
            log.rollouts(step, [])
    with begin(tmp_path, resume=True) as log:
        log.truncate_after(2)
        assert [path.stem for path in sorted(log.rollouts_folder.iterdir())] == [
            f"step-0000{n}" for n in range(3)
        ]
        log.step(3, loss=30)
    assert [each["loss"] for each in read_metrics(tmp_path)] == [0, 1, 2, 30]


def test_a_changed_recipe_leaves_the_old_one(tmp_path):
    for lr in (0.1, 0.1, 0.2, 0.3):
        begin(tmp_path, Recipe(lr), resume=True).close()
    names = ("recipe.1.toml", "recipe.2.toml", "recipe.toml")
    assert [load_recipe(Recipe, tmp_path / name).lr for name in names] == [0.1, 0.2, 0.3]
    assert len(list(tmp_path.glob("*.toml"))) == 3


def test_a_killed_writer_leaves_whole_steps_and_no_lock(tmp_path):
    code = (
        "import itertools, sys\n"
        "from dataclasses import dataclass\n"
        "from lathe.log import RunLog\n"
        "@dataclass(frozen=True)\n"
        "class Recipe:\n"
        "    lr: float = 0.1\n"
        "log = RunLog(sys.argv[1], Recipe())\n"
        "for step in itertools.count():\n"
        "    log.step(step, loss=float(step))\n"
    )
    writer = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "a")], stdout=subprocess.PIPE, text=True
    )
    try:
        seen = [writer.stdout.readline() for _ in range(50)]
        with pytest.raises(ConfigError, match="Another process is writing"):
            begin(tmp_path / "a", resume=True)
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
    assert seen[-1] == "step 49  loss 49\n"
    with begin(tmp_path / "a", resume=True) as log:
        assert log.last_step >= 49
        log.step(log.last_step + 1, loss=0)
    steps = read_metrics(tmp_path / "a")
    assert [each["step"] for each in steps] == list(range(len(steps)))


@given(
    st.dictionaries(
        st.text(max_size=5).filter(lambda name: name not in ("step", "self", "number")),
        st.floats() | st.integers(),
        max_size=4,
    )
)
def test_metrics_read_back_as_they_were_in_strict_json(tmp_path_factory, metrics):
    folder = tmp_path_factory.mktemp("run")
    with begin(folder) as log:
        log.step(3, **metrics)

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    json.loads(log.metrics_file.read_text(), parse_constant=refuse)
    (read,) = read_metrics(folder)
    assert {name: repr(value) for name, value in read.items()} == {
        name: repr(value) for name, value in {"step": 3, **metrics}.items()
    }


def test_tensors_are_numbers_and_words_are_not(tmp_path):
    import torch

    with begin(tmp_path) as log:
        log.step(0, loss=torch.tensor(0.5), done=True)
        with pytest.raises(TypeError, match="note is no number"):
            log.step(1, note="good")
    assert read_metrics(tmp_path) == [{"step": 0, "loss": 0.5, "done": True}]


@pytest.mark.parametrize(
    "line",
    [b"{", b"[]", b"{}", b'{"step": true}', b'{"step": 1, "a": "b"}', b'{"step": 1, "a": null}', b"[" * 9000],
)
def test_a_damaged_line_is_named(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 0}\n' + line + b"\n")
    with pytest.raises(RecordError, match=r"metrics\.jsonl, line 2: "):
        read_metrics(tmp_path)


def test_no_run_is_the_users_error(tmp_path):
    with pytest.raises(RecordError, match="is no run"):
        read_metrics(tmp_path / "none")
    assert not list(tmp_path.iterdir())
