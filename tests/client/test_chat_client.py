"""The client against real sockets: Lathe's own server, and servers that speak as others do, or badly."""

import asyncio
import json
import threading

import pytest
from serving import serve, wait_until
from upstreams import event, upstream_that

from lathe import LLM
from lathe.client import ChatClient
from lathe.engine.engine import EngineConfig
from lathe.errors import InvalidRequest, ModelNotFound, PromptTooLong, UpstreamError, UserError
from lathe.testing import ScriptedModel
from lathe.text.tool_calls import ArgumentText, CallFinished, CallStarted, Content, render
from lathe.types import Grammar, Message, SamplingParams, Tool, ToolCall, Trajectory

READ = Tool("read", "Reads a file.", {"type": "object", "properties": {"path": {"type": "string"}}})
ASK = Trajectory((Message("system", "Be brief."), Message("user", "Read a.py.")), (READ,))
CALL = "I look. \u2028\n" + render([ToolCall("read", {"path": "a.py"})])


def said(text=None, finish_reason=None, calls=None, **more) -> bytes:
    delta = {"content": text} if text is not None else {"tool_calls": calls} if calls else {}
    return event({"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason, **more}]})


def call_piece(arguments, **more):
    name = more.pop("name", None)
    function = {"arguments": arguments} | ({"name": name} if name else {})
    return {**more, "function": function}


async def talk(model, num_turns=2, sampling=None, on_event=None) -> Trajectory:
    """Turns with a tool, as the agent has them: each reply is answered, by a result where it calls."""
    trajectory = ASK
    for turn in range(num_turns):
        completion = await model.complete(trajectory, sampling, on_event=on_event)
        trajectory = trajectory.extend(completion, sampling)
        if turn < num_turns - 1:
            calls = completion.message.tool_calls
            results = [Message("tool", "print('ü')", tool_call_id=call.id, name=call.name) for call in calls]
            trajectory = trajectory.add(*(results or [Message("user", "Go on.")]))
    return trajectory


async def test_over_lathe_the_trajectory_is_the_servers_tokens():
    model = ScriptedModel(CALL, "It prints ü.")
    over, here = [], []
    with serve(model) as url:
        async with ChatClient(url) as client:
            trajectory = await talk(client, on_event=over.append)
            assert (client.model, client.kind, client.max_context) == ("scripted", "lathe", 32_768)
    first, second = model.engine.prompts
    assert second[: len(first)] == first and trajectory.token_ids[: len(second)] == second
    local = await talk(ScriptedModel(CALL, "It prints ü."), on_event=here.append)
    assert trajectory.token_ids == local.token_ids and trajectory.loss_mask == local.loss_mask
    assert [segment.finish_reason for segment in trajectory.segments] == ["tool_calls", "stop"]
    call, local_call = (each.messages[2].tool_calls[0] for each in (trajectory, local))
    assert (call.name, call.arguments) == (local_call.name, local_call.arguments)
    assert (
        trajectory.messages[2].content == local.messages[2].content
        and "\u2028" in trajectory.messages[2].content
    )

    def summary(events):
        texts = "".join(each.text for each in events if isinstance(each, Content))
        arguments = "".join(each.text for each in events if isinstance(each, ArgumentText))
        return (
            texts,
            arguments,
            [type(each) for each in events if isinstance(each, (CallStarted, CallFinished))],
        )

    assert summary(over) == summary(here)


@pytest.mark.slow  # random weights show the same: tests/server/test_known_tokens.py
@pytest.mark.timeout(300)
async def test_smollm2_goes_on_from_its_exact_tokens():
    llm = LLM("smollm2", engine_config=EngineConfig(kv_memory_bytes=2**29))
    prompts = []
    submit = llm.engine.submit
    llm.engine.submit = lambda prompt, *rest, **more: (prompts.append(prompt), submit(prompt, *rest, **more))[
        1
    ]
    with serve(llm) as url:
        async with ChatClient(f"{url}/v1", "smollm2") as client:
            trajectory = await talk(client, 3, SamplingParams(temperature=1.5, seed=3, max_tokens=24))
    assert len(prompts) == 3 == len(trajectory.segments)
    for segment, prompt in zip(trajectory.segments, prompts, strict=True):
        assert trajectory.token_ids[: segment.start] == prompt
    assert sum(trajectory.loss_mask) == sum(s.stop - s.start for s in trajectory.segments)
    sampled = [p for p, mine in zip(trajectory.logprobs, trajectory.loss_mask, strict=True) if mine]
    assert all(-50 < logprob <= 0 for logprob in sampled) and any(logprob < 0 for logprob in sampled)


async def test_usage_and_cache_are_counted():
    model = ScriptedModel(CALL, "Yes.", prefix_cache=True)
    with serve(model) as url:
        async with ChatClient(url) as client:
            trajectory = ASK
            first = await client.complete(trajectory)
            trajectory = trajectory.extend(first).add(Message("tool", "x", tool_call_id="1"))
            second = await client.complete(trajectory)
    assert first.num_cached_tokens == 0
    assert second.num_cached_tokens == len(first.prompt_token_ids) + len(first.token_ids)
    assert second.num_reply_tokens == len(second.token_ids) == len("Yes.") + 1


# What goes wrong


async def test_wrong_keys_models_and_addresses_are_named():
    with serve(ScriptedModel("Hi."), api_key="secret") as url:
        async with ChatClient(url, "scripted", "wrong") as client:
            with pytest.raises(UserError, match="refuses the key"):
                await client.complete(ASK)
        async with ChatClient(url, "scripted", "secret") as client:
            assert (await client.complete(ASK)).message.content == "Hi."
    with pytest.raises(UserError, match="begin it with http"):
        ChatClient("localhost:8000")
    with upstream_that(
        lambda body, handler: handler.answer(404, b'{"error": {"message": "no such model"}}')
    ) as url:
        async with ChatClient(url, "nope") as client:
            with pytest.raises(ModelNotFound, match=r"'nope'.*no such model"):
                await client.complete(ASK)


async def test_a_prompt_that_is_too_long_says_so_in_numbers():
    with serve(ScriptedModel("Hi.", max_context=100)) as url:
        async with ChatClient(url) as client:
            with pytest.raises(PromptTooLong) as caught:
                await client.complete(ASK)
    assert caught.value.max_context == 100 and caught.value.num_prompt_tokens > 100


@pytest.mark.parametrize(
    ("body", "numbers"),
    [
        (
            {"message": "This model's maximum context length is 8192 tokens. You requested 9000 tokens."},
            (9000, 8192),
        ),
        ({"type": "exceed_context_size_error", "n_prompt_tokens": 700, "n_ctx": 512}, (700, 512)),
        ({"code": "context_length_exceeded", "message": "Too long."}, (0, 0)),
    ],
)
async def test_other_servers_words_for_too_long(body, numbers):
    with upstream_that(lambda _, handler: handler.answer(400, json.dumps({"error": body}).encode())) as url:
        async with ChatClient(url, "other") as client:
            with pytest.raises(PromptTooLong) as caught:
                await client.complete(ASK)
    assert (caught.value.num_prompt_tokens, caught.value.max_context) == numbers


class Moody:
    """Refuses with each of these statuses, then answers."""

    def __init__(self, *statuses: int):
        self.statuses = list(statuses)
        self.num_asked = 0

    def __call__(self, body, handler):
        self.num_asked += 1
        if self.statuses:
            handler.answer(self.statuses.pop(0), b'{"error": {"message": "not now"}}')
        else:
            handler.stream(said("Hi."), said(finish_reason="stop"))  # and no [DONE]


async def test_what_may_pass_is_tried_again():
    server = Moody(429, 500, 503)
    with upstream_that(server) as url:
        async with ChatClient(url, "other", first_wait_s=0.001) as client:
            assert (await client.complete(ASK)).message.content == "Hi."
    assert server.num_asked == 4


async def test_what_does_not_pass_is_an_error_after_so_many_tries():
    server = Moody(*[500] * 10)
    with upstream_that(server) as url:
        async with ChatClient(url, "other", first_wait_s=0.001, max_retries=2) as client:
            with pytest.raises(UpstreamError, match="not now"):
                await client.complete(ASK)
    assert server.num_asked == 3


async def test_what_no_retry_mends_is_not_tried_again():
    server = Moody(400, 400)
    with upstream_that(server) as url:
        async with ChatClient(url, "other") as client:
            with pytest.raises(InvalidRequest, match="not now"):
                await client.complete(ASK)
    assert server.num_asked == 1


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_server_that_was_never_here_is_said_to_be_missing_at_once(host):
    with upstream_that(Moody()) as url:
        pass
    # With these pauses, a second attempt would outlast the test.
    async with ChatClient(url.replace("127.0.0.1", host), "other", first_wait_s=1000) as client:
        with pytest.raises(UpstreamError, match=r"can't be reached .*lathe serve"):
            await client.complete(ASK)


async def test_a_server_that_went_away_is_asked_again():
    with upstream_that(Moody()) as url:
        client = ChatClient(url, "other", first_wait_s=0.001, max_retries=2)
        assert (await client.complete(ASK)).message.content == "Hi."
    async with client:
        with pytest.raises(UpstreamError, match=r"can't be reached .*Is it running"):
            await client.complete(ASK)


@pytest.mark.parametrize(
    ("events", "words"),
    [
        ((said("Half a"),), "before the reply was complete"),
        ((said("Half a"), event({"error": {"message": "the GPU fell off"}})), "the GPU fell off"),
        ((b"data: <html>\n\n",), "no JSON"),
        ((b"data: 3\n\n",), "no JSON object"),
        ((event({"choices": [{"delta": {"tool_calls": 7}}]}),), "can't be understood"),
    ],
)
async def test_a_stream_that_breaks_is_an_error_and_not_tried_again(events, words):
    asked = []

    def speak(body, handler):
        asked.append(body)
        handler.stream(*events)

    with upstream_that(speak) as url:
        async with ChatClient(url, "other") as client:
            with pytest.raises(UpstreamError, match=words):
                await client.complete(ASK)
    assert len(asked) == 1


async def test_a_server_that_says_nothing_is_not_asked_for_ever():
    asked, let_go = [], threading.Event()

    def speak(body, handler):
        asked.append(body)
        let_go.wait(20)

    with upstream_that(speak) as url:
        async with ChatClient(url, "other", timeout_s=1.0) as client:
            with pytest.raises(UpstreamError, match=r"said nothing for 1 s"):
                await client.complete(ASK)
        let_go.set()
    assert len(asked) == 1


async def test_a_cancelled_request_leaves_its_server():
    model = ScriptedModel("never " * 1000, delay_s=0.01)
    with serve(model) as url:
        async with ChatClient(url) as client:
            heard = asyncio.Event()
            asking = asyncio.create_task(client.complete(ASK, on_event=lambda _: heard.set()))
            await heard.wait()
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            assert await asyncio.to_thread(wait_until, lambda: model.engine.num_open == 0)


# Servers that only know words


async def complete_with(*events, trajectory=ASK, sampling=None, on_event=None):
    bodies = []

    def speak(body, handler):
        bodies.append(body)
        handler.stream(*events)

    with upstream_that(speak) as url:
        async with ChatClient(url, "other") as client:
            completion = await client.complete(trajectory, sampling, on_event=on_event)
    return completion, bodies[0]


async def test_words_alone_make_no_tokens():
    usage = {"prompt_tokens": 40, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 32}}
    completion, body = await complete_with(
        said("Hi."), said(finish_reason="stop"), event({"choices": [], "usage": usage}), b"data: [DONE]\n\n"
    )
    assert not completion.is_exact and completion.token_ids == completion.prompt_token_ids == ()
    assert (completion.num_prompt_tokens, completion.num_reply_tokens) == (40, 5)
    assert completion.num_cached_tokens == 32
    trajectory = ASK.extend(completion)
    assert trajectory.messages[-1] == Message("assistant", "Hi.") and trajectory.token_ids == ()
    assert "return_token_ids" not in body and "known_token_ids" not in body


async def test_what_is_sent():
    talk = ASK.add(
        Message("assistant", "", (ToolCall("read", {"path": "ü"}, "c1"),), reasoning="Hm."),
        Message("tool", "text", tool_call_id="c1", name="read"),
    )
    schema = Grammar("json_schema", '{"type": "object"}')
    sampling = SamplingParams(temperature=0.7, top_k=20, max_tokens=9, stop=("x",), grammar=schema)
    _, body = await complete_with(said("{}"), said(finish_reason="stop"), trajectory=talk, sampling=sampling)
    assert [turn["role"] for turn in body["messages"]] == ["system", "user", "assistant", "tool"]
    call = body["messages"][2]["tool_calls"][0]
    assert json.loads(call["function"]["arguments"]) == {"path": "ü"} and call["id"] == "c1"
    assert body["messages"][2]["reasoning_content"] == "Hm."
    assert body["messages"][3] == {"role": "tool", "content": "text", "tool_call_id": "c1", "name": "read"}
    assert body["tools"][0]["function"]["parameters"] == READ.parameters
    assert (body["temperature"], body["top_k"], body["max_tokens"], body["stop"]) == (0.7, 20, 9, ["x"])
    assert "min_p" not in body and body["response_format"]["json_schema"]["schema"] == {"type": "object"}


NAMED = {"id": "c", "name": "read"}


@pytest.mark.parametrize(
    "pieces",
    [
        [call_piece("", **NAMED, index=0), call_piece('{"path"', index=0), call_piece(': "a"}', index=0)],
        [call_piece("", **NAMED), call_piece('{"path": "a"}')],  # no index
        [call_piece('{"path": ', **NAMED, index=0), call_piece('"a"}', **NAMED, index=0)],
        [call_piece('{"path": "a"}', name="read", index=0)],  # no id
    ],
)
async def test_calls_in_the_ways_that_servers_write_them(pieces):
    events = []
    completion, _ = await complete_with(
        *[said(calls=[piece]) for piece in pieces], said(finish_reason="stop"), on_event=events.append
    )
    (call,) = completion.message.tool_calls
    assert (call.name, call.arguments, completion.finish_reason) == ("read", {"path": "a"}, "tool_calls")
    assert call.id
    assert [type(each) for each in events if not isinstance(each, ArgumentText)] == [
        CallStarted,
        CallFinished,
    ]


async def test_a_call_that_a_limit_cut_is_none():
    pieces = [
        call_piece('{"path": "a"}', id="1", index=0, name="read"),
        call_piece('{"pa', id="2", index=1, name="read"),
    ]
    completion, _ = await complete_with(
        *[said(calls=[each]) for each in pieces], said(finish_reason="length")
    )
    assert [call.id for call in completion.message.tool_calls] == ["1"]
    assert completion.finish_reason == "length"


async def test_arguments_that_are_no_json_are_shown_as_they_are():
    piece = call_piece('{"path": ', id="1", index=0, name="read")
    completion, _ = await complete_with(said(calls=[piece]), said(finish_reason="tool_calls"))
    assert completion.message.tool_calls[0].arguments == {"arguments": '{"path": '}


async def test_a_call_that_leaked_into_the_text_is_found():
    text = "I read it.\n<function=read>\n<parameter=path>\na.py\n</parameter>\n</function>\n</tool_call>"
    completion, _ = await complete_with(said(text), said(finish_reason="stop"))
    assert completion.message.content.strip() == "I read it."
    (call,) = completion.message.tool_calls
    assert (call.name, call.arguments, completion.finish_reason) == ("read", {"path": "a.py"}, "tool_calls")
    quoted, _ = await complete_with(said("Write `<function=read>` to call."), said(finish_reason="stop"))
    assert quoted.message.tool_calls == () and quoted.message.content == "Write `<function=read>` to call."


async def test_vllm_gives_ids():
    def speak(body, handler):
        assert body["return_token_ids"] and body["logprobs"]
        logprobs = {"content": [{"token": "Hi", "logprob": -0.5}]}
        handler.stream(
            event({"prompt_token_ids": [1, 2], "choices": [{"index": 0, "delta": {"role": "assistant"}}]}),
            said("Hi", token_ids=[7], logprobs=logprobs),
            said(
                finish_reason="stop", token_ids=[9], logprobs={"content": [{"token": "", "logprob": -0.25}]}
            ),
        )

    with upstream_that(speak, models={"data": [{"id": "m", "owned_by": "vllm", "max_model_len": 64}]}) as url:
        async with ChatClient(url) as client:
            completion = await client.complete(ASK)
    assert completion.is_exact and completion.prompt_token_ids == (1, 2) and completion.token_ids == (7, 9)
    assert [token.logprob for token in completion.logprobs] == [-0.5, -0.25]
    assert client.max_context == 64


async def test_a_server_that_does_not_stream():
    reply = {"choices": [{"message": {"role": "assistant", "content": "Hi."}, "finish_reason": "stop"}]}
    with upstream_that(lambda _, handler: handler.answer(200, json.dumps(reply).encode())) as url:
        async with ChatClient(url, "other") as client:
            assert (await client.complete(ASK)).message.content == "Hi."
