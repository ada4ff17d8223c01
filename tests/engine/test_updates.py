import threading
import time

import pytest
import torch
from listening import GREEDY, Listener, config, greedy_reference
from tiny_models import random_model, tiny_config

from lathe.engine.engine import Engine, EngineClosed
from lathe.errors import InvalidRequest
from lathe.types import SamplingParams

LONG = SamplingParams(temperature=0.0, max_tokens=300)


@pytest.fixture
def engine():
    model = random_model(tiny_config())
    with_engine = Engine(model, config=config(model))
    yield with_engine
    with_engine.close()


@pytest.fixture(scope="module")
def other():
    return random_model(tiny_config(), seed=1)


def test_new_weights_speak_and_nothing_of_the_old_is_remembered(engine, other):
    prompt = list(range(100))
    before = Listener(engine, prompt)
    before.wait()
    assert engine.update_weights(other.state_dict()) == 1
    after = Listener(engine, prompt)
    assert after.wait() == greedy_reference(other, prompt, 24) != before.token_ids
    assert after.first.num_cached_tokens == 0
    assert (before.versions[-1], after.versions[0]) == (0, 1)
    assert engine.update_weights({}, version=7) == 7


def test_the_copies_are_the_engines_own(engine, other):
    weights = {name: weight.clone() for name, weight in other.state_dict().items()}
    engine.update_weights(weights)
    for weight in weights.values():
        weight.zero_()
    assert Listener(engine, [1, 2, 3]).wait() == greedy_reference(other, [1, 2, 3], 24)


def test_running_replies_finish_with_the_weights_that_they_began_with(engine, other):
    expected = greedy_reference(engine.runner.model, [5, 6, 7], 300)
    running = Listener(engine, [5, 6, 7], LONG)
    running.reports.get(timeout=10)
    update = threading.Thread(target=engine.update_weights, args=(other.state_dict(),))
    update.start()
    time.sleep(0.02)
    waiting = Listener(engine, [5, 6, 7])
    assert running.wait() == expected[1:]
    assert set(running.versions) == {0}
    assert waiting.wait() == greedy_reference(other, [5, 6, 7], 24)
    assert set(waiting.versions) == {1}
    update.join(10)


def test_running_replies_can_go_on_with_the_new_weights(engine, other):
    running = Listener(engine, [5, 6, 7], LONG)
    running.reports.get(timeout=10)
    engine.update_weights(other.state_dict(), running="continue")
    said = running.wait()
    place = running.versions.index(1)
    assert set(running.versions[place:]) == {1}
    old = greedy_reference(engine.runner.model, [5, 6, 7], 0)
    assert old == []
    first = greedy_reference(random_model(tiny_config()), [5, 6, 7], 1)
    context = [5, 6, 7, *first, *said[:place]]
    assert said[place : place + 20] == greedy_reference(other, context, 20)


@torch.inference_mode()
def test_what_does_not_fit_changes_nothing(engine, other):
    expected = Listener(engine, [1, 2, 3]).wait()
    weights = dict(other.state_dict())
    with pytest.raises(InvalidRequest, match=r"layers\.9\.x is no weight"):
        engine.update_weights({**weights, "layers.9.x": torch.zeros(1)})
    with pytest.raises(InvalidRequest, match=r"norm\.weight has the shape \[3\]; the model's is \[48\]"):
        engine.update_weights({**weights, "norm.weight": torch.zeros(3)})
    assert Listener(engine, [1, 2, 3]).wait() == expected
    assert engine.weights_version == 0


def test_a_closed_engine_takes_no_weights(tiny_model):
    engine = Engine(tiny_model, config=config(tiny_model))
    engine.close()
    with pytest.raises(EngineClosed):
        engine.update_weights({})


def test_aborted_replies_end_with_what_they_have(engine):
    running = Listener(engine, [5, 6, 7], LONG)
    running.reports.get(timeout=10)
    engine.abort_all()
    assert len(running.wait()) < 299
    assert running.finish_reason == "abort"
    assert engine.pool.num_free == engine.pool.num_pages
    assert len(Listener(engine, [5, 6, 7], GREEDY).wait()) == 24
