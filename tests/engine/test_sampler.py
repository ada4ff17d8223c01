from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lathe.engine.sampler import check_sampling, sample
from lathe.engine.sequence import Sequence
from lathe.errors import InvalidRequest
from lathe.types import SamplingParams


def sequence(prompt=(0,), reply=(), **options) -> Sequence:
    made = Sequence(tuple(prompt), SamplingParams(**options), 100, lambda _: None)
    made.token_ids += reply
    return made


def draw(logits, count=1, **options) -> list[int]:
    one = sequence(**options)
    return [sample(logits, one).token_id for _ in range(count)]


def shares(logits, count=5_000, **options) -> dict[int, float]:
    drawn = Counter(draw(logits, count, seed=0, **options))
    return {token: number / count for token, number in drawn.items()}


def test_temperature_zero_takes_the_best():
    assert draw(torch.tensor([0.1, 3.0, 2.9]), temperature=0.0) == [1]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_samples_follow_the_softmax(temperature):
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    wanted = torch.softmax(logits / temperature, -1)
    got = shares(logits, temperature=temperature)
    assert all(abs(got.get(token, 0.0) - float(p)) < 0.025 for token, p in enumerate(wanted))


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        (dict(top_k=2), {3, 2}),
        (dict(top_p=0.6), {3}),  # probabilities 0.64, 0.24, 0.09, 0.03
        (dict(top_p=0.65), {3, 2}),
        (dict(min_p=0.3), {3, 2}),
        (dict(top_k=3, top_p=0.9), {3, 2}),  # of the three that stay: 0.665, 0.245, 0.090
        (dict(top_p=1e-9), {3}),
        (dict(min_p=1.0), {3}),
        (dict(top_k=99), {0, 1, 2, 3}),
    ],
)
def test_truncation_keeps_what_it_should(options, kept):
    got = shares(torch.tensor([0.0, 1.0, 2.0, 3.0]), 1_500, **options)
    assert set(got) == kept
    probs = torch.softmax(torch.tensor([0.0, 1.0, 2.0, 3.0]), -1)
    total = sum(float(probs[token]) for token in kept)
    assert all(abs(got[token] - float(probs[token]) / total) < 0.04 for token in kept)


@given(st.integers(0, 10_000), st.sampled_from([0.1, 0.5, 0.9, 0.999]))
def test_top_p_is_the_smallest_set_that_holds_p(seed, top_p):
    """Also where the set is larger than the first candidates that are sorted."""
    logits = torch.randn(3_000, generator=torch.Generator().manual_seed(seed)) * 0.3
    probs, order = torch.softmax(logits.double(), -1).sort(descending=True)
    size = int((probs.cumsum(-1) < top_p).sum()) + 1
    allowed = set(order[: size + 1].tolist())
    assert set(draw(logits, 5, top_p=top_p, seed=seed)) <= allowed


def test_repetition_penalty_counts_prompt_and_reply():
    logits = torch.tensor([2.0, 1.9, -1.0])
    token = sample(logits, sequence(prompt=(0,), temperature=0.0, repetition_penalty=1.2))
    assert token.token_id == 1
    # what is reported is the model's own distribution, before penalties
    assert token.logprob == pytest.approx(float(torch.log_softmax(logits, -1)[1]), abs=1e-6)
    negative = torch.tensor([-2.0, -2.1])
    assert draw(negative, prompt=(0,), temperature=0.0, repetition_penalty=1.2) == [1]


def test_presence_and_frequency_look_at_the_reply_alone():
    logits = torch.tensor([2.0, 1.0])
    assert draw(logits, prompt=(0, 0, 0), temperature=0.0, presence_penalty=1.5) == [0]
    assert draw(logits, reply=(0,), temperature=0.0, presence_penalty=1.5) == [1]
    assert draw(logits, reply=(0,), temperature=0.0, frequency_penalty=0.6) == [0]
    assert draw(logits, reply=(0, 0), temperature=0.0, frequency_penalty=0.6) == [1]


def test_penalties_keep_up_with_a_growing_reply():
    logits = torch.tensor([1.0, 0.9, 0.8, 0.7])
    one = sequence(prompt=(), temperature=0.0, presence_penalty=10.0)
    said = []
    for _ in range(4):
        said.append(sample(logits, one).token_id)
        one.token_ids.append(said[-1])
    assert said == [0, 1, 2, 3]


def test_alternatives_are_the_best_and_in_order():
    logits = torch.tensor([1.0, 3.0, 2.0, 0.0])
    token = sample(logits, sequence(temperature=0.0, logprobs=3))
    wanted = torch.log_softmax(logits, -1)
    assert [i for i, _ in token.top] == [1, 2, 0]
    assert all(abs(p - float(wanted[i])) < 1e-6 for i, p in token.top)
    assert token.top[0] == (token.token_id, pytest.approx(token.logprob))


@pytest.mark.parametrize(
    "wrong",
    [
        dict(temperature=-0.1),
        dict(temperature=float("nan")),
        dict(top_p=0.0),
        dict(top_p=1.1),
        dict(top_k=-1),
        dict(min_p=2.0),
        dict(repetition_penalty=0.0),
        dict(presence_penalty=float("inf")),
        dict(max_tokens=-1),
        dict(n=0),
    ],
)
def test_numbers_without_a_meaning_are_named(wrong):
    with pytest.raises(InvalidRequest, match=next(iter(wrong))):
        check_sampling(SamplingParams(**wrong))


def test_seeds_are_repeatable_and_their_absence_is_not():
    logits = torch.zeros(1_000)
    assert draw(logits, 20, seed=5) == draw(logits, 20, seed=5)
    assert draw(logits, 20) != draw(logits, 20)
    assert draw(logits, 20, seed=-1) != draw(logits, 20, seed=1)


def test_the_smallest_temperature_takes_the_best():
    logits = torch.tensor([1.0, 3.0, -2.0, 0.0])
    for top_k in (0, 3):
        assert draw(logits, 10, temperature=5e-324, top_k=top_k, top_p=1.0) == [1] * 10
