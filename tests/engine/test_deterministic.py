"""A deterministic reply has the same ids and bit-identical log-probabilities, whatever surrounds it."""

import random

import pytest
import torch
from listening import Listener, config, prompts
from tiny_models import random_model, tiny_config

from lathe.engine.engine import Engine
from lathe.engine.runner import invariant_experts
from lathe.errors import InvalidRequest
from lathe.kernels.cpu.exact import Exact
from lathe.kernels.cpu.library import load
from lathe.kernels.invariant_attention import invariant_causal_attention
from lathe.model.linear import INVARIANT
from lathe.types import SamplingParams

SHAPES = {
    "qwen3": {},
    "moe": dict(architecture="qwen3_moe", num_experts=8, num_experts_per_tok=3, moe_intermediate_size=32),
    "biased": dict(architecture="qwen2", qk_norm=False, attention_bias=True),
    "wide": dict(
        hidden_size=320, intermediate_size=600, num_heads=5, num_kv_heads=1, head_dim=64, vocab_size=900
    ),
}
SAMPLINGS = {
    "greedy": SamplingParams(temperature=0.0, max_tokens=20, deterministic=True, logprobs=0),
    "seeded": SamplingParams(
        temperature=0.9,
        top_k=40,
        repetition_penalty=1.1,
        seed=3,
        max_tokens=20,
        deterministic=True,
        logprobs=0,
    ),
}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """A second thread only waits for the first on matrices this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=list(SHAPES))
def model(request):
    return random_model(tiny_config(max_position_embeddings=2048, **SHAPES[request.param]))


def outcome(listener) -> tuple[list[int], list[float]]:
    return listener.wait(), listener.logprobs


@pytest.mark.parametrize("sampling", list(SAMPLINGS))
def test_nothing_around_a_reply_changes_a_bit_of_it(model, sampling):
    """One prompt that repeats itself (so that guesses are made) and crosses a block of keys."""
    sampling = SAMPLINGS[sampling]
    words = prompts(1, seed=4, longest=60)[0]
    prompt = (words * 40)[:300]
    seen = set()
    settings = [
        dict(prefix_cache=False, max_drafts=0),
        dict(prefix_cache=False, max_drafts=0, prefill_chunk=37),
        dict(prefix_cache=False, prefill_chunk=64),
        dict(prefill_chunk=100, prefill_chunk_when_busy=7),
        dict(tokens=700, max_context=512, prefill_chunk=50),  # others make it give way
    ]
    for number, options in enumerate(settings):
        engine = Engine(model, config=config(model, **{"tokens": 8192, **options}))
        ids, logprobs = outcome(Listener(engine, prompt, sampling))
        seen.add((tuple(ids), tuple(logprobs)))
        rng = random.Random(number)
        crowd = [
            Listener(engine, other, SamplingParams(max_tokens=rng.randint(1, 40), seed=i, temperature=1.0))
            for i, other in enumerate(prompts(7, seed=number, longest=90))
        ]
        among = [Listener(engine, prompt, sampling) for _ in range(2)]  # the first found nothing, these may
        for listener in among:
            ids, logprobs = outcome(listener)
            seen.add((tuple(ids), tuple(logprobs)))
        for other in crowd:
            other.wait()
        assert engine.pool.num_free == engine.pool.num_pages
        engine.close()
    assert len(seen) == 1


def test_a_reply_read_back_from_the_cache_has_the_bits_of_a_cold_one(model):
    """The second turn, with the first one's decoded tokens in the cache, and without."""
    sampling = SAMPLINGS["greedy"]
    first = prompts(1, seed=5, longest=100)[0] * 3
    engine = Engine(model, config=config(model))
    reply = Listener(engine, first, sampling).wait()
    second = first + reply + [1, 2, 3]
    warm = Listener(engine, second, sampling)
    warm_outcome = outcome(warm)
    assert warm.first.num_cached_tokens > len(first) - 16
    engine.close()
    engine = Engine(model, config=config(model))
    assert outcome(Listener(engine, second, sampling)) == warm_outcome
    engine.close()


@pytest.mark.skipif(load() is None, reason="no compiled kernels here")
@torch.inference_mode()
def test_a_trainers_forward_gives_the_bits_that_were_served(model):
    sampling = SAMPLINGS["greedy"]
    prompt = prompts(1, seed=6, longest=80)[0] * 5
    engine = Engine(model, config=config(model))
    ids, logprobs = outcome(Listener(engine, prompt, sampling))
    engine.close()
    packed = [1, 2, 3, *prompt, *ids, 4, 5]  # between two others
    lengths = [3, len(prompt) + len(ids), 2]
    positions = [place for length in lengths for place in range(length)]
    exact = Exact(engine.library)
    hidden = model(
        torch.tensor(packed), torch.tensor(positions), exact.attend(lengths), exact.run_experts, exact
    )
    logits = model.logits(hidden[3 + len(prompt) - 1 :][: len(ids)], exact)
    assert exact.logprobs(logits, torch.tensor(ids)).tolist() == logprobs


@torch.inference_mode()
def test_so_does_it_without_compiled_kernels(model):
    sampling = SAMPLINGS["greedy"]
    prompt = prompts(1, seed=6, longest=80)[0] * 5
    engine = Engine(model, config=config(model, compiled=False))
    ids, logprobs = outcome(Listener(engine, prompt, sampling))
    engine.close()
    packed = [1, 2, 3, *prompt, *ids, 4, 5]
    lengths = [3, len(prompt) + len(ids), 2]
    positions = [place for length in lengths for place in range(length)]
    hidden = model(
        torch.tensor(packed),
        torch.tensor(positions),
        lambda _, q, k, v: invariant_causal_attention(q, k, v, lengths),
        invariant_experts,
        INVARIANT,
    )
    rows = model.logits(hidden[3 + len(prompt) - 1 :][: len(ids)], INVARIANT)
    again = [float(row[token] - row.logsumexp(-1)) for row, token in zip(rows, ids, strict=True)]
    assert again == logprobs


def test_the_servers_switch_makes_every_reply_deterministic(tiny_model):
    engine = Engine(tiny_model, config=config(tiny_model, deterministic=True))
    listener = Listener(engine, [1, 2, 3])
    listener.wait()
    assert listener.sequence.sampling.deterministic
    engine.close()


def test_a_machine_that_can_not_keep_the_promise_says_so(tiny_model, monkeypatch):
    engine = Engine(tiny_model, config=config(tiny_model, compiled=False))
    monkeypatch.setattr("lathe.engine.runner.is_invariant", lambda weight: False)
    other = Listener(engine, [5], SamplingParams(temperature=0.0, max_tokens=30))
    with pytest.raises(InvalidRequest, match="deterministic is not possible here"):
        Listener(engine, [1, 2, 3], SAMPLINGS["greedy"]).wait()
    assert len(other.wait()) == 30
    assert engine.pool.num_free == engine.pool.num_pages
    engine.close()
