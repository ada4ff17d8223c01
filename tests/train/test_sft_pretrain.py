"""`lathe sft` and `lathe pretrain`: recipes that learn, stop anywhere, and leave a model that others load."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest
import torch
from test_trainer import MOE, needs_kernels
from tiny_models import tiny_config
from typer.testing import CliRunner

from lathe.cli import app
from lathe.config import load_recipe
from lathe.errors import UserError
from lathe.log import read_metrics
from lathe.testing import tiny_tokenizer
from lathe.text import fim
from lathe.train import sft
from lathe.train.batch import next_tokens, weighed
from lathe.train.lora import LoraConfig
from lathe.train.parts import export, load_parts, new_parts
from lathe.train.pretrain import PretrainRecipe, middle, run_pretrain, spans
from lathe.train.sft import SftRecipe, batches, run_sft
from lathe.train.trainer import TrainConfig, Trainer

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    return export(new_parts(tiny_config(**MOE), tiny_tokenizer()), tmp_path_factory.mktemp("start") / "model")


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    talks = [[("user", f"{a}+{b}"), ("assistant", str(a + b))] for a in range(6) for b in range(4)]
    lines = [{"messages": [{"role": role, "content": text} for role, text in talk]} for talk in talks]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def recipe(start: Path, rows: Path, run: Path, **changes) -> SftRecipe:
    train = TrainConfig(lr=1e-2, optimizer="muon", warmup_steps=2, decay="cosine", max_tokens=200)
    settings = dict(epochs=2, batch_size=6, eval_share=0.25, eval_every=3, save_every=2, train=train)
    return SftRecipe(**{"model": str(start), "data": (rows,), "run": run, **settings, **changes})


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_parts(str(folder)).model.state_dict()


def same(one: Path, other: Path) -> bool:
    found = weights(other)
    return all(torch.equal(weight, found[name]) for name, weight in weights(one).items())


def test_it_learns_and_says_how(start, rows, tmp_path):
    lines: list[str] = []
    folder = run_sft(recipe(start, rows, tmp_path / "run", epochs=4), say=lines.append)
    metrics = read_metrics(tmp_path / "run")
    evals = [each["eval_loss"] for each in metrics if "eval_loss" in each]
    assert evals[-1] < 0.7 * evals[0]
    assert [each["step"] for each in metrics] == list(range(13))
    assert metrics[-1]["loss"] < 0.6 * metrics[1]["loss"]
    assert lines[0].startswith("24 samples, ")
    assert (folder / "chat_template.jinja").exists()
    assert load_parts(str(folder)).eos_token_ids == (258,)


@needs_kernels
def test_stopped_anywhere_it_ends_the_same(start, rows, tmp_path, monkeypatch):
    settings = TrainConfig(lr=1e-2, deterministic=True, decay="linear")
    whole = run_sft(recipe(start, rows, tmp_path / "whole", train=settings))
    stopped = recipe(start, rows, tmp_path / "stopped", train=settings)
    step = Trainer.step
    for last in (1, 4):  # before the first state, and behind the one of step 2 or 4

        def dies(trainer, *args, last=last):
            if trainer.step_number == last:
                raise KeyboardInterrupt
            return step(trainer, *args)

        monkeypatch.setattr(Trainer, "step", dies)
        with pytest.raises(KeyboardInterrupt):
            run_sft(stopped, resume=True)
        monkeypatch.undo()
    resumed = run_sft(stopped, resume=True)
    assert same(whole, resumed)
    steps = [
        [
            {name: each[name] for name in ("step", "loss", "grad_norm") if name in each}
            for each in read_metrics(run)
        ]
        for run in (tmp_path / "whole", tmp_path / "stopped")
    ]
    assert steps[0] == steps[1]


@pytest.mark.slow
@pytest.mark.timeout(3000)
@needs_kernels
def test_killed_at_random_moments_it_ends_the_same(start, rows, tmp_path):
    """kill -9 of the command itself, ten times, wherever it just is."""
    path = tmp_path / "recipe.toml"
    path.write_text(
        f'model = "{start}"\ndata = ["{rows}"]\nrun = "run"\nepochs = 12\nbatch_size = 6\nsave_every = 1\n'
        '[train]\nlr = 1e-3\ndeterministic = true\ndecay = "cosine"\n'
    )
    whole = run_sft(replace(load_recipe(SftRecipe, path), run=tmp_path / "whole"))
    command = [sys.executable, "-m", "lathe.cli", "sft", str(path), "--resume"]
    metrics, rng = tmp_path / "run" / "metrics.jsonl", random.Random(0)
    for number in range(10):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
        wanted = rng.randrange(3) + (metrics.read_bytes().count(b"\n") if metrics.exists() else 0)
        deadline = time.monotonic() + 900
        while (
            not metrics.exists() or metrics.read_bytes().count(b"\n") <= wanted
        ) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(rng.random() * 0.1)
        assert process.poll() is None, f"it had ended before kill {number}"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert subprocess.run(command, stdout=subprocess.DEVNULL, timeout=900).returncode == 0
    assert same(whole, tmp_path / "run" / "model")


def test_adapters_are_merged_and_saved(start, rows, tmp_path):
    folder = run_sft(recipe(start, rows, tmp_path / "run", epochs=1, lora=LoraConfig(rank=4)))
    assert (tmp_path / "run" / "adapter" / "adapter_config.json").exists()
    assert not same(start, folder)


def test_a_folder_with_another_run_is_left_alone(start, rows, tmp_path):
    one = recipe(start, rows, tmp_path / "run", epochs=1, eval_share=0.0)
    run_sft(one)
    with pytest.raises(UserError, match="holds a run already"):
        run_sft(one)


def test_nothing_to_train_on(start, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"messages": [{"role": "user", "content": "a"}]}\n')
    with pytest.raises(UserError, match="No rows are left to train on: 0 samples"):
        run_sft(recipe(start, tmp_path / "rows.jsonl", tmp_path / "run"))


def test_every_epoch_shows_every_row_once_and_goes_on_anywhere():
    whole = list(batches(10, 4, 3, seed=1))
    assert [len(batch) for batch in whole] == [4, 4, 2] * 3
    for epoch in range(3):
        assert sorted(chain(*whole[epoch * 3 :][:3])) == list(range(10))
    assert whole[0] != whole[3]
    for done in range(10):
        assert list(batches(10, 4, 3, seed=1, done=done)) == whole[done:]


def test_every_trained_token_weighs_the_same():
    made = weighed([next_tokens([1, 2, 3]), next_tokens([1, 2])])
    assert [sample.weights for sample in made] == [(0.0, 1 / 3, 1 / 3), (0.0, 1 / 3)]
    assert sft.num_batches(9, 4) == 3


# Pretraining


@needs_kernels
def test_pretraining_learns_and_goes_on(start, tmp_path, monkeypatch):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.py").write_text("def f(x):\n    return x + 1\n" * 20)
    (tmp_path / "corpus" / "b.jsonl").write_text(
        json.dumps({"text": "for i in range(3):\n    f(i)\n" * 9}) + "\n"
    )
    shape = tiny_config(**MOE)
    config = TrainConfig(lr=5e-3, optimizer="muon", deterministic=True, balance_weight=0.01)
    settings = dict(data=(tmp_path / "corpus",), shape=shape, tokenizer=str(start), window=64, batch_size=4)
    settings |= dict(epochs=4, fim_rate=0.5, eval_share=0.2, train=config, save_every=3)
    whole = PretrainRecipe(run=tmp_path / "whole", **settings)
    folder = run_pretrain(whole)
    metrics = read_metrics(tmp_path / "whole")
    assert metrics[-1]["loss"] < 0.7 * metrics[0]["loss"]
    assert 0.9 < metrics[-1]["balance"] < 8 / 3
    stopped = PretrainRecipe(run=tmp_path / "stopped", **settings)
    step = Trainer.step

    def dies(trainer, *args):
        if trainer.step_number == 4:
            raise KeyboardInterrupt
        return step(trainer, *args)

    monkeypatch.setattr(Trainer, "step", dies)
    with pytest.raises(KeyboardInterrupt):
        run_pretrain(stopped)
    monkeypatch.undo()
    assert same(folder, run_pretrain(stopped, resume=True))


def test_windows_predict_every_token_but_the_first_once():
    predicted = [
        [document, place]
        for document, first, last in spans([1, 2, 9, 10], 4)
        for place in range(first + 1, last)
    ]
    assert predicted == [[1, 1]] + [[2, n] for n in range(1, 9)] + [[3, n] for n in range(1, 10)]


def test_a_middle_holds_the_same_text():
    parts = new_parts(tiny_config(), tiny_tokenizer())
    text = "def f(x):\n    return 'é' + x\n"
    rng = random.Random(0)
    for _ in range(20):
        sample = middle([*parts.tokenizer.encode(text), 256], parts, rng)
        prompt, written = fim.decode(parts.tokenizer, sample.token_ids)
        assert prompt.prefix + written + prompt.suffix == text
        assert sample.token_ids[-1] == 256
        assert all(sample.loss_mask[1:])


def test_pretraining_names_what_is_wrong(start, tmp_path):
    with pytest.raises(UserError, match="one of the two"):
        PretrainRecipe(data=())
    with pytest.raises(UserError, match="needs tokenizer"):
        PretrainRecipe(data=(), shape=tiny_config())
    (tmp_path / "a.bin").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"a.bin is no text in UTF-8"):
        run_pretrain(PretrainRecipe(data=(tmp_path / "a.bin",), model=str(start), run=tmp_path / "run"))


# The command line


@pytest.mark.parametrize("path", sorted(RECIPES.glob("sft_*.toml")), ids=lambda path: path.stem)
def test_the_sft_recipes_are_recipes(path):
    assert load_recipe(SftRecipe, path).run.parent.name == "runs"


@pytest.mark.parametrize("path", sorted(RECIPES.glob("pretrain_*.toml")), ids=lambda path: path.stem)
def test_the_pretrain_recipes_are_recipes(path):
    assert all(each.exists() for each in load_recipe(PretrainRecipe, path).data)


def test_the_verb(start, rows, tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(f'model = "{start}"\ndata = ["{rows}"]\n')
    runner = CliRunner()
    sets = ["--set", f"run={tmp_path / 'run'}", "--set", "batch_size=24"]
    done = runner.invoke(app, ["sft", str(path), *sets], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "step 1  loss " in done.output
    wrong = runner.invoke(app, ["sft", str(path), "--set", "train.lrr=1"])
    assert wrong.exit_code == 1
    assert "train.lrr is not a setting" in " ".join(wrong.output.split())
