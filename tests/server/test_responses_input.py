"""What the responses dialect reads and what it refuses."""

import json

import httpx
import pytest
from serving import client_of, serve

from lathe.server.responses_items import read_items, seal, unseal
from lathe.server.responses_schema import InputItem
from lathe.testing import ScriptedModel
from lathe.types import Message, SamplingParams, ToolCall

RESPONSES = "/v1/responses"
SQUARE = {"type": "function", "name": "square", "parameters": {"properties": {"x": {"type": "number"}}}}


def read(*items: dict) -> tuple[Message, ...]:
    return read_items([InputItem.model_validate(item) for item in items])


def said(role: str, text: str, kind: str = "output_text") -> dict:
    return {"type": "message", "role": role, "content": [{"type": kind, "text": text, "annotations": []}]}


def called(call_id: str, arguments: str = "{}", **fields) -> dict:
    return {"type": "function_call", "name": "f", "call_id": call_id, "arguments": arguments, **fields}


def result(call_id: str, output: object = "done") -> dict:
    return {"type": "function_call_output", "call_id": call_id, "output": output}


def thought(text: str | None, **fields) -> dict:
    content = [{"type": "reasoning_text", "text": text}] if text else None
    return {"type": "reasoning", "id": "rs_1", "summary": [], "content": content, **fields}


# From items to messages


def test_the_items_of_one_reply_are_one_turn():
    messages = read(
        said("user", "Do two.", "input_text"),
        thought("Two calls."),
        said("assistant", "Both now."),
        called("c1", '{"x": 1}', id="fc_1", status="completed"),
        called("c2", '{"x": 2}'),
        result("c1", "one"),
        result("c2", [{"type": "input_text", "text": "two"}, {"type": "input_text", "text": "lines"}]),
        said("assistant", "Done."),
    )
    calls = (ToolCall("f", {"x": 1}, "c1"), ToolCall("f", {"x": 2}, "c2"))
    assert messages == (
        Message("user", "Do two."),
        Message("assistant", "Both now.", calls, reasoning="Two calls."),
        Message("tool", "one", tool_call_id="c1", name="f"),
        Message("tool", "two\nlines", tool_call_id="c2", name="f"),
        Message("assistant", "Done."),
    )


def test_text_behind_a_call_belongs_to_its_turn():
    (turn, _) = read(said("assistant", "a"), called("c1"), said("assistant", "b"), result("c1"))
    assert (turn.content, len(turn.tool_calls)) == ("ab", 1)


def test_two_texts_are_two_turns_and_reasoning_begins_one():
    assert len(read(said("assistant", "a"), said("assistant", "b"))) == 2
    first, second = read(called("c1"), thought("Again."), called("c2"))
    assert (first.reasoning, second.reasoning) == (None, "Again.")


def test_reasoning_is_read_from_what_the_client_kept_of_it():
    summary = [{"type": "summary_text", "text": "short"}]
    for item in (
        thought("short"),
        thought(None, summary=summary),
        thought(None, encrypted_content=seal("short")),
    ):
        (turn,) = read(item, said("assistant", "a"))
        assert turn.reasoning == "short"


def test_reasoning_of_others_and_without_an_answer_is_dropped():
    foreign = thought(None, encrypted_content="gAAAAABo")
    assert read(foreign, said("assistant", "a")) == (Message("assistant", "a"),)
    assert read(thought("Hm."), said("user", "Stop.")) == (Message("user", "Stop."),)
    assert unseal("lathe:%%%") is None
    assert unseal("lathe:/w==") is None


def test_other_kinds_of_calls_are_read_as_calls():
    shell = {
        "type": "local_shell_call",
        "id": "lsh_1",
        "call_id": "c2",
        "status": "completed",
        "action": {"type": "exec", "command": ["ls"], "env": {}},
    }
    messages = read(
        {"type": "custom_tool_call", "call_id": "c1", "name": "apply_patch", "input": "*** Begin Patch"},
        {"type": "custom_tool_call_output", "call_id": "c1", "output": "ok"},
        shell,
        {"type": "local_shell_call_output", "id": "c2", "output": "a.py"},
    )
    assert messages[0].tool_calls == (ToolCall("apply_patch", {"input": "*** Begin Patch"}, "c1"),)
    assert messages[1] == Message("tool", "ok", tool_call_id="c1", name="apply_patch")
    assert messages[2].tool_calls == (ToolCall("local_shell", {"command": ["ls"], "env": {}}, "c2"),)
    assert messages[3].content == "a.py"


def test_broken_arguments_are_shown_to_the_model_as_they_were():
    (turn,) = read(called("c1", '{"x": '))
    assert turn.tool_calls[0].arguments == {"arguments": '{"x": '}


def test_a_picture_in_a_tools_result_is_told_to_the_model():
    picture = {"type": "input_image", "image_url": "data:,"}
    messages = read(called("c1"), result("c1", [picture, {"type": "input_text", "text": "a cat"}]))
    assert messages[1].content.endswith("a cat")
    assert "input_image was left out" in messages[1].content


def test_every_shape_of_conversation_reaches_the_prompt():
    model = ScriptedModel("ok")
    conversation = [
        {"role": "developer", "content": "You are D."},
        {"role": "user", "content": [{"type": "input_text", "text": "part one"}]},
        said("user", "an adjacent turn", "input_text"),
        called("c1", '{"x": 3}'),
        result("c1", "nine"),
        said("system", "a system turn in the middle", "input_text"),
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "I won't."}]},
        {"role": "user", "content": "last"},
    ]
    with client_of(model) as client:
        reply = client.responses.create(model="m", input=conversation, instructions="You are I.")
    assert reply.output_text == "ok"
    prompt = model.tokenizer.decode(list(model.engine.prompts[0]))
    for text in ("You are I.", "You are D.", "part one", "an adjacent turn", "nine", "I won't.", "last"):
        assert text in prompt
    assert prompt.index("You are I.") < prompt.index("You are D.")
    assert "a system turn in the middle" in prompt
    assert "<parameter=x>\n3\n</parameter>" in prompt


def test_a_reply_goes_back_in_and_is_what_the_model_wrote():
    """A client that sends the output items back gives the model its own turn, token for token."""
    call = "<tool_call>\n<function=square>\n<parameter=x>\n3\n</parameter>\n</function>\n</tool_call>"
    model = ScriptedModel(f"Now.\n\n{call}\n{call}", "Nine.")
    with client_of(model) as client:
        first = client.responses.create(model="m", input="Square 3.", tools=[SQUARE])
        output = [item.to_dict() for item in first.output]
        conversation = [
            {"role": "user", "content": "Square 3."},
            *output,
            *[result(item.call_id, "9") for item in first.output[1:]],
        ]
        second = client.responses.create(model="m", input=conversation, tools=[SQUARE])
    assert second.output_text == "Nine."
    before, after = (model.tokenizer.decode(list(prompt)) for prompt in model.engine.prompts)
    assert after.startswith(f"{before}Now.\n\n{call}\n{call}<|im_end|>")


def test_tools_of_other_kinds_are_skipped_and_repeated():
    model = ScriptedModel("ok")
    tools = [
        {"type": "namespace", "name": "agents", "tools": [{"type": "function", "name": "spawn"}]},
        {"type": "web_search", "external_web_access": True},
        {"type": "custom", "name": "apply_patch", "format": {"type": "grammar"}},
        {"type": "local_shell"},
        {"type": "mcp", "server_label": "s"},
        {"type": "file_search", "vector_store_ids": []},
        {"type": "function", "name": "get_goal"},
        {**SQUARE, "strict": True, "description": None},
    ]
    with client_of(model) as client:
        reply = client.responses.create(model="m", input="Hi.", tools=tools)
    prompt = model.tokenizer.decode(list(model.engine.prompts[0]))
    assert "get_goal" in prompt
    assert "square" in prompt
    for name in ("spawn", "web_search", "apply_patch", "local_shell"):
        assert name not in prompt
    given = reply.to_dict()["tools"]
    assert given[:6] == tools[:6]
    assert given[6] == {**tools[6], "description": None, "parameters": None, "strict": False}


def test_tools_that_are_not_offered_are_not_looked_for():
    call = "<tool_call>\n<function=square>\n<parameter=x>\n3\n</parameter>\n</function>\n</tool_call>"
    allowed = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "other"}]}
    model = ScriptedModel(*[call] * 4)
    with client_of(model) as client:
        ask = {"model": "m", "input": "Hi."}
        without = client.responses.create(**ask)
        none = client.responses.create(**ask, tools=[SQUARE], tool_choice="none")
        other = client.responses.create(**ask, tools=[SQUARE], tool_choice=allowed)
        auto = client.responses.create(**ask, tools=[SQUARE], tool_choice="auto")
    assert without.output_text == none.output_text == other.output_text == call
    assert auto.output[0].type == "function_call"
    assert other.to_dict()["tool_choice"] == allowed


def test_sampling_parameters_change_the_checkpoints_defaults():
    seen = []
    model = ScriptedModel(None, None)
    model.default_sampling = SamplingParams(temperature=0.7, top_p=0.8, top_k=20)
    submit = model.engine.submit
    model.engine.submit = lambda prompt, sampling, report: (
        seen.append(sampling) or submit(prompt, sampling, report)
    )
    with client_of(model) as client:
        plain = client.responses.create(model="m", input="Hi.")
        client.responses.create(
            model="m", input="Hi.", temperature=0, max_output_tokens=9, extra_body={"top_k": -1, "seed": 5}
        )
    assert seen == [
        SamplingParams(temperature=0.7, top_p=0.8, top_k=20),
        SamplingParams(temperature=0, top_p=0.8, seed=5, max_tokens=9),
    ]
    assert (plain.temperature, plain.top_p) == (0.7, 0.8), "what was used, not what was sent"


def test_fields_of_other_servers_are_ignored():
    extra = {
        "store": False,
        "prompt_cache_key": "k",
        "prompt_cache_retention": "24h",
        "reasoning": {"effort": "high", "summary": "auto"},
        "include": ["reasoning.encrypted_content"],
        "client_metadata": {"session": "s"},
        "service_tier": "auto",
        "truncation": "auto",
        "parallel_tool_calls": False,
        "stream_options": {"include_obfuscation": False},
        "text": {"format": {"type": "text"}, "verbosity": "low"},
        "user": "u",
        "max_tool_calls": 5,
        "context_management": [{"type": "compaction"}],
        "conversation": None,
        "previous_response_id": None,
    }
    with client_of(ScriptedModel("ok")) as client:
        reply = client.responses.create(model="m", input="Hi.", extra_body=extra)
    assert reply.output_text == "ok"
    assert reply.prompt_cache_key == "k"
    assert reply.parallel_tool_calls is False
    assert reply.reasoning.effort == "high"
    assert reply.text.verbosity == "low"
    assert reply.truncation == "disabled", "nothing is ever cut"


# Refusals


@pytest.fixture(scope="module")
def server():
    with serve(ScriptedModel(max_context=2048)) as url, httpx.Client(base_url=url) as http:
        yield http


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"input": None}, "input", "valid string or"),
        ({"input": []}, "input", "at least 1 item"),
        ({"input": 5}, "input", "valid string"),
        ({"input": [5]}, "input.0", "valid dict"),
        ({"input": [{}]}, "input.0", "needs a type, or a role"),
        ({"input": [{"type": "message"}]}, "input.0.role", "needs a role"),
        ({"input": [{"role": "robot", "content": ""}]}, "input.0.role", "'assistant'"),
        ({"input": [{"role": "user", "content": 5}]}, "input.0.content", "valid string"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input.0.content.0",
            "reads text",
        ),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input.0", "stores nothing"),
        ({"input": [{"id": "msg_1"}]}, "input.0", "stores nothing"),
        ({"input": [{"type": "computer_call"}]}, "input.0", "'computer_call' is not supported"),
        ({"input": [{"type": "function_call", "call_id": "c"}]}, "input.0.name", "not empty"),
        ({"input": [{"type": "function_call", "name": "f"}]}, "input.0.call_id", "not empty"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input.0.call_id", "not empty"),
        ({"input": [{"type": "function_call_output", "output": 5}]}, "input.0.output", "valid string"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input", "nothing in it"),
        ({"previous_response_id": "resp_1"}, "previous_response_id", "Send the whole conversation"),
        ({"conversation": "conv_1"}, "conversation", "Send the whole conversation"),
        ({"prompt": {"id": "p"}}, "prompt", "Send the whole conversation"),
        ({"background": True}, "background", "stores nothing"),
        ({"tools": [{}]}, "tools.0.type", "required"),
        ({"tools": [{"type": "function"}]}, "tools.0.name", "needs a name"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools.0.name", "needs a name"),
        ({"max_output_tokens": 0}, "max_output_tokens", "greater than or equal to 1"),
        ({"temperature": "hot"}, "temperature", "valid number"),
        ({"top_logprobs": 21}, "top_logprobs", "less than or equal to 20"),
        ({"metadata": {"a": 1}}, "metadata.a", "valid string"),
        ({"input": "x" * 3000}, "input", "maximum context length is 2048 tokens"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_wrong_field_is_named(server, fields, param, words, stream):
    response = server.post(RESPONSES, json={"input": "Hi.", "stream": stream, **fields})
    assert response.status_code == 400
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert words in error["message"]


def deep(levels: int) -> str:
    return "[" * levels + "]" * levels


@pytest.mark.parametrize(
    "fields",
    [
        {"input": "a\0b\x1b"},
        {"input": [called("c1", '{"x":' + deep(700) + "}"), result("c1")]},
        {"input": [called("c1", '{"x": "\\ud800"}'), result("nobody's")]},
        {"input": "Hi.", "tools": [{"type": "function", "name": "f\0", "parameters": {"properties": 5}}]},
        {"input": "Hi.", "tools": [{"type": "x", "deep": json.loads(deep(150))}] * 3},
        {"input": "Hi.", "tools": [{"type": f"kind{i}"} for i in range(10_000)]},
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_strange_but_whole_requests_never_fail(server, fields, stream):
    response = server.post(RESPONSES, json={**fields, "stream": stream})
    assert response.status_code in (200, 400)
    assert "server_error" not in response.text
