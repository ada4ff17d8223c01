"""Replies of the responses dialect as OpenAI's own client sees them, over a socket. Words are scripted."""

import json
import threading

import httpx
import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter
from serving import client_of, serve, wait_until

from lathe.engine.llm import Chunk
from lathe.server.responses import response_json
from lathe.server.responses_events import ResponseWriter
from lathe.server.responses_schema import ResponseObject, ResponsesRequest
from lathe.server.service import Service
from lathe.testing import ScriptedModel
from lathe.text.tool_call_events import ArgumentText, CallFinished, CallStarted, Content, Reasoning
from lathe.types import Completion, Message, SamplingParams, TokenLogprob, ToolCall, Trajectory

ASK = {"model": "any-name", "input": "Hi."}
SQUARE = {
    "type": "function",
    "name": "square",
    "description": "Squares a number.",
    "parameters": {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]},
    "strict": False,
}
EVENT = TypeAdapter(ResponseStreamEvent)


def call_text(x: object, name: str = "square") -> str:
    return f"<tool_call>\n<function={name}>\n<parameter=x>\n{x}\n</parameter>\n</function>\n</tool_call>"


def raw_events(url: str, **fields) -> list[dict]:
    """The stream's events, once it is sure that each has OpenAI's form, a name and the next number."""
    events = []
    with httpx.stream("POST", f"{url}/v1/responses", json={**ASK, **fields, "stream": True}) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        text = response.read().decode()
    for block in text.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        events.append(event)
    check(events)
    return events


def check(events: list[dict]) -> None:
    for number, event in enumerate(events):
        EVENT.validate_python(event)
        assert event["sequence_number"] == number
        if "response" in event:
            check_response(event["response"])


def check_response(response: dict) -> None:
    Response.model_validate(response)
    ResponseObject.model_validate(response)
    assert response.keys() == ResponseObject.model_fields.keys()


def kinds(events) -> list[str]:
    """The events' types without "response.", and a run of deltas as one."""
    names = [event["type"].removeprefix("response.") for event in events]
    return [name for name, before in zip(names, [None, *names], strict=False) if name != before]


TEXT_ITEM = [
    "output_item.added",
    "content_part.added",
    "output_text.delta",
    "output_text.done",
    "content_part.done",
    "output_item.done",
]
CALL_ITEM = [
    "output_item.added",
    "function_call_arguments.delta",
    "function_call_arguments.done",
    "output_item.done",
]
THOUGHT_ITEM = [name.replace("output_text", "reasoning_text") for name in TEXT_ITEM]


# Whole replies


def test_a_whole_reply():
    text = "Grüße, 世界! 🎈"
    with client_of(ScriptedModel(text)) as client:
        reply = client.responses.create(**ASK, instructions="Be kind.", metadata={"a": "b"}, store=True)
    check_response(reply.to_dict())
    assert reply.id.startswith("resp_")
    assert reply.model == "scripted", "the served model's id, whatever was asked for"
    assert (reply.status, reply.error, reply.incomplete_details) == ("completed", None, None)
    assert reply.output_text == text
    (message,) = reply.output
    assert (message.type, message.role, message.status) == ("message", "assistant", "completed")
    assert message.id.startswith("msg_")
    assert message.content[0].annotations == []
    assert reply.usage.output_tokens == len(text.encode()) + 1
    assert reply.usage.total_tokens == reply.usage.input_tokens + reply.usage.output_tokens
    assert reply.usage.input_tokens_details.cached_tokens == 0
    assert reply.usage.output_tokens_details.reasoning_tokens == 0
    assert (reply.instructions, reply.metadata) == ("Be kind.", {"a": "b"})
    assert reply.to_dict()["store"] is False, "nothing is stored, and the reply says so"
    assert reply.completed_at >= reply.created_at


def test_calls_are_items_with_json_arguments():
    text = f"Both now.\n{call_text(1024)}\n{call_text(7)}"
    with client_of(ScriptedModel(text)) as client:
        reply = client.responses.create(**ASK, tools=[SQUARE])
    check_response(reply.to_dict())
    message, first, second = reply.output
    assert message.content[0].text.strip() == "Both now."
    assert [json.loads(call.arguments) for call in (first, second)] == [{"x": 1024}, {"x": 7}]
    assert (first.type, first.name, first.status) == ("function_call", "square", "completed")
    assert first.id.startswith("fc_")
    assert first.call_id.startswith("call_")
    assert len({first.id, first.call_id, second.id, second.call_id}) == 4
    assert reply.status == "completed"


def test_a_reply_without_a_word_has_an_empty_message():
    with client_of(ScriptedModel(None, "  ")) as client:
        empty, blank = (client.responses.create(**ASK) for _ in range(2))
    assert (empty.output_text, empty.output[0].type, empty.status) == ("", "message", "completed")
    assert blank.output_text == "  "


@pytest.mark.parametrize("stream", [False, True])
def test_the_limit_is_told(stream):
    with client_of(ScriptedModel("abcdef")) as client:
        reply = client.responses.create(**ASK, max_output_tokens=3, stream=stream)
        if stream:
            events = [event.to_dict() for event in reply]
            check(events)
            assert kinds(events)[-1] == "incomplete"
            reply = Response.model_validate(events[-1]["response"])
    assert (reply.output_text, reply.status) == ("abc", "incomplete")
    assert reply.output[0].status == "incomplete"
    assert reply.incomplete_details.reason == "max_output_tokens"
    assert (reply.max_output_tokens, reply.usage.output_tokens) == (3, 3)
    assert reply.completed_at is None


@pytest.mark.parametrize("max_output_tokens", [20, 45, 60, 70, 100, 120])
def test_a_call_that_was_cut_is_no_item(max_output_tokens):
    script = call_text(1) + call_text(123456789)
    model = ScriptedModel(script, script)
    ids = model.tokenizer.encode(script, allow_special=True)
    num_whole = model.tokenizer.decode(ids[:max_output_tokens]).count("</function>")
    with serve(model) as url:
        fields = {"tools": [SQUARE], "max_output_tokens": max_output_tokens}
        events = raw_events(url, **fields)
        whole = httpx.post(f"{url}/v1/responses", json={**ASK, **fields}).json()
    check_response(whole)
    last = events[-1]["response"]
    assert events[-1]["type"] == "response.incomplete"
    for response in (last, whole):
        calls = [item for item in response["output"] if item["type"] == "function_call"]
        assert [json.loads(call["arguments"]) for call in calls] == [{"x": 1}] * num_whole
        assert response["status"] == "incomplete"
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == last["output"]


# Streamed replies


def test_the_events_of_a_text():
    with serve(ScriptedModel("Grüße 🎈")) as url:
        events = raw_events(url)
    assert kinds(events) == ["created", "in_progress", *TEXT_ITEM, "completed"]
    deltas = [event["delta"] for event in events if event["type"] == "response.output_text.delta"]
    assert "".join(deltas) == "Grüße 🎈"
    assert len(deltas) > 5, "piece by piece"
    created, added, done, last = events[0], events[2], events[-2], events[-1]
    assert (created["response"]["status"], created["response"]["output"]) == ("in_progress", [])
    assert (added["item"]["status"], added["item"]["content"]) == ("in_progress", [])
    assert done["item"] == last["response"]["output"][0]
    assert len({event["item_id"] for event in events if "item_id" in event}) == 1
    assert len({event["response"]["id"] for event in events if "response" in event}) == 1


def test_the_events_of_text_and_calls():
    with serve(ScriptedModel(f"Now.\n{call_text(1024)}\n{call_text(7)}\nDone?")) as url:
        events = raw_events(url, tools=[SQUARE])
    expected = ["created", "in_progress", *TEXT_ITEM, *CALL_ITEM, *CALL_ITEM, *TEXT_ITEM, "completed"]
    assert kinds(events) == expected
    added = [event for event in events if event["type"] == "response.output_item.added"]
    assert [event["output_index"] for event in added] == [0, 1, 2, 3]
    assert [event["item"].get("arguments") for event in added] == [None, "", "", None]
    for place in (1, 2):
        of_call = [event for event in events if event.get("output_index") == place]
        pieces = [event["delta"] for event in of_call if "delta" in event]
        done = next(event for event in of_call if event["type"].endswith("arguments.done"))
        assert "".join(pieces) == done["arguments"] == of_call[-1]["item"]["arguments"]


def test_whole_and_streamed_say_the_same():
    text = f"Now.\n{call_text(1024)}\nDone."
    with serve(ScriptedModel(text, text)) as url:
        whole = httpx.post(f"{url}/v1/responses", json={**ASK, "tools": [SQUARE]}).json()
        streamed = raw_events(url, tools=[SQUARE])[-1]["response"]

    def without_ids(value):
        if isinstance(value, dict):
            varying = ("id", "call_id", "created_at", "completed_at")
            return {key: without_ids(held) for key, held in value.items() if key not in varying}
        return [without_ids(held) for held in value] if isinstance(value, list) else value

    assert without_ids(whole) == without_ids(streamed)


def test_openais_stream_helper_follows_the_events():
    with (
        client_of(ScriptedModel(f"Now.\n{call_text(1024)}")) as client,
        client.responses.stream(**ASK, tools=[SQUARE]) as stream,
    ):
        snapshots = [event.snapshot for event in stream if event.type.endswith("arguments.delta")]
        final = stream.get_final_response()
    assert json.loads(snapshots[-1]) == {"x": 1024}
    assert final.output_text.strip() == "Now."
    assert json.loads(final.output[1].arguments) == {"x": 1024}


async def test_openais_async_client():
    with serve(ScriptedModel("one", "two")) as url:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client:
            assert (await client.responses.create(**ASK)).output_text == "one"
            async with client.responses.stream(**ASK) as stream:
                assert (await stream.get_final_response()).output_text == "two"


def test_a_long_argument_arrives_in_pieces():
    text = "line of text\n" * 40
    with serve(ScriptedModel(call_text(text, "write"))) as url:
        events = raw_events(url, tools=[{"type": "function", "name": "write"}])
    pieces = [event["delta"] for event in events if event["type"].endswith("arguments.delta")]
    assert len(pieces) > 20
    assert json.loads("".join(pieces)) == {"x": text}


def test_logprobs_come_when_they_are_included():
    include = {"include": ["message.output_text.logprobs"]}
    with client_of(ScriptedModel(*["né"] * 4)) as client:
        none = client.responses.create(**ASK).output[0].content[0].logprobs
        some = client.responses.create(**ASK, **include).output[0].content[0].logprobs
        top = client.responses.create(**ASK, top_logprobs=3).output[0].content[0].logprobs
        events = [event.to_dict() for event in client.responses.create(**ASK, **include, stream=True)]
    check(events)
    assert none == []
    assert bytes(byte for entry in some for byte in entry.bytes).decode() == "né"
    assert [entry.token for entry in top[0].top_logprobs] == ["n"]
    deltas = [entry for event in events if "delta" in event for entry in event["logprobs"]]
    assert [entry["token"] for entry in deltas] == [entry.token for entry in some]


def test_logprobs_leave_out_the_calls():
    include = {"include": ["message.output_text.logprobs"], "tools": [SQUARE]}
    with client_of(ScriptedModel(f"né.\n\n{call_text(1)}\n\nFin.")) as client:
        first, _, last = client.responses.create(**ASK, **include).output
    for item in (first, last):
        (part,) = item.content
        assert bytes(byte for entry in part.logprobs for byte in entry.bytes).decode() == part.text


def test_an_error_in_mid_stream_is_response_failed():
    model = ScriptedModel("never")

    def submit(*_):
        raise RuntimeError("a secret")

    model.engine.submit = submit
    with serve(model) as url:
        events = raw_events(url)
        whole = httpx.post(f"{url}/v1/responses", json=ASK)
    assert kinds(events) == ["created", "in_progress", "failed"]
    assert events[-1]["response"]["error"]["code"] == "server_error"
    assert whole.status_code == 500
    assert whole.json()["error"].keys() == {"message", "type", "param", "code"}
    assert "secret" not in json.dumps(events) + whole.text


@pytest.mark.parametrize("stream", [False, True])
def test_a_server_that_stops_fails_the_reply_with_what_it_has(stream):
    model = ScriptedModel("a" * 400, delay_s=0.01)
    with serve(model) as url:
        timer = threading.Timer(0.5, model.engine.abort_all)
        timer.start()
        if stream:
            response = raw_events(url)[-1]["response"]
        else:
            response = httpx.post(f"{url}/v1/responses", json=ASK, timeout=20).json()
        timer.join()
    check_response(response)
    assert (response["status"], response["error"]["code"]) == ("failed", "server_error")
    assert 0 < len(response["output"][0]["content"][0]["text"]) < 400


# What a scripted model can't say


@pytest.fixture
def write():
    """Writes a reply from events made by hand, one token each; returns OpenAI's events."""

    async def write(*events, finish_reason="stop", **options):
        model = ScriptedModel()
        trajectory = Trajectory((Message("user", "Hi."),))
        turn = await Service(model).prepare("responses", trajectory, SamplingParams())
        response = response_json(ResponsesRequest(input="Hi."), turn, "scripted")
        writer = ResponseWriter(response, turn, model.tokenizer, **options)
        written = list(writer.begin())
        for event in events:
            written += writer.feed(Chunk(0, (event,), (TokenLogprob(65, 0.0),)))
        completion = Completion(
            Message("assistant"),
            (1,) * 10,
            (2,) * len(events),
            (),
            finish_reason,
            num_cached_tokens=4,
            num_reasoning_tokens=sum(isinstance(event, Reasoning) for event in events),
        )
        written += writer.feed(Chunk(0, (), (), completion))
        check(written)
        assert written[-1]["response"] == writer.response
        return written

    return write


async def test_reasoning_is_an_item_of_its_own(write):
    events = await write(Reasoning("Let me "), Reasoning("think."), Content("\n\n"), Content("42"))
    assert kinds(events) == ["created", "in_progress", *THOUGHT_ITEM, *TEXT_ITEM, "completed"]
    thought, message = events[-1]["response"]["output"]
    assert thought["content"] == [{"type": "reasoning_text", "text": "Let me think."}]
    assert (thought["summary"], thought["encrypted_content"]) == ([], None)
    assert message["content"][0]["text"] == "\n\n42"
    usage = events[-1]["response"]["usage"]
    assert usage["output_tokens_details"] == {"reasoning_tokens": 2}
    assert usage["input_tokens_details"]["cached_tokens"] == 4


async def test_reasoning_that_was_cut_is_incomplete_and_alone(write):
    events = await write(Reasoning("Let me"), finish_reason="length")
    (thought,) = events[-1]["response"]["output"]
    assert (thought["type"], thought["status"]) == ("reasoning", "incomplete")
    assert events[-1]["type"] == "response.incomplete"


async def test_reasoning_before_a_call(write):
    call = ToolCall("f", {}, "call_1")
    events = await write(
        Reasoning("Hm."),
        Content("\n"),
        CallStarted(0, "call_1", "f"),
        ArgumentText(0, "{}"),
        CallFinished(0, call),
        Content("\n"),
        finish_reason="tool_calls",
    )
    assert kinds(events) == ["created", "in_progress", *THOUGHT_ITEM, *CALL_ITEM, "completed"]


async def test_a_call_that_the_model_never_finished_fails_the_reply(write):
    events = await write(CallStarted(0, "call_1", "f"), ArgumentText(0, '{"a": 1}'), Content("Oh."))
    response = events[-1]["response"]
    assert response["status"] == "failed"
    assert "call of f is not complete" in response["error"]["message"]
    assert [item["type"] for item in response["output"]] == ["message"]


async def test_a_server_that_stops_says_so(write):
    events = await write(Content("half a"), finish_reason="abort")
    response = events[-1]["response"]
    assert events[-1]["type"] == "response.failed"
    assert response["error"]["code"] == "server_error"
    assert (response["output"][0]["content"][0]["text"], response["output"][0]["status"]) == (
        "half a",
        "incomplete",
    )


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_its_reply(stream):
    model = ScriptedModel("endless " * 2000, delay_s=0.005)
    with serve(model) as url, httpx.Client(base_url=url) as http:
        if stream:
            with http.stream("POST", "/v1/responses", json={**ASK, "stream": True}) as response:
                next(response.iter_lines())
                assert wait_until(lambda: model.engine.num_open == 1)
        else:
            with pytest.raises(httpx.ReadTimeout):
                http.post("/v1/responses", json=ASK, timeout=0.3)
        assert wait_until(lambda: model.engine.num_open == 0)
