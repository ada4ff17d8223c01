import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from listening import GREEDY, Listener, config, greedy_reference, prompts

from lathe.engine.engine import Engine
from lathe.engine.kv_cache import PAGE_SIZE
from lathe.engine.prefix_cache import PrefixCache, page_keys
from lathe.types import SamplingParams

ONE = SamplingParams(temperature=0.0, max_tokens=1)


@given(st.lists(st.tuples(st.sampled_from(["take", "share", "end"]), st.integers(0, 5)), max_size=80))
def test_pages_are_shared_and_given_back_without_loss(moves):
    """Sequences of pages whose contents are prefixes of a few texts come and go."""
    cache, held = PrefixCache(12), []
    texts = [page_keys([text] * PAGE_SIZE * 6, 6) for text in range(3)]
    for move, number in moves:
        keys = texts[number % 3]
        if move == "share":
            held.append((keys, cache.find(keys)))
        elif move == "take" and cache.num_free >= 1 and held:
            keys, pages = held[number % len(held)]
            if len(pages) < 6:
                pages += cache.take(1, after=pages[-1] if pages else None)
                cache.keep(pages[-1], keys[len(pages) - 1])
        elif move == "end" and held:
            cache.give_back(held.pop(number % len(held))[1])
        cache.check()
        in_use = {page for _, pages in held for page in pages}
        assert cache.num_free == 12 - len(in_use)
    for _, pages in held:
        cache.give_back(pages)
    assert cache.num_free == 12
    assert sorted(cache.take(12)) == list(range(12))
    assert cache.num_kept == 0


def test_the_least_recently_used_goes_first_and_a_chain_from_its_end():
    cache = PrefixCache(4)
    old, new = (page_keys([text] * PAGE_SIZE * 2, 2) for text in (1, 2))
    for keys in (old, new):
        pages = cache.take(2)
        for page, key in zip(pages, keys, strict=True):
            cache.keep(page, key)
        cache.give_back(pages)
    cache.give_back(cache.find(old))  # used again: now the other one is the oldest
    cache.take(1)
    for keys, count in ((old, 2), (new, 1)):
        pages = cache.find(keys)
        assert len(pages) == count
        cache.give_back(pages)


def test_a_key_stands_for_everything_before_it():
    a, b = [1] * 32, [1] * 16 + [2] * 16
    assert page_keys(a, 2)[0] == page_keys(b, 2)[0]
    assert page_keys(a, 2)[1] != page_keys(b, 2)[1]
    assert page_keys([3] * 16 + b[16:], 2)[1] != page_keys(b, 2)[1]
    assert page_keys(a, 2, b"other") != page_keys(a, 2)
    assert page_keys(a, 2, b"", page_keys(a, 1)) == page_keys(a, 2)


@pytest.mark.parametrize("kind", ["tiny_model", "tiny_moe"])
def test_a_second_turn_reads_only_what_is_new(kind, request):
    model = request.getfixturevalue(kind)
    engine = Engine(model, config=config(model))
    first = [token % 300 for token in range(200)]
    reply = Listener(engine, first).wait()
    second = first + reply + [7, 8, 9]
    listener = Listener(engine, second)
    assert listener.wait() == greedy_reference(model, second, 24)
    known = len(first) + len(reply) - 1  # the last token sampled was not read
    assert listener.first.num_cached_tokens == known // PAGE_SIZE * PAGE_SIZE
    assert engine.pool.num_free == engine.pool.num_pages
    engine.pool.check()
    engine.close()


def test_conversations_under_memory_pressure_keep_their_words(tiny_model):
    """Six conversations of four turns share two beginnings in a cache that holds about two of them."""
    engine = Engine(tiny_model, config=config(tiny_model, tokens=512, max_context=400, prefill_chunk=48))
    rng = random.Random(0)
    beginnings = [[rng.randrange(300) for _ in range(90)] for _ in range(2)]
    talks = [beginnings[i % 2] + [i] for i in range(6)]
    sampling = SamplingParams(temperature=0.0, max_tokens=12)
    for _ in range(4):
        listeners = [Listener(engine, talk, sampling) for talk in talks]
        for talk, listener in zip(talks, listeners, strict=True):
            expected = greedy_reference(tiny_model, talk, 12)
            assert listener.wait() == expected
            talk += [*expected, *(rng.randrange(300) for _ in range(20))]
        assert engine.pool.num_free == engine.pool.num_pages
        engine.pool.check()
    assert engine.pool.num_kept > 0
    engine.close()


def test_replies_to_one_prompt_read_it_once(tiny_model, monkeypatch):
    engine = Engine(tiny_model, config=config(tiny_model))
    num_read = 0
    run = engine.runner.run

    def counting(shares, **options):
        nonlocal num_read
        num_read += sum(share.num_tokens for share in shares if share.sequence.is_reading)
        return run(shares, **options)

    monkeypatch.setattr(engine.runner, "run", counting)
    prompt = prompts(1, seed=9, longest=200)[0] * 4
    listeners = [Listener(engine, prompt[:160], ONE) for _ in range(8)]
    assert len({tuple(listener.wait()) for listener in listeners}) == 1
    assert num_read <= 160 + 7 * PAGE_SIZE
    engine.close()


def test_without_the_cache_nothing_is_kept(tiny_model):
    engine = Engine(tiny_model, config=config(tiny_model, prefix_cache=False))
    for _ in range(2):
        listener = Listener(engine, range(100), GREEDY)
        listener.wait()
        assert listener.first.num_cached_tokens == 0
    assert engine.pool.num_kept == 0
    engine.close()


def test_prompt_scores_are_the_same_with_a_warm_cache(tiny_model):
    engine = Engine(tiny_model, config=config(tiny_model))
    sampling = SamplingParams(temperature=0.0, max_tokens=0, prompt_logprobs=2)
    Listener(engine, range(150)).wait()
    scored = [Listener(engine, range(150), sampling) for _ in range(2)]
    for listener in scored:
        assert listener.wait() == []
        assert listener.finish_reason == "length"
        scores = listener.first.prompt_logprobs
        assert [score and score.token_id for score in scores] == [None, *range(1, 150)]
        assert all(len(score.top) == 2 for score in scores[1:])
    engine.close()
