"""A client that goes away frees its pages at once: real engine, real sockets, random weights."""

import time

import httpx
import pytest
from serving import post, read_until, serve, wait_until

# Long enough to be still running whenever a test looks: some seconds on one core.
ENDLESS = {"ignore_eos": True, "temperature": 0, "messages": [{"role": "user", "content": "Hi."}]}


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("stream", [True, False])
def test_leaving_frees_the_pages(llm, stream, n):
    pool = llm.engine.pool
    with serve(llm) as url:
        connection = post(url, {**ENDLESS, "stream": stream, "n": n})
        if stream:
            read_until(connection, b'"content":"')
        assert wait_until(lambda: llm.engine.num_running == n)
        assert pool.num_free < pool.num_pages
        connection.close()
        assert wait_until(lambda: pool.num_free == pool.num_pages, timeout_s=1.0)
        assert llm.engine.num_running == 0
        pool.check()
        # and the server goes on
        body = {**ENDLESS, "max_tokens": 3}
        reply = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=20).json()
        assert reply["usage"]["completion_tokens"] == 3
    assert pool.num_free == pool.num_pages


def test_leaving_while_a_long_prompt_is_read(llm):
    prompt = [{"role": "user", "content": "x" * 6_000}]
    with serve(llm) as url:
        connection = post(url, {**ENDLESS, "messages": prompt, "stream": True})
        assert wait_until(lambda: llm.engine.pool.num_free < llm.engine.pool.num_pages)
        connection.close()
        assert wait_until(lambda: llm.engine.pool.num_free == llm.engine.pool.num_pages, timeout_s=1.0)
        reply = httpx.post(
            f"{url}/v1/chat/completions", json={**ENDLESS, "messages": prompt, "max_tokens": 1}, timeout=60
        )
        assert reply.json()["usage"]["prompt_tokens"] > 6_000


def test_others_go_on_when_one_leaves(llm):
    with serve(llm) as url:
        endless = post(url, {**ENDLESS, "stream": True})
        assert wait_until(lambda: llm.engine.num_running == 1)
        waiting = post(url, {**ENDLESS, "max_tokens": 200})
        assert wait_until(lambda: llm.engine.num_running == 2)
        endless.close()
        read_until(waiting, b'"finish_reason":"length"')
        waiting.close()
        assert wait_until(lambda: llm.engine.pool.num_free == llm.engine.pool.num_pages)


def test_a_stopping_server_ends_running_replies_promptly(llm, caplog):
    with serve(llm) as url:
        streamed = post(url, {**ENDLESS, "stream": True})
        half_sent = post(url, ENDLESS, num_sent=5)
        whole = post(url, ENDLESS)
        assert wait_until(lambda: llm.engine.num_running == 2)
        started = time.monotonic()
    assert time.monotonic() - started < 4
    assert llm.engine.num_running == 0
    for waiting in (whole, half_sent):
        read_until(waiting, b"The server stopped before the reply was complete")
        waiting.close()
    assert "Traceback" not in caplog.text
    streamed.close()
