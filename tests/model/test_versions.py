"""A folder of weights: what a reader finds there is whole, and the latest."""

import threading

import pytest
import torch
from tiny_models import random_model, tiny_config

from lathe.errors import CheckpointError
from lathe.model.versions import latest_version, publish, read_version

MOE = dict(architecture="qwen3_moe", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)


@pytest.mark.parametrize("shape", [{}, MOE, {"tie_word_embeddings": True}], ids=["dense", "moe", "tied"])
def test_what_was_published_is_read_again(tmp_path, shape):
    model = random_model(tiny_config(**shape))
    assert latest_version(tmp_path) is None
    publish(model, tmp_path / "run", 3)
    assert latest_version(tmp_path / "run") == 3
    weights = read_version(tmp_path / "run", 3, model.config)
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())


def test_few_versions_stay_and_a_run_may_go_back(tmp_path):
    model = random_model(tiny_config())
    for version in (1, 2, 3, 4):
        publish(model, tmp_path, version)
    assert names(tmp_path) == ["latest", "version-00003", "version-00004"]
    other = random_model(tiny_config(), seed=1)
    publish(other, tmp_path, 3)
    assert (latest_version(tmp_path), names(tmp_path)) == (3, ["latest", "version-00003"])
    weights = read_version(tmp_path, 3, model.config)
    assert torch.equal(weights["norm.weight"], other.norm.weight)
    assert torch.equal(weights["lm_head.weight"], other.lm_head.weight)


def test_a_reader_never_sees_half_of_a_version(tmp_path):
    """While one thread publishes, another reads whatever is the latest: each version holds its own number."""
    model = random_model(tiny_config(num_layers=1))
    stop = threading.Event()

    def train() -> None:
        version = 0
        while not stop.is_set():
            version += 1
            with torch.no_grad():
                for weight in model.parameters():
                    weight.fill_(version)
            publish(model, tmp_path, version)

    trainer = threading.Thread(target=train)
    trainer.start()
    try:
        read = 0
        while read < 30:
            version = latest_version(tmp_path)
            if version is None:
                continue
            try:
                weights = read_version(tmp_path, version, model.config)
            except CheckpointError:
                assert latest_version(tmp_path) != version  # it is gone because there are newer ones
                continue
            assert {float(each) for weight in weights.values() for each in weight.unique()} == {version}
            read += 1
    finally:
        stop.set()
        trainer.join()


def test_another_model_is_refused_by_what_differs(tmp_path):
    publish(random_model(tiny_config()), tmp_path, 1)
    with pytest.raises(CheckpointError, match="another model: its head_dim is 16, and 8 is served"):
        read_version(tmp_path, 1, tiny_config(head_dim=8))
    (tmp_path / "latest").write_text("newest")
    with pytest.raises(CheckpointError, match="names no version"):
        latest_version(tmp_path)


def names(folder):
    return sorted(path.name for path in folder.iterdir())
