"""A run that is killed ten times at random moments ends with the weights of one that was left alone."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny_models import random_model, tiny_config

import lathe
from lathe.kernels.cpu.library import load
from lathe.log import read_metrics
from lathe.model.checkpoint import save_model
from lathe.testing import tiny_tokenizer
from lathe.train.checkpoint import load_state, saved_steps

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(load() is None, reason="no compiled kernels here"),
    pytest.mark.usefixtures("pool"),
]

STEPS, KILLS = 30, 10
RECIPE = f"""
seed = 3
num_threads = 1
tasks = {{family = "micro_python", num_train = 40, num_eval = 2}}
sample = {{max_tokens = 40, max_context = 256, kv_memory_bytes = 4_000_000}}
loop = {{steps = {STEPS}, groups = 4, group_size = 4, minibatches = 2, eval_every = 10}}
train = {{lr = 2e-4, deterministic = true}}
reward = {{unfinished = 1.0}}
"""


def start(recipe: Path, model: Path, run: Path, *more: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "lathe.cli", "rl", str(recipe), *more]
    sets = ["--set", f"run={run}", "--set", f"start.model={model}"]
    house = str(Path(lathe.__file__).parents[1])
    return subprocess.Popen([*command, *sets], env={**os.environ, "PYTHONPATH": house}, text=True)


def last_weights(run: Path) -> dict[str, torch.Tensor]:
    (*_, last) = saved_steps(run / "checkpoints")
    assert last == STEPS
    return load_state(run / "checkpoints" / f"step-{last:05d}")[0]["model"]


def test_killed_ten_times_it_ends_with_the_same_weights(tmp_path):
    recipe, model = tmp_path / "recipe.toml", tmp_path / "model"
    recipe.write_text(RECIPE)
    model.mkdir()
    config = tiny_config(
        architecture="qwen3_moe", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16
    )
    save_model(random_model(config), model, generation_config={"eos_token_id": list(range(10))})
    tiny_tokenizer().save(model)
    started = time.monotonic()
    assert start(recipe, model, tmp_path / "whole").wait(600) == 0
    took = time.monotonic() - started
    rng = random.Random(1)
    for _ in range(KILLS):
        process = start(recipe, model, tmp_path / "killed", "--resume")
        try:
            process.wait(rng.uniform(0.1, 0.6) * took)
        except subprocess.TimeoutExpired:
            process.kill()
        process.wait()
    assert start(recipe, model, tmp_path / "killed", "--resume").wait(600) == 0
    whole, killed = last_weights(tmp_path / "whole"), last_weights(tmp_path / "killed")
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
    assert [each["step"] for each in read_metrics(tmp_path / "killed")] == list(range(STEPS + 1))
