"""The messages dialect on a real engine: cached prompts, clients who leave, a server that stops."""

import threading

import anthropic
import httpx
import pytest
from serving import serve, wait_until
from test_drain import stoppable

from lathe.testing import ScriptedModel

TOOLS = [{"name": f"tool_{i}", "input_schema": {"properties": {"x": {"type": "string"}}}} for i in range(8)]
SYSTEM = {"type": "text", "text": "You are an agent. " * 80, "cache_control": {"type": "ephemeral"}}


def ask(turn: int, *messages: dict) -> dict:
    """A request of an agent's conversation, with a header that differs each time."""
    system = [{"type": "text", "text": f"x-anthropic-billing-header: cch={turn};"}, SYSTEM]
    return {"model": "m", "max_tokens": 20, "system": system, "tools": TOOLS, "messages": list(messages)}


def test_a_second_turn_reads_only_what_is_new(llm):
    first = {"role": "user", "content": "Look into the file."}
    with serve(llm) as url, anthropic.Anthropic(base_url=url, api_key="x", max_retries=0) as client:
        one = client.messages.create(**ask(1, first)).usage
        answer = {
            "role": "assistant",
            "content": [{"type": "tool_use", "id": "toolu_1", "name": "tool_1", "input": {"x": "a.py"}}],
        }
        result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "print(1)"}
        messages = [first, answer, {"role": "user", "content": [result]}]
        with client.messages.stream(**ask(2, *messages)) as stream:
            start = next(event for event in stream if event.type == "message_start")
            two = stream.get_final_message().usage
        count = client.messages.count_tokens(
            **{key: value for key, value in ask(3, *messages).items() if key != "max_tokens"}
        )
    assert one.cache_read_input_tokens == 0
    assert two.cache_read_input_tokens > 0.95 * one.input_tokens
    assert two.cache_read_input_tokens + two.input_tokens == count.input_tokens
    assert start.message.usage.cache_read_input_tokens == two.cache_read_input_tokens
    assert start.message.usage.input_tokens == two.input_tokens


@pytest.mark.parametrize("stream", [True, False])
def test_leaving_ends_the_reply(llm, stream):
    body = {**ask(1, {"role": "user", "content": "Go on."}), "max_tokens": 12_000, "ignore_eos": True}
    with serve(llm) as url:
        with httpx.Client(base_url=url) as http:
            if stream:
                with http.stream("POST", "/v1/messages", json={**body, "stream": True}) as response:
                    assert "message_start" in next(response.iter_lines())
                    assert llm.engine.stats().num_running == 1
            else:
                with pytest.raises(httpx.ReadTimeout):
                    http.post("/v1/messages", json=body, timeout=1)
        assert wait_until(lambda: llm.engine.stats().num_running == 0)
        assert wait_until(lambda: llm.engine.stats().num_used_pages == 0)


@pytest.mark.parametrize("stream", [True, False])
def test_a_stopping_server_says_overloaded(stream):
    words = "one two three four five six seven eight nine ten"
    body = ask(1, {"role": "user", "content": "Count."}) | {"max_tokens": 1000, "stream": stream}
    with stoppable(ScriptedModel(words, delay_s=0.1), grace_s=1.0) as (url, stop, _):
        timer = threading.Timer(0.3, stop)
        timer.start()
        cut = []
        reader = threading.Thread(
            target=lambda: cut.append(httpx.post(f"{url}/v1/messages", json=body, timeout=20))
        )
        reader.start()
        timer.join()
        late = httpx.post(f"{url}/v1/messages", json=body, timeout=20)
        reader.join()
    assert (late.status_code, late.json()["error"]["type"]) == (503, "overloaded_error")
    if stream:
        assert "text_delta" in cut[0].text, "what it has"
        assert cut[0].text.count("event: error\n") == 1
        assert '"overloaded_error"' in cut[0].text
    else:
        assert (cut[0].status_code, cut[0].json()["error"]["type"]) == (503, "overloaded_error")
