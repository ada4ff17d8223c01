"""The chat dialect as OpenAI's own client sees it, over a socket. The model's words are scripted."""

import json

import pytest
from serving import client_of

from lathe.server.chat_schema import ChatCompletion
from lathe.testing import ScriptedModel
from lathe.types import SamplingParams

SQUARE = {
    "type": "function",
    "function": {
        "name": "square",
        "description": "Squares a number.",
        "parameters": {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]},
    },
}


def call_text(x: object, name: str = "square") -> str:
    return f"<tool_call>\n<function={name}>\n<parameter=x>\n{x}\n</parameter>\n</function>\n</tool_call>"


def prompt_of(model: ScriptedModel, position: int = -1) -> str:
    return model.tokenizer.decode(list(model.engine.prompts[position]))


def collect_calls(chunks) -> dict[int, dict]:
    """Calls put together as clients do it. Fails where a delta lacks what a client needs."""
    calls: dict[int, dict] = {}
    for chunk in chunks:
        for choice in chunk.choices:
            for delta in choice.delta.tool_calls or ():
                if delta.index not in calls:
                    assert delta.id
                    assert delta.type == "function"
                    calls[delta.index] = {"id": delta.id, "name": delta.function.name, "arguments": ""}
                else:
                    assert delta.id is None
                    assert delta.type is None
                    assert delta.function.name is None
                calls[delta.index]["arguments"] += delta.function.arguments
    return calls


# Whole replies


def test_a_whole_reply(ask):
    with client_of(ScriptedModel("Grüße, 世界! 🎈")) as client:
        reply = client.chat.completions.create(**ask)
    ChatCompletion.model_validate(reply.model_dump())
    assert reply.id.startswith("chatcmpl-")
    assert reply.object == "chat.completion"
    assert reply.model == "scripted", "the served model's id, whatever was asked for"
    assert reply.choices[0].message.content == "Grüße, 世界! 🎈"
    assert reply.choices[0].message.tool_calls is None
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage.prompt_tokens > 0
    assert reply.usage.completion_tokens == len("Grüße, 世界! 🎈".encode()) + 1
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert reply.usage.prompt_tokens_details.cached_tokens == 0


def test_a_call_comes_back_with_json_arguments_and_null_content(ask):
    with client_of(ScriptedModel(call_text(1024))) as client:
        choice = client.chat.completions.create(**ask, tools=[SQUARE]).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    (call,) = choice.message.tool_calls
    assert call.type == "function"
    assert call.id
    assert call.function.name == "square"
    assert json.loads(call.function.arguments) == {"x": 1024}


def test_prose_before_two_calls_is_kept(ask):
    with client_of(ScriptedModel(f"Both now.\n{call_text(1)}\n{call_text(2)}")) as client:
        choice = client.chat.completions.create(**ask, tools=[SQUARE]).choices[0]
    assert choice.message.content.strip() == "Both now."
    assert [json.loads(call.function.arguments) for call in choice.message.tool_calls] == [{"x": 1}, {"x": 2}]
    assert len({call.id for call in choice.message.tool_calls}) == 2


LEAKED = "I'll square it: <function=square><parameter=x>5</parameter>"


@pytest.mark.parametrize(
    ("text", "content", "x"),
    [
        (f"{LEAKED}</function>\n</tool_call>", "I'll square it:", 5),  # without <tool_call>, behind words
        (LEAKED, "I'll square it:", 5),  # and the closing tags are forgotten
        (LEAKED.removesuffix("</parameter>"), LEAKED.removesuffix("</parameter>"), None),  # not finished
    ],
)
def test_a_call_that_the_model_half_forgot(ask, text, content, x):
    with client_of(ScriptedModel(text, text)) as client:
        choice = client.chat.completions.create(**ask, tools=[SQUARE]).choices[0]
        chunks = list(client.chat.completions.create(**ask, tools=[SQUARE], stream=True))
    calls = choice.message.tool_calls or []
    assert [json.loads(call.function.arguments) for call in calls] == ([] if x is None else [{"x": x}])
    assert choice.message.content == content
    assert choice.finish_reason == chunks[-1].choices[0].finish_reason == ("tool_calls" if calls else "stop")
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == content
    for call in collect_calls(chunks).values():
        assert json.loads(call["arguments"]) in ({"x": 5}, {})


def test_n_replies_and_their_usage(ask):
    with client_of(ScriptedModel("one", "two", "three")) as client:
        reply = client.chat.completions.create(**ask, n=3)
        again = client.chat.completions.create(**ask)
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    assert {choice.message.content for choice in reply.choices} == {"one", "two", "three"}
    assert reply.usage.completion_tokens == len("onetwothree") + 3
    assert reply.usage.prompt_tokens == again.usage.prompt_tokens, "the prompt counts once"
    assert reply.id != again.id


def test_stop_strings(ask):
    with client_of(ScriptedModel("count 1, 2, 3", "a b c")) as client:
        cut = client.chat.completions.create(**ask, stop=[" 3", "", "never"]).choices[0]
        word = client.chat.completions.create(**ask, stop="b").choices[0]
    assert (cut.message.content, cut.finish_reason) == ("count 1, 2,", "stop")
    assert (word.message.content, word.finish_reason) == ("a ", "stop")


def test_max_tokens_under_both_names(ask):
    with client_of(ScriptedModel("abcdef", "abcdef")) as client:
        old = client.chat.completions.create(**ask, max_tokens=3).choices[0]
        new = client.chat.completions.create(**ask, max_completion_tokens=2).choices[0]
    assert (old.message.content, old.finish_reason) == ("abc", "length")
    assert (new.message.content, new.finish_reason) == ("ab", "length")


def test_more_tokens_than_the_context_holds_may_be_asked_for(ask):
    with client_of(ScriptedModel("fine", max_context=256)) as client:
        assert client.chat.completions.create(**ask, max_tokens=65_536).choices[0].message.content == "fine"


def test_a_call_that_was_cut_says_length(ask):
    with client_of(ScriptedModel(call_text(1) + call_text(12345))) as client:
        cut = client.chat.completions.create(**ask, tools=[SQUARE], max_tokens=len(call_text(1)) // 2 + 20)
    assert cut.choices[0].finish_reason == "length"
    for call in cut.choices[0].message.tool_calls or ():
        json.loads(call.function.arguments)


def test_logprobs(ask):
    with client_of(ScriptedModel("né", "né")) as client:
        none = client.chat.completions.create(**ask).choices[0].logprobs
        some = client.chat.completions.create(**ask, logprobs=True, top_logprobs=5).choices[0].logprobs
    assert none is None
    # The turn's end is no part of the content; half a character is its bytes.
    assert [entry.bytes for entry in some.content] == [[byte] for byte in "né".encode()]
    assert [entry.token for entry in some.content] == ["n", "\ufffd", "\ufffd"]
    assert all(entry.logprob == 0.0 for entry in some.content)
    assert [top.token for top in some.content[0].top_logprobs] == ["n"]


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_leave_out_the_stop_token_as_the_content_does(ask, stream):
    model = ScriptedModel("né")
    model.engine.eos_token_ids = frozenset({ord(".")})  # the script ends with this token
    with client_of(model) as client:
        options = {"logprobs": True, "stream": stream, "extra_body": {"stop_token_ids": [ord(".")]}}
        reply = client.chat.completions.create(**ask, **options)
        choices = [chunk.choices[0] for chunk in reply] if stream else reply.choices
    entries = [entry for choice in choices if choice.logprobs for entry in choice.logprobs.content]
    assert choices[-1].finish_reason == "stop"
    assert bytes(byte for entry in entries for byte in entry.bytes).decode() == "né"


# Streamed replies


def test_a_streamed_reply(ask):
    with client_of(ScriptedModel("Grüße 🎈")) as client:
        chunks = list(client.chat.completions.create(**ask, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert all(chunk.choices[0].delta.role is None for chunk in chunks[1:])
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Grüße 🎈"
    assert len(chunks) > 5, "piece by piece"
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert len({chunk.id for chunk in chunks}) == 1
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert all(chunk.usage is None for chunk in chunks)


def test_usage_comes_last_and_alone_when_asked_for(ask):
    options = {"stream": True, "stream_options": {"include_usage": True}}
    with client_of(ScriptedModel("abc")) as client:
        *_, finish, last = client.chat.completions.create(**ask, **options)
    assert finish.choices[0].finish_reason == "stop"
    assert last.choices == []
    assert last.usage.completion_tokens == 4
    assert last.usage.total_tokens == last.usage.prompt_tokens + 4


def test_streamed_calls_carry_id_and_name_once(ask):
    with client_of(ScriptedModel(f"Now.\n{call_text(1024)}\n{call_text(7)}")) as client:
        chunks = list(client.chat.completions.create(**ask, tools=[SQUARE], stream=True))
    calls = collect_calls(chunks)
    assert [call["name"] for call in calls.values()] == ["square", "square"]
    assert [json.loads(call["arguments"]) for call in calls.values()] == [{"x": 1024}, {"x": 7}]
    assert list(calls) == [0, 1]
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_a_long_argument_arrives_in_pieces(ask):
    write = {"type": "function", "function": {"name": "write", "parameters": None}}
    text = "line of text\n" * 40
    with client_of(ScriptedModel(call_text(text, "write"))) as client:
        chunks = list(client.chat.completions.create(**ask, tools=[write], stream=True))
    assert json.loads(collect_calls(chunks)[0]["arguments"]) == {"x": text}
    assert len(chunks) > 20


@pytest.mark.parametrize("max_tokens", [5, 20, 45, 60, 70])
def test_a_streamed_call_that_was_cut_says_length_and_leaves_valid_json(ask, max_tokens):
    with client_of(ScriptedModel(call_text(123456789) * 2)) as client:
        chunks = list(
            client.chat.completions.create(**ask, tools=[SQUARE], stream=True, max_tokens=max_tokens)
        )
    assert chunks[-1].choices[0].finish_reason == "length"
    for call in collect_calls(chunks).values():
        json.loads(call["arguments"])


def test_n_streamed_replies_are_told_apart(ask):
    with client_of(ScriptedModel("one", "two")) as client:
        texts = {0: "", 1: ""}
        roles, finishes = [], []
        for chunk in client.chat.completions.create(**ask, n=2, stream=True):
            (choice,) = chunk.choices
            texts[choice.index] += choice.delta.content or ""
            roles += [choice.index] if choice.delta.role else []
            finishes += [choice.index] if choice.finish_reason else []
    assert sorted(texts.values()) == ["one", "two"]
    assert sorted(roles) == sorted(finishes) == [0, 1]


def test_streamed_logprobs_cover_every_token_once(ask):
    options = {"stream": True, "logprobs": True, "top_logprobs": 1}
    with client_of(ScriptedModel("né<b")) as client:
        chunks = list(client.chat.completions.create(**ask, **options, tools=[SQUARE]))
    entries = [entry for c in chunks if c.choices[0].logprobs for entry in c.choices[0].logprobs.content]
    assert bytes(byte for entry in entries for byte in entry.bytes).decode() == "né<b"


# What goes in


def test_tools_that_were_not_offered_are_not_looked_for(ask):
    text = call_text(1)
    with client_of(ScriptedModel(text, text, text)) as client:
        without = client.chat.completions.create(**ask).choices[0]
        none = client.chat.completions.create(**ask, tools=[SQUARE], tool_choice="none").choices[0]
        auto = client.chat.completions.create(
            **ask, tools=[SQUARE], extra_body={"tool_choice": {"type": "auto"}}
        ).choices[0]
    assert (without.message.content, without.finish_reason) == (text, "stop")
    assert (none.message.content, none.finish_reason) == (text, "stop")
    assert auto.finish_reason == "tool_calls"


def test_every_shape_of_conversation_that_agents_send_is_read():
    model = ScriptedModel("ok")
    call = {"id": "c1", "type": "function", "function": {"name": "square", "arguments": '{"x": 3}'}}
    broken = {"id": "c2", "type": "function", "function": {"name": "square", "arguments": '{"x": '}}
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "You are S."}]},
        {"role": "developer", "content": "You are D."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "part one"}, {"type": "text", "text": "part two"}],
        },
        {"role": "user", "content": "an adjacent turn"},
        {"role": "assistant", "content": None, "tool_calls": [call, broken], "function_call": None},
        {
            "role": "tool",
            "tool_call_id": "c1",
            "content": [{"type": "text", "text": "nine"}],
            "name": "square",
        },
        {"role": "tool", "tool_call_id": "c2", "content": None},
        {"role": "assistant", "content": [{"type": "text", "text": "It is nine."}], "refusal": None},
        {"role": "assistant", "content": "", "function_call": {"name": "square", "arguments": "{}"}},
        {"role": "function", "name": "square", "content": "zero"},
        {"role": "user", "content": None},
        {"role": "system", "content": "a system turn in the middle", "cache_control": {"type": "ephemeral"}},
        {"role": "user", "content": "last"},
    ]
    with client_of(model) as client:
        reply = client.chat.completions.create(model="m", messages=messages, tools=[SQUARE])
    assert reply.choices[0].message.content == "ok"
    prompt = prompt_of(model)
    for text in ("You are S.", "You are D.", "part one\npart two", "an adjacent turn", "nine", "It is nine."):
        assert text in prompt
    for text in ("zero", "a system turn in the middle", "last"):
        assert text in prompt
    assert "<parameter=x>\n3\n</parameter>" in prompt


def test_tools_of_every_kind_are_rendered_or_skipped(ask):
    model = ScriptedModel("ok")
    tools = [
        {"type": "function", "function": {"name": "get_goal"}},
        {"type": "function", "function": {"name": "strict", "parameters": {}, "strict": True}},
        {"type": "web_search"},
        {"type": "namespace", "name": "mcp", "tools": []},
        {
            "type": "function",
            "function": {
                "name": "odd",
                "description": None,
                "parameters": {
                    "$schema": "https://json-schema.org/draft/2020-12/schema",
                    "type": "object",
                    "properties": {
                        "a": {"anyOf": [{"type": "string"}, {"type": "null"}]},
                        "b": {"type": ["integer", "null"], "default": None},
                        "c": True,
                    },
                },
            },
        },
    ]
    with client_of(model) as client:
        client.chat.completions.create(**ask, tools=tools, parallel_tool_calls=False)
    prompt = prompt_of(model)
    assert all(name in prompt for name in ("get_goal", "strict", "odd"))
    assert "web_search" not in prompt
    assert "namespace" not in prompt


def test_sampling_is_the_models_own_but_for_what_was_sent(ask, monkeypatch):
    model = ScriptedModel("", "", "")
    model.default_sampling = SamplingParams(temperature=0.7, top_p=0.8, top_k=20, repetition_penalty=1.05)
    seen = []
    submit = model.engine.submit
    monkeypatch.setattr(
        model.engine,
        "submit",
        lambda ids, sampling, report: seen.append(sampling) or submit(ids, sampling, report),
    )
    extra = {"top_k": -1, "min_p": 0.1, "repetition_penalty": 1.2, "stop_token_ids": [5], "ignore_eos": False}
    with client_of(model) as client:
        client.chat.completions.create(**ask)
        client.chat.completions.create(**ask, temperature=0, top_p=None, extra_body={"top_k": None})
        client.chat.completions.create(
            **ask,
            temperature=1.5,
            top_p=0.9,
            seed=-3,
            presence_penalty=0.5,
            frequency_penalty=-0.5,
            extra_body=extra,
        )
    assert seen[0] == SamplingParams(temperature=0.7, top_p=0.8, top_k=20, repetition_penalty=1.05)
    assert seen[1] == SamplingParams(temperature=0.0, top_p=0.8, top_k=20, repetition_penalty=1.05)
    assert seen[2] == SamplingParams(
        temperature=1.5,
        top_p=0.9,
        top_k=0,
        min_p=0.1,
        repetition_penalty=1.2,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        seed=-3,
        stop_token_ids=(5,),
    )


def test_fields_of_other_servers_are_ignored(ask):
    extra = {
        "store": False,
        "prompt_cache_key": "k",
        "reasoning_effort": "low",
        "reasoning": {},
        "metadata": {"a": "b"},
        "service_tier": "auto",
        "user": "u",
        "chat_template_kwargs": {"enable_thinking": False},
        "response_format": {"type": "text"},
        "logit_bias": {},
        "modalities": ["text"],
    }
    with client_of(ScriptedModel("ok")) as client:
        assert client.chat.completions.create(**ask, extra_body=extra).choices[0].message.content == "ok"


def test_models():
    with client_of(ScriptedModel(max_context=4096)) as client:
        (model,) = client.models.list().data
        assert (model.id, model.object, model.owned_by) == ("scripted", "model", "lathe")
        assert model.max_model_len == 4096
        assert client.models.retrieve("scripted").id == "scripted"
