"""A run's state on disk: whole or not there, and going on from it is the same as never having stopped."""

import shutil

import pytest
import torch
from test_trainer import MOE, needs_kernels, nll, random_samples
from tiny_models import random_model, tiny_config

from lathe.errors import CheckpointError
from lathe.train.checkpoint import last_state, load_state, save_state, saved_steps
from lathe.train.trainer import TrainConfig, Trainer


@needs_kernels
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_goes_on_bit_for_bit(tmp_path, optimizer):
    config = TrainConfig(
        lr=1e-2, optimizer=optimizer, deterministic=True, decay="cosine", total_steps=6, warmup_steps=2
    )
    whole = Trainer(random_model(tiny_config(**MOE)), config)
    for step in range(5):
        whole.step(random_samples(3, seed=step), nll)
        if step == 2:
            save_state(tmp_path, step, whole.state_dict(), {"rows": 7})
    state, loop = load_state(last_state(tmp_path))
    resumed = Trainer(random_model(tiny_config(**MOE), seed=5), config)
    resumed.load_state_dict(state)
    assert (loop, resumed.step_number, resumed.lr) == ({"rows": 7}, 3, pytest.approx(1e-2 * 0.75))
    for step in range(3, 5):
        resumed.step(random_samples(3, seed=step), nll)
    weights = resumed.model.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in whole.model.state_dict().items())


def test_the_last_ones_are_kept_and_one_of_the_same_step_is_replaced(tmp_path):
    for step in (1, 3, 12, 3):
        save_state(tmp_path, step, {"weight": torch.tensor([float(step)])}, {"at": step}, keep=2)
    assert saved_steps(tmp_path) == [3, 12]
    state, loop = load_state(last_state(tmp_path))
    assert (state["weight"].tolist(), loop) == ([12.0], {"at": 12})
    assert {path.name for path in tmp_path.iterdir()} == {"step-00003", "step-00012"}


@pytest.mark.parametrize("call", ["save", "fsync", "rename"])
def test_a_death_at_any_point_leaves_the_state_of_before(tmp_path, monkeypatch, call):
    """The process is gone at that call, so nothing after it happens."""
    save_state(tmp_path, 1, {"weight": torch.zeros(2)}, {})

    def die(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        target = {"save": "torch.save", "fsync": "os.fsync", "rename": "pathlib.Path.rename"}[call]
        patch.setattr(target, die)
        with pytest.raises(KeyboardInterrupt):
            save_state(tmp_path, 2, {"weight": torch.ones(2)}, {})
    assert load_state(last_state(tmp_path))[0]["weight"].tolist() == [0.0, 0.0]
    save_state(tmp_path, 2, {"weight": torch.ones(2)}, {})
    assert saved_steps(tmp_path) == [1, 2]
    assert len(list(tmp_path.iterdir())) == 2


def test_a_damaged_state_names_itself(tmp_path):
    place = save_state(tmp_path, 1, {"weight": torch.zeros(100)}, {})
    (place / "state.pt").write_bytes((place / "state.pt").read_bytes()[:200])
    with pytest.raises(CheckpointError, match="step-00001 can't be read"):
        load_state(place)
    shutil.rmtree(place)
    assert last_state(tmp_path) is None
