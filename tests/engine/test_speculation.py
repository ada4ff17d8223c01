from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from listening import Listener, config, greedy_reference
from tiny_models import random_model, tiny_config

from lathe.engine.engine import Engine
from lathe.engine.speculation import LONGEST_WAIT, WINDOW, Gate, Lookup
from lathe.types import SamplingParams


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(1, 7))
def test_a_guess_is_what_followed_the_same_words_last(token_ids, count):
    found = Lookup().propose(token_ids, count)
    places = [i for i in range(3, len(token_ids)) if token_ids[i - 3 : i] == token_ids[-3:]]
    assert found == (tuple(token_ids[places[-1] : places[-1] + count]) if places else ())


def test_a_growing_reply_is_looked_up_as_if_it_were_new():
    growing, token_ids = Lookup(), []
    for token in [1, 2, 3, 4, 1, 2, 3, 9, 1, 2, 3] * 3:
        token_ids.append(token)
        assert growing.propose(token_ids, 4) == Lookup().propose(token_ids, 4)


def test_failed_guesses_wait_longer_and_longer():
    lookup, ids, gaps = Lookup(), [1, 2, 3, 1, 2, 3], []
    for _ in range(4):
        gap = 0
        while not lookup.propose(ids, 2):
            gap += 1
        gaps.append(gap)
        lookup.note(2, 0)
    assert gaps == [0, 4, 8, 16]
    lookup.note(2, 2)
    assert lookup.propose(ids, 2)


def test_the_gate_closes_where_guessing_costs_more_than_it_brings():
    gate = Gate()
    gate.note_step(0.010, 0)
    for _ in range(WINDOW):  # four times the time for one token
        gate.note_step(0.040, 1)
        gate.note_guess(4, 0)
    assert not gate.is_open
    for _ in range(LONGEST_WAIT):
        gate.note_step(0.010, 0)
    assert gate.is_open
    for _ in range(200):  # four times the time for six tokens
        gate.note_step(0.040, 1)
        gate.note_guess(5, 5)
    assert gate.is_open


MOE = dict(architecture="qwen3_moe", num_experts=8, num_experts_per_tok=3, moe_intermediate_size=32)


@pytest.mark.parametrize("shape", [{}, MOE], ids=["dense", "moe"])
def test_guesses_change_no_word(shape):
    """Of twenty words, a model soon repeats itself."""
    model = random_model(tiny_config(vocab_size=20, **shape))
    engine = Engine(model, config=config(model))
    for start in range(3):
        prompt = [(start + 7 * place) % 20 for place in range(30)]
        sampling = SamplingParams(temperature=0.0, max_tokens=100)
        assert Listener(engine, prompt, sampling).wait() == greedy_reference(model, prompt, 100)
    assert engine.gate.num_accepted > 20, "the test must see guesses that were right"
    assert engine.gate.num_proposed > engine.gate.num_accepted, "and others that were wrong"
    engine.close()


def test_guesses_leave_the_distribution_as_it_is():
    """Many draws of four tokens with and without guesses. The prompt says every word of the vocabulary behind
    the two that end it, so that guesses are made, and are mostly wrong."""
    model = random_model(tiny_config(vocab_size=40))
    prompt = [token for last in range(40) for token in (8, 9, last)] + [8, 9]
    counts = {}
    for max_drafts in (0, 7):
        engine = Engine(model, config=config(model, max_drafts=max_drafts))
        samplings = [SamplingParams(temperature=1.5, seed=seed, max_tokens=4) for seed in range(100)]
        counts[max_drafts] = Counter(tuple(Listener(engine, prompt, one).wait()) for one in samplings)
        assert (engine.gate.num_proposed > 30) == (max_drafts > 0)
        engine.close()
    # The same generator draws each token, so not only the frequencies are the same.
    different = sum((counts[0] - counts[7]).values())
    assert different <= 2, "rounding may turn a draw at the edge between two tokens"


def test_a_stop_inside_of_a_guess_ends_the_reply_there(tiny_model):
    prompt = [1, 2, 3, 4, 5] * 6
    reply = greedy_reference(tiny_model, prompt, 40)
    for mark in list(dict.fromkeys(reply))[:6]:
        engine = Engine(tiny_model, config=config(tiny_model))
        sampling = SamplingParams(temperature=0.0, max_tokens=40, stop_token_ids=(mark,))
        assert Listener(engine, prompt, sampling).wait() == reply[: reply.index(mark) + 1]
        assert engine.pool.num_free == engine.pool.num_pages
        engine.close()


def test_guesses_count_towards_max_tokens_and_the_context(tiny_model):
    prompt = [1, 2, 3, 4, 5] * 6
    engine = Engine(tiny_model, config=config(tiny_model, max_context=60))
    for count in range(1, 12):
        listener = Listener(engine, prompt, SamplingParams(temperature=0.0, max_tokens=count))
        assert len(listener.wait()) == count
    assert len(Listener(engine, prompt, SamplingParams(temperature=0.0)).wait()) == 30
    engine.close()


def test_the_drafts_of_a_step_stay_within_its_rows(tiny_model, monkeypatch):
    engine = Engine(tiny_model, config=config(tiny_model))
    rows = []
    run = engine.runner.run

    def counting(shares, **options):
        if all(share.num_tokens == 1 for share in shares):
            rows.append(sum(1 + len(share.drafts) for share in shares))
        return run(shares, **options)

    monkeypatch.setattr(engine.runner, "run", counting)
    sampling = SamplingParams(temperature=0.0, max_tokens=50)
    for listener in [Listener(engine, [i, 2, 3, 4, 5] * 6, sampling) for i in range(6)]:
        listener.wait()
    assert max(rows) <= 8
    assert torch.tensor(rows).float().mean() > 1
    engine.close()
