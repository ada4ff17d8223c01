"""The messages dialect as Anthropic's own client sees it, over a socket. The model's words are scripted."""

import json
from dataclasses import replace
from pathlib import Path

import anthropic
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving import anthropic_client_of, serve

from lathe.engine.engine import EngineClosed
from lathe.server.message_blocks import BlockWriter, whole_blocks
from lathe.server.messages_schema import MessagesReply
from lathe.testing import ScriptedModel
from lathe.text.chat_template import ChatTemplate
from lathe.text.tool_call_events import ArgumentText, CallFinished, CallStarted, Content, Reasoning
from lathe.types import ToolCall

ASK = {"model": "any-name", "max_tokens": 1000, "messages": [{"role": "user", "content": "Hi."}]}
SQUARE = {
    "name": "square",
    "description": "Squares a number.",
    "input_schema": {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]},
}


def call_text(x: object, name: str = "square") -> str:
    return f"<tool_call>\n<function={name}>\n<parameter=x>\n{x}\n</parameter>\n</function>\n</tool_call>"


def blocks_of(message: anthropic.types.Message) -> list[dict]:
    """The content without what differs from reply to reply."""
    return [
        {key: value for key, value in block.to_dict().items() if key != "id"} for block in message.content
    ]


def raw_events(url: str, body: dict) -> list[tuple[str, dict]]:
    """A stream's events, each with its name, as they stand on the wire."""
    with httpx.stream("POST", f"{url}/v1/messages", json={**body, "stream": True}, timeout=20) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert len(lines) % 2 == 0
    names = [line.removeprefix("event: ") for line in lines[::2]]
    data = [json.loads(line.removeprefix("data: ")) for line in lines[1::2]]
    assert names == [payload["type"] for payload in data]
    return list(zip(names, data, strict=True))


# Whole replies


def test_a_whole_reply():
    with anthropic_client_of(ScriptedModel("Grüße, 世界! 🎈", "again")) as client:
        reply = client.messages.create(**ASK)
        again = client.messages.create(**ASK)
    MessagesReply.model_validate(reply.to_dict())
    assert reply.id.startswith("msg_")
    assert reply.id != again.id, "two turns under one id are one turn to Claude Code"
    assert (reply.type, reply.role, reply.model) == ("message", "assistant", "scripted")
    assert blocks_of(reply) == [{"type": "text", "text": "Grüße, 世界! 🎈"}]
    assert (reply.stop_reason, reply.stop_sequence) == ("end_turn", None)
    assert reply.usage.input_tokens > 0
    assert reply.usage.output_tokens == len("Grüße, 世界! 🎈".encode()) + 1
    assert (reply.usage.cache_creation_input_tokens, reply.usage.cache_read_input_tokens) == (0, 0)


def test_prose_and_two_calls_are_blocks_in_their_order():
    with anthropic_client_of(ScriptedModel(f"Both now.\n{call_text(1)}\n{call_text(2)}")) as client:
        reply = client.messages.create(**ASK, tools=[SQUARE])
    assert blocks_of(reply) == [
        {"type": "text", "text": "Both now."},
        {"type": "tool_use", "name": "square", "input": {"x": 1}},
        {"type": "tool_use", "name": "square", "input": {"x": 2}},
    ]
    assert reply.stop_reason == "tool_use"
    assert len({block.id for block in reply.content if block.type == "tool_use"}) == 2


def test_a_stop_sequence_is_named():
    with anthropic_client_of(ScriptedModel("count 1, 2, 3", "a b c")) as client:
        cut = client.messages.create(**ASK, stop_sequences=["never", "", " 3"])
        none = client.messages.create(**ASK, stop_sequences=["never"])
    assert blocks_of(cut) == [{"type": "text", "text": "count 1, 2,"}]
    assert (cut.stop_reason, cut.stop_sequence) == ("stop_sequence", " 3")
    assert (none.stop_reason, none.stop_sequence) == ("end_turn", None)


def test_max_tokens_may_be_left_out_or_be_more_than_the_context_holds():
    with (
        serve(ScriptedModel("abcdef", "fine", "fine", max_context=256)) as url,
        anthropic.Anthropic(base_url=url, api_key="x", max_retries=0) as client,
    ):
        cut = client.messages.create(**{**ASK, "max_tokens": 3})
        more = client.messages.create(**{**ASK, "max_tokens": 5_000})
        left_out = httpx.post(f"{url}/v1/messages", json={"messages": ASK["messages"]}).json()
    assert (blocks_of(cut), cut.stop_reason) == ([{"type": "text", "text": "abc"}], "max_tokens")
    assert blocks_of(more) == left_out["content"] == [{"type": "text", "text": "fine"}]


def test_a_reply_of_nothing_has_no_blocks():
    with anthropic_client_of(ScriptedModel("", "\n\n", "")) as client:
        replies = [client.messages.create(**ASK), client.messages.create(**ASK)]
        with client.messages.stream(**ASK) as stream:
            replies.append(stream.get_final_message())
    assert [(reply.content, reply.stop_reason) for reply in replies] == [([], "end_turn")] * 3


# Streamed replies


def test_a_stream_says_what_the_whole_reply_says():
    words = f"Both now.\n{call_text(1)}\n{call_text('7.5')}"
    with anthropic_client_of(ScriptedModel(words, words)) as client:
        whole = client.messages.create(**ASK, tools=[SQUARE])
        with client.messages.stream(**ASK, tools=[SQUARE]) as stream:
            events = list(stream)
            streamed = stream.get_final_message()
    assert blocks_of(streamed) == blocks_of(whole)
    assert (streamed.stop_reason, streamed.usage) == (whole.stop_reason, whole.usage)
    assert "".join(event.text for event in events if event.type == "text") == "Both now."
    assert sum(event.type == "text" for event in events) > 5, "piece by piece"


async def test_the_asynchronous_client():
    words = f"Now.\n{call_text(5)}"
    with serve(ScriptedModel(words, words)) as url:
        async with anthropic.AsyncAnthropic(base_url=url, api_key="x", max_retries=0, timeout=20) as client:
            whole = await client.messages.create(**ASK, tools=[SQUARE])
            async with client.messages.stream(**ASK, tools=[SQUARE]) as stream:
                text = "".join([piece async for piece in stream.text_stream])
                streamed = await stream.get_final_message()
    assert text == "Now."
    assert blocks_of(streamed) == blocks_of(whole)
    assert streamed.content[1].input == {"x": 5}


def test_the_beta_path_is_the_same():
    with anthropic_client_of(ScriptedModel("one", "two")) as client:
        assert client.beta.messages.create(**ASK).content[0].text == "one"
        with client.beta.messages.stream(**ASK, betas=["interleaved-thinking-2025-05-14"]) as stream:
            assert stream.get_final_text() == "two"
        assert client.beta.messages.count_tokens(model="m", messages=ASK["messages"]).input_tokens > 0


def test_the_order_and_the_fields_of_events():
    model = ScriptedModel(f"A\n{call_text(1)}", "ab 3")
    num_tokens = len(model.tokenizer.encode(f"A\n{call_text(1)}", allow_special=True)) + 1
    with serve(model) as url:
        events = raw_events(url, {**ASK, "tools": [SQUARE]})
        stopped = raw_events(url, {**ASK, "stop_sequences": ["3"]})
    steps = [name for place, (name, _) in enumerate(events) if place == 0 or name != events[place - 1][0]]
    block = ["content_block_start", "content_block_delta", "content_block_stop"]
    assert steps == ["message_start", *block, *block, "message_delta", "message_stop"]

    message = events[0][1]["message"]
    assert message["id"].startswith("msg_")
    assert (message["content"], message["stop_reason"], message["stop_sequence"]) == ([], None, None)
    assert message["usage"].keys() == {
        "input_tokens",
        "output_tokens",
        "cache_creation_input_tokens",
        "cache_read_input_tokens",
        "output_tokens_details",
    }
    starts = [data for name, data in events if name == "content_block_start"]
    assert [data["index"] for data in starts] == [0, 1]
    assert starts[0]["content_block"] == {"type": "text", "text": ""}
    assert starts[1]["content_block"].keys() == {"type", "id", "name", "input"}
    assert starts[1]["content_block"]["input"] == {}
    pieces = [data["delta"] for _, data in events if data.get("index") == 1 and "delta" in data]
    assert {piece["type"] for piece in pieces} == {"input_json_delta"}
    assert json.loads("".join(piece["partial_json"] for piece in pieces)) == {"x": 1}
    assert events[-2][1]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert events[-2][1]["usage"] == {**message["usage"], "output_tokens": num_tokens}
    assert stopped[-2][1]["delta"] == {"stop_reason": "stop_sequence", "stop_sequence": "3"}


@pytest.mark.parametrize(("max_tokens", "num_calls"), [(5, 0), (20, 0), (45, 0), (70, 1), (120, 1)])
def test_a_call_that_was_cut_never_stops(max_tokens, num_calls):
    words = call_text(123456789) * 2
    ask = {**ASK, "max_tokens": max_tokens, "tools": [SQUARE]}
    with anthropic_client_of(ScriptedModel(words, words)) as client:
        whole = client.messages.create(**ask)
        with client.messages.stream(**ask) as stream:
            stops = [event.content_block for event in stream if event.type == "content_block_stop"]
            streamed = stream.get_final_message()
    assert whole.stop_reason == streamed.stop_reason == "max_tokens"
    assert [block["type"] for block in blocks_of(whole)].count("tool_use") == num_calls
    assert [block.to_dict() | {"id": ""} for block in stops] == [
        block.to_dict() | {"id": ""} for block in whole.content
    ]


def test_cached_tokens_are_told_from_the_first_event_on(monkeypatch):
    model = ScriptedModel("abc", "abc")
    submit = model.engine.submit
    monkeypatch.setattr(
        model.engine,
        "submit",
        lambda ids, sampling, report: submit(
            ids, sampling, lambda sampled: report(replace(sampled, num_cached_tokens=16))
        ),
    )
    with serve(model) as url:
        events = raw_events(url, ASK)
        whole = httpx.post(f"{url}/v1/messages", json=ASK).json()
    num_prompt = len(model.engine.prompts[0])
    for usage in (events[0][1]["message"]["usage"], events[-2][1]["usage"], whole["usage"]):
        assert usage["cache_read_input_tokens"] == 16
        assert usage["input_tokens"] == num_prompt - 16
        assert usage["cache_creation_input_tokens"] == 0


# Thinking


QWEN3 = Path(__file__).parent.parent / "text" / "templates" / "qwen3.jinja"


def thinker(*replies: str) -> ScriptedModel:
    return ScriptedModel(*replies, template=ChatTemplate(QWEN3.read_text(encoding="utf-8")))


def test_a_thought_is_a_block_before_the_answer():
    words = "<think>\nTwo and two\nmake four.\n</think>\n\nFour."
    with anthropic_client_of(thinker(words, words)) as client:
        whole = client.messages.create(**ASK)
        with client.messages.stream(**ASK) as stream:
            events = list(stream)
            streamed = stream.get_final_message()
    MessagesReply.model_validate(whole.to_dict())
    assert blocks_of(whole) == [
        {"type": "thinking", "thinking": "Two and two\nmake four.", "signature": ""},
        {"type": "text", "text": "Four."},
    ]
    assert blocks_of(streamed) == blocks_of(whole)
    assert streamed.usage == whole.usage
    assert whole.usage.output_tokens_details.thinking_tokens == len("<\nTwo and two\nmake four.\n>")
    kinds = [event.type for event in events]
    assert kinds.count("thinking") > 5, "piece by piece"
    assert kinds.index("thinking") < kinds.index("signature") < kinds.index("text")


def test_thinking_can_be_turned_off_and_thoughts_go_back():
    call = '<think>\nThe clock.\n</think>\n\n<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    model = thinker(call, "Noon.")
    ask = {**ASK, "tools": [{"name": "now", "input_schema": {}}]}
    with anthropic_client_of(model) as client:
        first = client.messages.create(**ask)
        result = {"type": "tool_result", "tool_use_id": first.content[-1].id, "content": "12:00"}
        turns = [
            {"role": "assistant", "content": first.content},
            {"role": "user", "content": [result]},
        ]
        messages = [*ASK["messages"], *turns]
        second = client.messages.create(**{**ask, "messages": messages, "thinking": {"type": "disabled"}})
    assert [block.type for block in first.content] == ["thinking", "tool_use"]
    assert blocks_of(second) == [{"type": "text", "text": "Noon."}]
    one, two = (model.tokenizer.decode(list(ids)) for ids in model.engine.prompts)
    assert two.startswith(one + call), "the same turn again, thought and all"
    assert two.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


WORDS = st.sampled_from(["a", "b ", "\n", "\n\n", " c", ""])
CALLS = st.dictionaries(st.sampled_from("xyz"), st.integers(), max_size=2)


@st.composite
def replies(draw):
    """Events as a reply may have them; perhaps its last call was cut."""
    events, calls = [], 0
    for kind in draw(st.lists(st.sampled_from(["content", "reasoning", "call"]), max_size=8)):
        if kind == "content":
            events.append(Content(draw(WORDS)))
        elif kind == "reasoning":
            events.append(Reasoning(draw(WORDS)))
        else:
            call = ToolCall("f", draw(CALLS), f"call_{calls}")
            text = json.dumps(call.arguments)
            cut = draw(st.integers(0, len(text)))
            events += [CallStarted(calls, call.id, "f"), ArgumentText(calls, text[:cut])]
            events += [ArgumentText(calls, text[cut:]), CallFinished(calls, call)]
            calls += 1
    if draw(st.booleans()):
        events += [CallStarted(calls, "call_cut", "f"), ArgumentText(calls, "{}")]
    return events


def assemble(payloads: list[dict]) -> list[dict]:
    """Blocks put together as clients do it, without one that never stops. Fails where events are out of
    order."""
    blocks, texts, is_open = [], [], False
    for payload in payloads:
        match payload["type"]:
            case "content_block_start":
                assert not is_open
                assert payload["index"] == len(blocks)
                blocks.append(dict(payload["content_block"]))
                texts, is_open = [], True
            case "content_block_delta":
                assert is_open
                assert payload["index"] == len(blocks) - 1
                delta = dict(payload["delta"])
                kind = delta.pop("type")
                block = blocks[-1]
                if kind == "input_json_delta":
                    texts.append(delta["partial_json"])
                elif kind == "signature_delta":
                    assert block["type"] == "thinking"
                    block["signature"] = delta["signature"]
                else:
                    assert kind == f"{block['type']}_delta"
                    assert delta[block["type"]], "no empty deltas"
                    block[block["type"]] += delta[block["type"]]
            case "content_block_stop":
                assert is_open
                assert payload["index"] == len(blocks) - 1
                if blocks[-1]["type"] == "tool_use":
                    blocks[-1]["input"] = json.loads("".join(texts))
                is_open = False
    return blocks[:-1] if is_open and blocks[-1]["type"] == "tool_use" else blocks


@given(replies())
def test_blocks_are_the_same_in_pieces_and_as_a_whole(events):
    writer = BlockWriter()
    payloads = [payload for event in events for payload in writer.write(event)] + list(writer.close())
    blocks = assemble(payloads)
    assert sum(payload["type"] == "content_block_stop" for payload in payloads) == len(blocks)
    assert blocks == whole_blocks(events)
    assert all(block["text"].strip() for block in blocks if block["type"] == "text")
    for kind, key in ((Content, "text"), (Reasoning, "thinking")):
        said = "".join(event.text for event in events if isinstance(event, kind))
        assert "".join("".join(block.get(key, "") for block in blocks).split()) == "".join(said.split())


# Counting


def test_counting_asks_the_tokenizer_only():
    model = ScriptedModel("ok", max_context=2048)
    ask = {"model": "m", "messages": ASK["messages"], "system": "You are S.", "tools": [SQUARE]}
    with anthropic_client_of(model) as client:
        count = client.messages.count_tokens(**ask).input_tokens
        assert not model.engine.prompts
        assert client.messages.create(**ask, max_tokens=10).usage.input_tokens == count
        long = client.messages.count_tokens(model="m", messages=[{"role": "user", "content": "x" * 9000}])
    assert long.input_tokens > 9000
    assert len(model.engine.prompts) == 1


# Errors in a stream


@pytest.mark.parametrize(
    ("error", "kind"), [(ValueError("a secret"), "api_error"), (EngineClosed("closing"), "overloaded_error")]
)
def test_an_error_in_mid_stream_is_an_event(error, kind):
    model = ScriptedModel("a long reply")
    stream_tokens = model.stream_tokens

    async def break_off(*args, **options):
        count = 0
        async for chunk in stream_tokens(*args, **options):
            yield chunk
            count += 1
            if count == 3:
                raise error

    model.stream_tokens = break_off
    with serve(model) as url:
        events = raw_events(url, ASK)
    assert events[0][0] == "message_start"
    name, data = events[-1]
    assert name == "error"
    assert data.keys() == {"type", "error"}
    assert data["error"].keys() == {"type", "message"}
    assert data["error"]["type"] == kind
    assert "secret" not in str(data)


def test_the_client_raises_what_a_stream_reports():
    model = ScriptedModel()
    model.engine.submit = None
    with anthropic_client_of(model) as client:
        with pytest.raises(anthropic.APIStatusError, match="traceback"), client.messages.stream(**ASK) as s:
            s.get_final_message()
        with pytest.raises(anthropic.InternalServerError, match="traceback"):
            client.messages.create(**ASK)


@pytest.mark.parametrize("stream", [False, True])
def test_a_reply_that_the_server_cut_is_no_reply(stream):
    model = ScriptedModel("abc")
    submit = model.engine.submit

    def cut(ids, sampling, report):
        return submit(ids, sampling, lambda sampled: report(replace(sampled, finish_reason="abort")))

    model.engine.submit = cut
    with serve(model) as url:
        if stream:
            assert raw_events(url, ASK)[-1][1]["error"]["type"] == "overloaded_error"
        else:
            response = httpx.post(f"{url}/v1/messages", json=ASK)
            assert response.status_code == 503
            assert response.json()["error"]["type"] == "overloaded_error"
