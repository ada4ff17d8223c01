"""A server that is told to stop lets replies end, cuts what takes too long, and tells late clients why."""

import signal
import threading
import time
from contextlib import contextmanager

import httpx
import openai
import pytest

from lathe.server import run
from lathe.server.app import create_app
from lathe.testing import ScriptedModel

WORDS = "one two three four five six seven eight nine ten"
ASK = {"model": "m", "messages": [{"role": "user", "content": "Count."}]}


@contextmanager
def stoppable(llm, grace_s):
    """The server's URL and a function that does what SIGTERM does; signals reach main threads only."""
    bound = run.bind("127.0.0.1", 0)
    ready = threading.Event()
    server = run.Server(create_app(llm), ready.set, grace_s)
    server.capture_signals = lambda: _nothing()
    thread = threading.Thread(target=server.run, args=([bound],), daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield run.base_url(bound), lambda: server.handle_exit(signal.SIGTERM, None), thread
    finally:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()
        llm.close()


@contextmanager
def _nothing():
    yield


def read(url, **fields):
    """A stream's text and finish_reason, and a way to see what has come so far."""
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0, timeout=20)
    stream = client.chat.completions.create(**ASK, stream=True, **fields)
    text, reason = "", None
    for chunk in stream:
        text += chunk.choices[0].delta.content or ""
        reason = chunk.choices[0].finish_reason or reason
        yield text, reason


def test_a_reply_that_ends_in_time_is_whole():
    with stoppable(ScriptedModel(WORDS, delay_s=0.01), grace_s=10) as (url, stop, thread):
        states = read(url)
        next(states)
        stop()
        assert list(states)[-1] == (WORDS, "stop")
        thread.join(5)
        assert not thread.is_alive()


@pytest.mark.parametrize("stream", [True, False])
def test_a_reply_that_takes_too_long_ends_with_what_it_has(stream):
    with stoppable(ScriptedModel(WORDS, delay_s=0.1), grace_s=0.5) as (url, stop, thread):
        timer = threading.Timer(0.5, stop)
        timer.start()
        if stream:
            text, reason = list(read(url))[-1]
        else:
            choice = httpx.post(f"{url}/v1/chat/completions", json=ASK, timeout=20).json()["choices"][0]
            text, reason = choice["message"]["content"], choice["finish_reason"]
        assert reason == "abort"
        assert 0 < len(text) < len(WORDS)
        assert WORDS.startswith(text)
        thread.join(5)
        assert not thread.is_alive()


def test_new_requests_are_told_that_the_server_stops():
    with stoppable(ScriptedModel(WORDS, WORDS, delay_s=0.1), grace_s=1.5) as (url, stop, _):
        states = read(url)
        next(states)
        stop()
        late = httpx.post(f"{url}/v1/chat/completions", json=ASK, timeout=5)
        assert late.status_code == 503
        assert "server" in late.json()["error"]["message"]
        raw = httpx.post(f"{url}/v1/completions", json={"prompt": "Hi"}, timeout=5)
        assert raw.status_code == 503
        assert httpx.get(f"{url}/health", timeout=5).status_code == 200
        assert list(states)[-1][1] == "abort"


def test_a_second_signal_stops_at_once():
    with stoppable(ScriptedModel(WORDS * 20, delay_s=0.1), grace_s=60) as (url, stop, thread):
        states = read(url)
        next(states)
        stop()
        time.sleep(0.2)
        started = time.monotonic()
        stop()
        thread.join(10)
        assert not thread.is_alive()
        assert time.monotonic() - started < 5
        states.close()


def test_an_idle_server_stops_at_once():
    with stoppable(ScriptedModel(), grace_s=60) as (_, stop, thread):
        stop()
        thread.join(3)
        assert not thread.is_alive()
