import threading
import time

import pytest
from listening import GREEDY, Listener, config, greedy_reference, prompts

from lathe.engine.engine import Engine, EngineClosed, EngineConfig
from lathe.errors import InvalidRequest, PromptTooLong, UserError
from lathe.types import SamplingParams


@pytest.fixture
def engine(tiny_model):
    with_engine = Engine(tiny_model, config=config(tiny_model))
    yield with_engine
    with_engine.close()


@pytest.mark.parametrize("kind", ["tiny_model", "tiny_moe"])
def test_greedy_equals_the_model_without_cache_or_batch(kind, request):
    model = request.getfixturevalue(kind)
    engine = Engine(model, config=config(model, prefill_chunk=32, prefill_chunk_when_busy=16))
    listeners = [Listener(engine, prompt) for prompt in prompts(12)]
    for listener, prompt in zip(listeners, prompts(12), strict=True):
        assert listener.wait() == greedy_reference(model, prompt, 24)
        assert listener.finish_reason == "length"
    engine.close()


def test_requests_join_and_leave_while_others_run(engine, tiny_model):
    alone = {i: Listener(engine, prompt).wait() for i, prompt in enumerate(prompts(10, seed=1))}
    listeners = {}
    for i, prompt in enumerate(prompts(10, seed=1)):
        listeners[i] = Listener(engine, prompt)
        time.sleep(0.004 * (i % 3))
    assert {i: listener.wait() for i, listener in listeners.items()} == alone
    assert engine.pool.num_free == engine.pool.num_pages
    engine.pool.check()


def test_under_memory_pressure_everyone_still_gets_the_same_words(tiny_model):
    """Room for about three of twelve: the youngest gives way and is computed anew."""
    engine = Engine(tiny_model, config=config(tiny_model, tokens=256, max_context=160))
    sampling = SamplingParams(temperature=0.0, max_tokens=60)
    listeners = [Listener(engine, prompt, sampling) for prompt in prompts(12, seed=2)]
    for listener, prompt in zip(listeners, prompts(12, seed=2), strict=True):
        assert listener.wait() == greedy_reference(tiny_model, prompt, 60)
    assert engine.pool.num_free == engine.pool.num_pages
    engine.close()


def test_a_draw_with_a_seed_is_the_same_alone_and_among_others(engine):
    sampling = SamplingParams(temperature=1.0, seed=7, max_tokens=30)
    alone = Listener(engine, [1, 2, 3], sampling).wait()
    others = [Listener(engine, prompt, SamplingParams(max_tokens=40)) for prompt in prompts(6, seed=3)]
    assert Listener(engine, [1, 2, 3], sampling).wait() == alone
    for other in others:
        other.wait()


def test_a_long_prompt_does_not_starve_those_who_decode(tiny_model):
    engine = Engine(tiny_model, config=config(tiny_model, prefill_chunk=64, prefill_chunk_when_busy=8))
    talker = Listener(engine, [5], SamplingParams(temperature=0.0, max_tokens=200))
    talker.reports.get(timeout=30)
    reader = Listener(engine, range(300), SamplingParams(temperature=0.0, max_tokens=1))
    reader.wait()
    before = talker.reports.qsize()
    assert before >= len(reader.sequence.prompt_token_ids) // 8 - 1
    talker.wait()
    engine.close()


def test_a_cancelled_reply_frees_its_pages_within_a_step(engine):
    talker = Listener(engine, [5], SamplingParams(temperature=0.0))
    talker.reports.get(timeout=30)
    engine.cancel(talker.sequence)
    deadline = time.monotonic() + 5
    while engine.pool.num_free != engine.pool.num_pages and time.monotonic() < deadline:
        time.sleep(0.001)
    assert engine.pool.num_free == engine.pool.num_pages
    assert engine.num_running == engine.num_waiting == 0


def test_replies_end_where_they_should(tiny_model):
    reply = greedy_reference(tiny_model, [9, 8, 7], 24)
    mark = reply[5]
    until_mark = reply[: reply.index(mark) + 1]
    engine = Engine(tiny_model, eos_token_ids=(mark, 299), config=config(tiny_model))
    ended = Listener(engine, [9, 8, 7])
    assert (ended.wait(), ended.finish_reason) == (until_mark, "stop")
    ignored = Listener(engine, [9, 8, 7], SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True))
    assert (ignored.wait(), ignored.finish_reason) == (reply, "length")
    engine.close()
    engine = Engine(tiny_model, config=config(tiny_model))
    sampling = SamplingParams(temperature=0.0, max_tokens=24, stop_token_ids=(mark,))
    stopped = Listener(engine, [9, 8, 7], sampling)
    assert (stopped.wait(), stopped.finish_reason) == (until_mark, "stop")
    engine.close()


def test_the_context_ends_a_reply_as_length(tiny_model):
    engine = Engine(tiny_model, config=config(tiny_model, max_context=40))
    listener = Listener(engine, range(30), SamplingParams(temperature=0.0))
    assert len(listener.wait()) == 10
    assert listener.finish_reason == "length"
    engine.close()


def test_what_cannot_fit_is_refused_with_the_numbers(engine):
    with pytest.raises(PromptTooLong, match=r"maximum context length is 512 tokens.*prompt has 512"):
        engine.submit(tuple(range(512)), GREEDY, print)
    with pytest.raises(InvalidRequest, match="empty"):
        engine.submit((), GREEDY, print)
    with pytest.raises(InvalidRequest, match="top_p"):
        engine.submit((1,), SamplingParams(top_p=3.0), print)


def test_a_context_that_memory_does_not_hold_is_refused(tiny_model):
    with pytest.raises(UserError, match="holds 256"):
        Engine(tiny_model, config=config(tiny_model, tokens=256, max_context=500))
    with pytest.raises(UserError, match="No memory"):
        Engine(tiny_model, config=EngineConfig(kv_memory_bytes=10))


def test_a_failed_step_ends_its_replies_and_the_engine_goes_on(engine, monkeypatch):
    expected = Listener(engine, [1, 2, 3]).wait()
    run = engine.runner.run

    def fail(shares, **_):
        monkeypatch.setattr(engine.runner, "run", run)
        raise RuntimeError("a broken step")

    monkeypatch.setattr(engine.runner, "run", fail)
    with pytest.raises(RuntimeError, match="a broken step"):
        Listener(engine, [1, 2, 3]).wait()
    assert Listener(engine, [1, 2, 3]).wait() == expected
    assert engine.pool.num_free == engine.pool.num_pages


def test_what_is_submitted_while_a_failed_step_is_told_is_not_lost(engine, monkeypatch):
    run = engine.runner.run
    second_try = []

    def fail(shares, **_):
        monkeypatch.setattr(engine.runner, "run", run)
        raise RuntimeError("a broken step")

    def try_again(report):
        if report.error is not None:
            second_try.append(Listener(engine, [1, 2, 3]))
            told.set()

    told = threading.Event()
    monkeypatch.setattr(engine.runner, "run", fail)
    engine.submit((1, 2, 3), GREEDY, try_again)
    assert told.wait(10)
    assert len(second_try[0].wait()) == GREEDY.max_tokens


@pytest.mark.parametrize("step_fails", [False, True])
def test_a_listener_that_fails_ends_its_own_reply_only(engine, monkeypatch, step_fails):
    def closed(report):
        raise RuntimeError("Event loop is closed")

    def fail(shares, **_):
        monkeypatch.undo()
        raise RuntimeError("a broken step")

    expected = Listener(engine, [1, 2, 3]).wait()
    if step_fails:
        monkeypatch.setattr(engine.runner, "run", fail)
    engine.submit((5,), SamplingParams(temperature=0.0), closed)
    time.sleep(0.05)
    assert Listener(engine, [1, 2, 3]).wait() == expected
    assert engine.num_running == 0
    assert engine.pool.num_free == engine.pool.num_pages


@pytest.mark.parametrize("token_id", [-1, 300])
def test_an_unknown_token_id_is_refused_and_harms_nobody(engine, token_id):
    talker = Listener(engine, [5], SamplingParams(temperature=0.0, max_tokens=50))
    with pytest.raises(InvalidRequest, match="outside the model's 300 ids"):
        engine.submit((1, token_id), GREEDY, print)
    assert len(talker.wait()) == 50


def test_closing_ends_replies_and_the_thread(tiny_model):
    engine = Engine(tiny_model, config=config(tiny_model))
    talker = Listener(engine, [5], SamplingParams(temperature=0.0))
    talker.reports.get(timeout=30)
    engine.close()
    with pytest.raises(EngineClosed):
        talker.wait()
    with pytest.raises(EngineClosed):
        engine.submit((1,), GREEDY, print)
    assert "lathe-engine" not in {thread.name for thread in threading.enumerate() if thread.is_alive()}


def test_the_cache_is_sized_from_free_memory(tiny_model):
    engine = Engine(tiny_model)
    assert engine.max_context == tiny_model.config.max_position_embeddings
    assert engine.pool.num_pages == engine.config.max_num_seqs * 512 // 16
    engine.close()
