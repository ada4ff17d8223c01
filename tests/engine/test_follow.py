"""An engine that takes the weights that another process publishes."""

import logging

import pytest
import torch
from listening import Listener, config, greedy_reference
from serving import wait_until
from tiny_models import random_model, tiny_config

from lathe.engine.engine import Engine
from lathe.engine.follow import Follower
from lathe.model.versions import publish

MOE = dict(architecture="qwen3_moe", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)


@pytest.fixture
def engine():
    model = random_model(tiny_config(**MOE))
    with_engine = Engine(model, config=config(model))
    yield with_engine
    with_engine.close()


@pytest.fixture
def follower(engine, tmp_path):
    following = Follower(engine, tmp_path, poll_s=0.01)
    yield following
    following.close()


def test_every_version_is_served(engine, follower, tmp_path):
    for version in (4, 5, 2):  # a run may go back
        other = random_model(tiny_config(**MOE), seed=version)
        publish(other, tmp_path, version)
        assert wait_until(lambda wanted=version: follower.version == wanted, timeout_s=30)
        assert engine.weights_version == version
        listener = Listener(engine, [1, 2, 3])
        assert listener.wait() == greedy_reference(other, [1, 2, 3], 24)
        assert set(listener.versions) == {version}


def test_what_cannot_be_served_is_said_and_the_old_weights_stay(engine, follower, tmp_path, caplog):
    before = {name: weight.clone() for name, weight in engine.runner.model.state_dict().items()}
    with caplog.at_level(logging.WARNING, logger="lathe"):
        publish(random_model(tiny_config()), tmp_path, 1)
        assert wait_until(lambda: "new weights can't be served" in caplog.text, timeout_s=30)
    assert "another model" in caplog.text
    assert engine.weights_version == 0
    assert all(torch.equal(before[name], weight) for name, weight in engine.runner.model.state_dict().items())
    publish(random_model(tiny_config(**MOE), seed=2), tmp_path, 2)
    assert wait_until(lambda: follower.version == 2, timeout_s=30)
    assert caplog.text.count("can't be served") == 1
