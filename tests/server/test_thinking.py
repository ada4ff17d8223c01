"""A thinking model over the wire: its thought apart from its answer, whole and streamed."""

import pytest
from serving import client_of, thinker

from lathe.server.chat_schema import ChatCompletion
from lathe.testing import ScriptedModel

REPLY = "<think>\nTwo and two\nmake four.\n</think>\n\nFour."
OFF = "<think>\n\n</think>\n\n"


def prompt_of(model: ScriptedModel) -> str:
    return model.tokenizer.decode(model.engine.prompts[-1])


def test_the_thought_of_a_whole_reply(ask):
    with client_of(thinker(REPLY)) as client:
        reply = client.chat.completions.create(**ask)
    ChatCompletion.model_validate(reply.model_dump())
    message = reply.choices[0].message
    assert (message.reasoning_content, message.content) == ("Two and two\nmake four.", "Four.")
    assert reply.usage.completion_tokens_details.reasoning_tokens == len("<\nTwo and two\nmake four.\n>")


def test_a_stream_says_the_same(ask):
    options = {"stream": True, "stream_options": {"include_usage": True}, "logprobs": True}
    with client_of(thinker(REPLY, REPLY)) as client:
        *chunks, last = client.chat.completions.create(**ask, **options)
        whole = client.chat.completions.create(**ask, logprobs=True)
    deltas = [chunk.choices[0].delta for chunk in chunks]
    thoughts = [getattr(delta, "reasoning_content", None) for delta in deltas]
    assert "".join(thought or "" for thought in thoughts) == whole.choices[0].message.reasoning_content
    assert "".join(delta.content or "" for delta in deltas) == whole.choices[0].message.content
    assert sum(thought is not None for thought in thoughts) > 5, "piece by piece"
    assert last.usage == whole.usage
    streamed = [c.choices[0].logprobs.content for c in chunks if c.choices[0].logprobs]
    entries = [entry for content in streamed for entry in content]
    assert entries == whole.choices[0].logprobs.content
    assert bytes(byte for entry in entries for byte in entry.bytes).decode() == REPLY, "every sampled token"


def test_who_does_not_think_has_no_such_field(ask):
    with client_of(ScriptedModel(REPLY)) as client:
        reply = client.chat.completions.create(**ask)
    assert reply.choices[0].message.content == REPLY
    assert "reasoning_content" not in reply.choices[0].message.model_dump()
    assert reply.usage.completion_tokens_details.reasoning_tokens == 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_thought_that_is_cut(ask, stream):
    with client_of(thinker(REPLY)) as client:
        reply = client.chat.completions.create(**ask, max_tokens=10, stream=stream)
        choices = [chunk.choices[0] for chunk in reply] if stream else reply.choices
    messages = [choice.delta if stream else choice.message for choice in choices]
    assert "".join(getattr(message, "reasoning_content", None) or "" for message in messages) == "Two and "
    assert "".join(message.content or "" for message in messages) == ""
    assert choices[-1].finish_reason == "length"


def test_a_call_behind_a_thought(ask):
    tool = {"type": "function", "function": {"name": "now"}}
    call = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    with client_of(thinker(f"<think>\nThe clock.\n</think>\n\n{call}")) as client:
        choice = client.chat.completions.create(**ask, tools=[tool]).choices[0]
    assert choice.message.reasoning_content == "The clock."
    assert choice.message.content is None
    assert [call.function.name for call in choice.message.tool_calls] == ["now"]
    assert choice.finish_reason == "tool_calls"


# The switch


@pytest.mark.parametrize(
    ("fields", "thinks"),
    [
        ({}, True),
        ({"chat_template_kwargs": {"enable_thinking": False}}, False),
        ({"enable_thinking": False}, False),
        ({"reasoning_effort": "none"}, False),
        ({"reasoning_effort": "high"}, True),
        ({"reasoning_effort": None, "enable_thinking": None}, True),
        ({"reasoning_effort": "none", "enable_thinking": True}, True),
        ({"enable_thinking": True, "chat_template_kwargs": {"enable_thinking": False}}, False),
    ],
)
def test_thinking_can_be_turned_off(ask, fields, thinks):
    model = thinker(REPLY)
    with client_of(model) as client:
        message = client.chat.completions.create(**ask, extra_body=fields).choices[0].message
    assert prompt_of(model).endswith(OFF) != thinks
    # With the thought in the prompt, the reply has none: what looks like one is text.
    assert message.content == ("Four." if thinks else REPLY)


@pytest.mark.parametrize(
    "fields",
    [
        {"chat_template_kwargs": {"enable_thinking": True}},
        {"enable_thinking": True},
        {"enable_thinking": False},
        {"reasoning_effort": "none"},
        {"reasoning_effort": "high"},
    ],
)
def test_a_template_that_does_not_think_ignores_the_switch(ask, fields):
    model = ScriptedModel("Four.", "Four.")
    with client_of(model) as client:
        client.chat.completions.create(**ask)
        plain = prompt_of(model)
        reply = client.chat.completions.create(**ask, extra_body=fields)
    assert prompt_of(model) == plain
    assert reply.choices[0].message.content == "Four."


def test_the_responses_dialect_thinks_too():
    model = thinker(REPLY)
    with client_of(model) as client:
        thought = client.responses.create(model="m", input="2+2?")
    assert [item.type for item in thought.output] == ["reasoning", "message"]
    assert thought.output_text == "Four."
    assert thought.usage.output_tokens_details.reasoning_tokens == len("<\nTwo and two\nmake four.\n>")


def test_logprobs_of_responses_cover_the_answer_alone():
    model = thinker(REPLY)
    with client_of(model) as client:
        reply = client.responses.create(model="m", input="2+2?", include=["message.output_text.logprobs"])
    entries = reply.output[1].content[0].logprobs
    assert bytes(byte for entry in entries for byte in entry.bytes).decode() == "Four."


@pytest.mark.parametrize(
    "fields",
    [
        {"reasoning": {"effort": "none"}},
        {"enable_thinking": False},
        {"chat_template_kwargs": {"enable_thinking": False}, "reasoning": {"effort": "high"}},
    ],
)
def test_the_responses_dialect_can_be_told_not_to_think(fields):
    model = thinker("Four.")
    with client_of(model) as client:
        plain = client.responses.create(model="m", input="2+2?", extra_body=fields)
    assert [item.type for item in plain.output] == ["message"]
    assert prompt_of(model).endswith(OFF)


@pytest.mark.parametrize("kept", ["content", "encrypted_content"])
def test_a_thought_comes_back_in_the_items_of_responses(kept):
    """Codex sends encrypted_content and no content; others send content."""
    call = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    model = thinker(f"<think>\nThe clock.\n</think>\n\n{call}", "Monday.")
    ask = {"tools": [{"type": "function", "name": "now"}], "include": ["reasoning.encrypted_content"]}
    question = {"role": "user", "content": "What day was yesterday?"}
    with client_of(model) as client:
        first = client.responses.create(model="m", input=[question], **ask)
        thought, called = (item.to_dict() for item in first.output)
        thought = {key: thought[key] for key in ("type", "id", "summary", kept)}
        result = {"type": "function_call_output", "call_id": called["call_id"], "output": "Tuesday"}
        client.responses.create(model="m", input=[question, thought, called, result], **ask)
    read, sampled = (model.tokenizer.decode(prompt) for prompt in model.engine.prompts)
    assert sampled.startswith(f"{read}<think>\nThe clock.\n</think>\n\n{call}<|im_end|>")


def test_a_thought_comes_back_in_the_history():
    call = {"id": "c1", "type": "function", "function": {"name": "now", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "What day was yesterday?"},
        {"role": "assistant", "content": "", "reasoning_content": "The clock.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "Tuesday"},
    ]
    later = [{"role": "assistant", "content": "Monday."}, {"role": "user", "content": "Thanks."}]
    model = thinker("Monday.", "You are welcome.")
    with client_of(model) as client:
        client.chat.completions.create(model="m", messages=messages)
        assert "<think>\nThe clock.\n</think>" in prompt_of(model)
        client.chat.completions.create(model="m", messages=messages + later)
        assert "The clock." not in prompt_of(model), "Qwen3 forgets thoughts when the next question comes"
