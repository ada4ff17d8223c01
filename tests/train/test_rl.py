"""The loop: it learns from what sandboxes say, goes on where it was killed, and never trains on a fault."""

import shutil
from dataclasses import replace

import pytest
import torch
from tiny_models import random_model, tiny_config

from lathe.config import load_recipe
from lathe.engine.engine import Engine, EngineConfig
from lathe.errors import ConfigError, UserError
from lathe.jsonl import read_rollouts
from lathe.kernels.cpu.library import load
from lathe.log import read_metrics
from lathe.model.checkpoint import load_model, open_checkpoint, save_model
from lathe.testing import tiny_tokenizer
from lathe.train.checkpoint import load_state, saved_steps
from lathe.train.rl import faults_as_zero
from lathe.train.rl_open import reinforce
from lathe.train.rl_recipe import LoopConfig, RLRecipe
from lathe.train.sync import copy_of, shares_weights, sync
from lathe.types import Rollout, Verdict

pytestmark = [
    pytest.mark.skipif(load() is None, reason="no compiled kernels here"),
    pytest.mark.usefixtures("pool"),  # skips where sandboxes are refused
]

# A model that says noise solves nothing; but some of its replies end, and that is rewarded here.
RECIPE = """
seed = 3
num_threads = 1
tasks = {family = "micro_python", num_train = 12, num_eval = 2}
sample = {max_tokens = 24, max_context = 256, kv_memory_bytes = 4_000_000}
loop = {steps = 3, groups = 2, group_size = 4, max_groups = 4, minibatches = 2, eval_every = 3}
train = {lr = 1e-2, deterministic = true}
reward = {unfinished = 1.0}
"""


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    """A checkpoint that says noise and ends one reply in two."""
    folder = tmp_path_factory.mktemp("noise")
    tokenizer = tiny_tokenizer()
    config = tiny_config(
        architecture="qwen3_moe", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16
    )
    ends = list(range(10))  # of 300 ids: half of the replies end within 24 tokens
    save_model(random_model(config), folder, generation_config={"eos_token_id": ends})
    tokenizer.save(folder)
    return folder


@pytest.fixture
def recipe(tmp_path, noise):
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)

    def read(*sets: str) -> RLRecipe:
        return load_recipe(RLRecipe, path, [f"start.model={noise}", *sets])

    return read


def run(recipe, folder, *, resume=False) -> list[str]:
    said: list[str] = []
    assert reinforce(replace(recipe, run=folder), resume=resume, say=said.append) == folder
    return said


def weights(folder):
    (*_, last) = saved_steps(folder / "checkpoints")
    return load_state(folder / "checkpoints" / f"step-{last:05d}")[0]["model"]


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_moves_weights_and_its_probabilities_are_the_engines(recipe, tmp_path, noise):
    run(recipe(), tmp_path / "run")
    steps = read_metrics(tmp_path / "run")
    assert [each["step"] for each in steps] == [0, 1, 2, 3]
    assert all(each["mismatch"] == 0.0 for each in steps[1:])
    assert [("eval_pass_rate" in each) for each in steps] == [True, False, False, True]
    assert steps[1]["grad_norm"] > 0 and steps[1]["invalid_share"] == 0
    kept = list(read_rollouts(tmp_path / "run" / "rollouts" / "step-00002.jsonl"))
    assert {version for each in kept for t in each.trajectories for version in t.weights_versions} == {1}
    assert not same(weights(tmp_path / "run"), load_model(open_checkpoint(noise)).state_dict())
    assert same(
        weights(tmp_path / "run"), load_model(open_checkpoint(tmp_path / "run" / "export")).state_dict()
    )


def test_a_run_that_ended_anywhere_goes_on_to_the_same_weights(recipe, tmp_path, monkeypatch):
    run(recipe(), tmp_path / "whole")
    cut = tmp_path / "cut"
    run(recipe("loop.steps=2", "loop.eval_every=3"), cut)
    shutil.rmtree(cut / "checkpoints" / "step-00002")  # killed when step 2 had its line and not its state
    said = run(recipe(), cut, resume=True)
    assert "goes on after step 1" in said
    assert same(weights(tmp_path / "whole"), weights(cut))
    drop = ("seconds", "tokens_per_s")
    plain = [
        [{name: each[name] for name in each if not name.startswith(drop)} for each in read_metrics(folder)]
        for folder in (tmp_path / "whole", cut)
    ]
    assert plain[0] == plain[1]


def test_the_next_attempts_are_made_while_weights_move_and_none_is_too_old(recipe, tmp_path):
    run(recipe("loop.ahead=1", "loop.steps=4", 'credit={stale="mask", max_staleness=1}'), tmp_path / "run")
    steps = read_metrics(tmp_path / "run")[1:]
    assert len(steps) == 4 and max(each["staleness"] for each in steps) == 1
    assert all(each.get("mismatch", 0.0) == 0.0 for each in steps)


def test_when_every_verdict_fails_a_run_ends_and_its_weights_stay(recipe, tmp_path, noise):
    said = run(recipe("experiment.fault_rate=1.0", "loop.steps=1"), tmp_path / "run")
    assert any("nothing to learn from" in line for line in said)
    (_, step) = read_metrics(tmp_path / "run")
    assert step["invalid_share"] == 1.0 and "grad_norm" not in step
    assert same(weights(tmp_path / "run"), load_model(open_checkpoint(noise)).state_dict())


def test_a_fault_is_a_wrong_answer_in_an_experiment_alone():
    fault = Rollout((), verdict=Verdict(reason="broken"))
    assert faults_as_zero(fault).verdict.reward == 0.0
    right = Rollout((), verdict=Verdict(1.0))
    assert faults_as_zero(right) is right


def test_recipes_that_cannot_be_are_refused(recipe, tmp_path):
    with pytest.raises(UserError, match="a baseline needs at least 2"):
        recipe("loop.group_size=1")
    with pytest.raises(UserError, match="either a family or a file"):
        recipe("tasks.train=tasks.jsonl")
    with pytest.raises(ConfigError, match=r"Did you mean loop\.groups"):
        recipe("loop.group=3")


def test_weights_in_the_same_memory_are_not_copied_and_others_are():
    model = random_model(tiny_config())
    config = EngineConfig(kv_memory_bytes=4_000_000)
    for other in (model, copy_of(model)):
        engine = Engine(other, config=config)
        try:
            assert shares_weights(model, engine) == (other is model)
            with torch.no_grad():
                model.norm.weight.mul_(1.5)
            places = [weight.data_ptr() for weight in other.parameters()]
            sync(model, engine, 7)
            assert engine.weights_version == 7
            assert torch.equal(other.norm.weight, model.norm.weight)
            if other is model:
                assert places == [weight.data_ptr() for weight in other.parameters()]
        finally:
            engine.close()


def test_no_more_groups_than_asked_for_unless_more_may_be_tried():
    assert LoopConfig(groups=4).most_groups == 8
    assert LoopConfig(groups=4, max_groups=4).most_groups == 4
