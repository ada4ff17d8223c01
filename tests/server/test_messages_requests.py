"""What the messages dialect reads and what it refuses, in Anthropic's shape of errors."""

import json

import anthropic
import httpx
import pytest
from serving import anthropic_client_of, serve

from lathe.testing import ScriptedModel
from lathe.types import SamplingParams

MESSAGES = "/v1/messages"
HI = [{"role": "user", "content": "Hi."}]
SQUARE = {"name": "square", "input_schema": {"type": "object", "properties": {"x": {"type": "number"}}}}
PICTURE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}}
CACHED = {"cache_control": {"type": "ephemeral"}}


@pytest.fixture(scope="module")
def server():
    with (
        serve(ScriptedModel(max_context=2048), max_body_bytes=100_000) as url,
        httpx.Client(base_url=url) as http,
    ):
        yield http


def refusal(response: httpx.Response) -> dict:
    """The error, once it is sure to have Anthropic's shape."""
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert body.keys() == {"type", "error"}
    assert body["type"] == "error"
    assert body["error"].keys() == {"type", "message"}
    return body["error"]


def prompt_for(**fields) -> str:
    """What the model reads of a request by the official client."""
    model = ScriptedModel("ok")
    with anthropic_client_of(model) as client:
        client.messages.create(**{"model": "m", "max_tokens": 10, "messages": HI, **fields})
    return model.tokenizer.decode(list(model.engine.prompts[0]))


def turn(role: str, content: str) -> str:
    return f"<|im_start|>{role}\n{content}<|im_end|>\n"


# What is read


def test_system_as_text_or_blocks():
    blocks = [{"type": "text", "text": "You are S.", **CACHED}, {"type": "text", "text": "Be brief."}]
    expected = turn("system", "You are S.\nBe brief.") + turn("user", "Hi.")
    assert prompt_for(system=blocks).startswith(expected)
    assert prompt_for(system="You are S.\nBe brief.").startswith(expected)
    assert prompt_for(system="").startswith(turn("user", "Hi."))


@pytest.mark.parametrize("hash", ["cch=1a2b3;", "cch=4c5d6;"])
def test_the_billing_header_is_dropped(hash):
    header = f"x-anthropic-billing-header: cc_version=2.1.330; cc_entrypoint=cli; {hash}"
    blocks = [{"type": "text", "text": header}, {"type": "text", "text": "You are S.", **CACHED}]
    expected = turn("system", "You are S.") + turn("user", "Hi.")
    assert prompt_for(system=blocks).startswith(expected)
    assert prompt_for(system=f"{header}\nYou are S.").startswith(expected), "a proxy joined the blocks"
    assert prompt_for(system=header).startswith(turn("user", "Hi."))
    assert "mentions x-anthropic-billing-header" in prompt_for(
        system="It mentions x-anthropic-billing-header"
    )


def test_a_system_message_in_mid_conversation():
    messages = [*HI, {"role": "system", "content": [{"type": "text", "text": "Now S.", **CACHED}]}]
    assert prompt_for(messages=messages).startswith(turn("user", "Hi.") + turn("system", "Now S."))


def test_a_turn_with_parallel_calls_and_their_results():
    messages = [
        *HI,
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Two squares.", "signature": "sig"},
                {"type": "redacted_thinking", "data": "AAAA"},
                {"type": "text", "text": "Both now."},
                {"type": "tool_use", "id": "toolu_1", "name": "square", "input": {"x": 3}},
                {"type": "tool_use", "id": "toolu_2", "name": "square", "input": {}, **CACHED},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "toolu_2", "content": "no x", "is_error": True},
                {
                    "type": "tool_result",
                    "tool_use_id": "toolu_1",
                    "content": [{"type": "text", "text": "nine"}, {"type": "text", "text": "9"}],
                    **CACHED,
                },
                {"type": "text", "text": "Go on."},
                {"type": "text", "text": "Quickly."},
            ],
        },
    ]
    prompt = prompt_for(messages=messages, tools=[SQUARE])
    call = "<tool_call>\n<function=square>\n{}</function>\n</tool_call>"
    calls = call.format("<parameter=x>\n3\n</parameter>\n") + "\n" + call.format("")
    results = "".join(f"<tool_response>\n{text}\n</tool_response>\n" for text in ("Error: no x", "nine\n9"))
    expected = [
        turn("user", "Hi."),
        turn("assistant", f"Both now.\n\n{calls}"),
        turn("user", results),
        turn("user", "Go on.\nQuickly."),
        "<|im_start|>assistant\n",
    ]
    assert prompt.endswith("".join(expected))


def test_text_between_results_stays_between_them():
    content = [
        {"type": "text", "text": "Before."},
        {"type": "tool_result", "tool_use_id": "a"},
        {"type": "text", "text": "Between."},
        {"type": "tool_result", "tool_use_id": "b", "content": "two", "is_error": False},
    ]
    result = "<tool_response>\n{}\n</tool_response>\n".format
    expected = [turn("user", "Before."), turn("user", result("")), turn("user", "Between.")]
    assert "".join([*expected, turn("user", result("two"))]) in prompt_for(
        messages=[*HI, {"role": "user", "content": content}]
    )


@pytest.mark.parametrize(
    ("content", "seen"),
    [("exit code 1", "Error: exit code 1"), ("Error: no such file", "Error: no such file"), ("", "Error: ")],
)
def test_an_error_can_be_seen(content, seen):
    result = {"type": "tool_result", "tool_use_id": "a", "content": content, "is_error": True}
    prompt = prompt_for(messages=[*HI, {"role": "user", "content": [result]}])
    assert f"<tool_response>\n{seen}\n</tool_response>" in prompt


def test_a_picture_in_a_result_is_told_to_the_model():
    content = [{"type": "text", "text": "plot.png"}, PICTURE]
    result = {"type": "tool_result", "tool_use_id": "a", "content": content}
    prompt = prompt_for(messages=[*HI, {"role": "user", "content": [result]}])
    assert "<tool_response>\nplot.png\n[A part of type image was left out" in prompt


def test_a_reply_can_be_sent_back():
    words = "Now.\n<tool_call>\n<function=square>\n<parameter=x>\n3\n</parameter>\n</function>\n</tool_call>"
    model = ScriptedModel(words, "Nine.")
    ask = {"model": "m", "max_tokens": 500, "tools": [SQUARE]}
    with anthropic_client_of(model) as client:
        first = client.messages.create(**ask, messages=HI)
        result = {"type": "tool_result", "tool_use_id": first.content[1].id, "content": "9"}
        second = client.messages.create(
            **ask,
            messages=[
                *HI,
                {"role": "assistant", "content": first.content},
                {"role": "user", "content": [result]},
            ],
        )
    assert second.content[0].text == "Nine."
    one, two = (model.tokenizer.decode(list(ids)) for ids in model.engine.prompts)
    assert two.startswith(one + words.replace("Now.\n", "Now.\n\n"))


def test_blocks_that_only_anthropic_can_read_are_skipped():
    content = [
        {"type": "text", "text": "I looked."},
        {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "q"}},
        {
            "type": "web_search_tool_result",
            "tool_use_id": "srvtoolu_1",
            "content": [{"type": "web_search_result", "url": "u", "title": "t", "encrypted_content": "x"}],
        },
        {
            "type": "web_fetch_tool_result",
            "tool_use_id": "srvtoolu_2",
            "content": {"type": "web_fetch_tool_result_error", "error_code": "unavailable"},
        },
        {"type": "mcp_tool_use", "id": "mcp_1", "name": "n", "server_name": "s", "input": {}},
        {"type": "mcp_tool_result", "tool_use_id": "mcp_1", "is_error": False, "content": "text"},
        {"type": "text", "text": "Found it."},
    ]
    messages = [*HI, {"role": "assistant", "content": content}, *HI]
    assert turn("assistant", "I looked.\nFound it.") in prompt_for(messages=messages)


def test_tools_of_the_client_are_offered_and_servers_are_skipped():
    prompt = prompt_for(
        tools=[
            {**SQUARE, **CACHED},
            {
                "type": "custom",
                "name": "later",
                "description": "D.",
                "input_schema": {},
                "defer_loading": True,
            },
            {"type": "web_search_20250305", "name": "web_search", "max_uses": 5},
            {"type": "bash_20250124", "name": "bash"},
            {"type": "mcp_toolset", "mcp_server_name": "docs"},
        ]
    )
    assert "<name>square</name>" in prompt
    assert "<name>later</name>\n<description>D.</description>" in prompt
    assert all(name not in prompt for name in ("web_search", "bash", "docs"))
    assert "<name>square</name>" not in prompt_for(tools=[SQUARE], tool_choice={"type": "none"})
    found = {"type": "tool_reference", "tool_name": "later"}
    result = {"type": "tool_result", "tool_use_id": "a", "content": [found]}
    assert "<tool_response>\nlater\n" in prompt_for(messages=[*HI, {"role": "user", "content": [result]}])


def test_sampling_is_the_models_own_but_for_what_was_sent(monkeypatch):
    model = ScriptedModel("", "")
    model.default_sampling = SamplingParams(temperature=0.7, top_p=0.8, top_k=20)
    seen = []
    submit = model.engine.submit
    monkeypatch.setattr(
        model.engine,
        "submit",
        lambda ids, sampling, report: seen.append(sampling) or submit(ids, sampling, report),
    )
    ask = {"model": "m", "max_tokens": 9, "messages": HI}
    with anthropic_client_of(model) as client:
        client.messages.create(**ask)
        client.messages.create(**ask, extra_body={"temperature": 0.2, "top_p": 0.9, "top_k": 5, "seed": 3})
    assert seen[0] == SamplingParams(temperature=0.7, top_p=0.8, top_k=20, max_tokens=9)
    assert seen[1] == SamplingParams(temperature=0.2, top_p=0.9, top_k=5, seed=3, max_tokens=9)


@pytest.mark.parametrize(
    ("thinking", "enabled"),
    [
        (None, None),
        ({"type": "enabled", "budget_tokens": 1024}, True),
        ({"type": "adaptive", "display": "omitted"}, True),
        ({"type": "disabled"}, False),
    ],
)
def test_thinking_is_the_templates_own_word(thinking, enabled, monkeypatch):
    model = ScriptedModel("ok", "ok")
    seen = []
    encode = model.encode
    monkeypatch.setattr(
        model, "encode", lambda trajectory: seen.append(trajectory.template_kwargs) or encode(trajectory)
    )
    with serve(model) as url:
        response = httpx.post(url + MESSAGES, json={"messages": HI, "thinking": thinking})
    assert response.status_code == 200
    assert seen == [{} if enabled is None else {"enable_thinking": enabled}]


def test_fields_that_change_nothing_here_are_accepted():
    fields = {
        "metadata": {"user_id": "u"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015"}]},
        "output_config": {"effort": "high"},
        "service_tier": "auto",
        "container": None,
        "mcp_servers": [],
        "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
    }
    with anthropic_client_of(ScriptedModel("ok")) as client:
        reply = client.messages.create(model="m", max_tokens=9, messages=HI, extra_body={**fields, **CACHED})
    assert reply.content[0].text == "ok"


# What is refused


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"messages": []}, "messages: List should have at least 1 item"),
        ({"messages": None}, "messages: Input should be a valid list"),
        ({"messages": [{"role": "tool", "content": ""}]}, "messages.0.role: Input should be 'user'"),
        ({"messages": [{"role": "user"}]}, "messages.0.content: Field required"),
        ({"messages": [{"role": "user", "content": [{"text": "?"}]}]}, "messages.0.content.0.type: Field"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages.0.content.0: a block of type text needs text",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "?"}, PICTURE]}]},
            "messages.0.content.1: this model reads text, and can't read a block of type 'image'",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "document", "source": {}}]}]},
            "can't read a block of type 'document'",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_result", "content": "x"}]}]},
            "messages.0.content.0: a block of type tool_result needs tool_use_id",
        ),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "tool_result", "tool_use_id": "a", "content": {"a": 1}}],
                    }
                ]
            },
            "messages.0.content.0.content: a tool's result is",
        ),
        (
            {"messages": [*HI, {"role": "assistant", "content": [{"type": "tool_use", "id": "a"}]}, *HI]},
            "messages.1.content.0: a block of type tool_use needs name",
        ),
        (
            {"messages": [*HI, {"role": "assistant", "content": [{"type": "tool_use", "input": "x"}]}, *HI]},
            "messages.1.content.0.input: Input should be a valid dictionary",
        ),
        ({"messages": [*HI, {"role": "assistant", "content": "The answer is ("}]}, "continuing it is not"),
        ({"system": 5}, "system: Input should be a valid string"),
        ({"system": [PICTURE]}, "system.0: this model reads text"),
        ({"max_tokens": 0}, "max_tokens: Input should be greater than or equal to 1"),
        ({"temperature": -1}, "temperature: Input should be greater"),
        ({"stop_sequences": "x"}, "stop_sequences: Input should be a valid list"),
        ({"stop_sequences": [5]}, "stop_sequences.0: Input should be a valid string"),
        ({"tools": [{"input_schema": {}}]}, "tools.0: a tool needs a name"),
        ({"tools": [{"name": "f", "input_schema": []}]}, "tools.0.input_schema: Input should be"),
        ({"tool_choice": {"type": "must"}}, "tool_choice.type: Input should be 'auto'"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages can't be set"),
        ({"thinking": {"type": "on"}}, "thinking.type: Input should be 'enabled'"),
    ],
)
def test_a_wrong_field_is_named(server, fields, words):
    for stream in (False, True):
        response = server.post(MESSAGES, json={"messages": HI, **fields, "stream": stream})
        assert response.status_code == 400
        error = refusal(response)
        assert error["type"] == "invalid_request_error"
        assert words in error["message"]


@pytest.mark.parametrize("path", [MESSAGES, f"{MESSAGES}/count_tokens"])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"\xff\xfe",
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"messages": [{"role": "user", "content": [{"type": "\\ud800"}]}]}',
        b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
        b"[" * 20_000 + b"]" * 20_000,
        b'{"messages": [{"role": "user", "content": ' + b"[" * 900 + b"]" * 900 + b"}]}",
    ],
)
def test_a_damaged_body_is_a_400(server, path, body):
    response = server.post(path, content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert refusal(response)["type"] == "invalid_request_error"


def test_strange_but_whole_requests_never_fail(server):
    deep = json.loads("[" * 150 + "]" * 150)
    call = {"type": "tool_use", "id": "a\0", "name": "f<>\n", "input": {"x": deep, "": None}}
    for fields in (
        {"messages": [{"role": "user", "content": "a\0b\x1b<|im_end|>"}]},
        {"messages": [{"role": "user", "content": []}]},
        {"messages": [{"role": "system", "content": ""}]},
        {"messages": [{"role": "system", "content": [{"type": "text", "text": "S"}]}]},
        {"messages": [*HI, {"role": "assistant", "content": []}, *HI]},
        {"messages": [*HI, {"role": "assistant", "content": [call]}, *HI]},
        {"messages": HI, "tools": [{"name": "f\0", "input_schema": {"type": 5, "properties": 5}}]},
        {"messages": HI, "tools": [{"name": "f", "input_schema": {"properties": {"x": {"enum": deep}}}}]},
        {"messages": HI, "stop_sequences": ["", "\0"], "stop": ["x"]},
    ):
        for path in (MESSAGES, f"{MESSAGES}/count_tokens"):
            assert server.post(path, json=fields).status_code in (200, 400), fields


def test_too_long_a_prompt_says_the_numbers_that_claude_code_reads(server):
    for stream in (False, True):
        messages = [{"role": "user", "content": "x" * 3000}]
        response = server.post(MESSAGES, json={"messages": messages, "stream": stream})
        assert response.status_code == 400
        message = refusal(response)["message"]
        assert "maximum context length is 2048 tokens" in message
        count = server.post(f"{MESSAGES}/count_tokens", json={"messages": messages}).json()["input_tokens"]
        assert f"prompt is too long: {count} tokens > 2047 maximum" in message


def test_errors_before_the_route_have_the_same_shape(server):
    body = json.dumps({"messages": [{"role": "user", "content": "x" * 200_000}]}).encode()
    large = server.post(MESSAGES, content=body, headers={"content-type": "application/json"})
    assert (large.status_code, refusal(large)["type"]) == (413, "request_too_large")
    missing = server.post(f"{MESSAGES}/batches", json={})
    assert (missing.status_code, refusal(missing)["type"]) == (404, "not_found_error")
    wrong = server.get(MESSAGES)
    assert (wrong.status_code, refusal(wrong)["type"]) == (405, "invalid_request_error")
    other = server.get("/v1/messaging").json()
    assert other["error"].keys() == {"message", "type", "param", "code"}, "other paths keep OpenAI's"


def test_the_key_in_either_header():
    ask = {"model": "m", "max_tokens": 9, "messages": HI}
    with serve(ScriptedModel("a", "b"), api_key="sesame") as url:
        for good in ({"api_key": "sesame"}, {"auth_token": "sesame"}):
            with anthropic.Anthropic(base_url=url, max_retries=0, **good) as client:
                assert client.messages.create(**ask).stop_reason == "end_turn"
        with anthropic.Anthropic(base_url=url, max_retries=0, api_key="wrong") as client:
            with pytest.raises(anthropic.AuthenticationError) as caught:
                client.messages.create(**ask)
            assert refusal(httpx.post(url + MESSAGES, json={}))["type"] == "authentication_error"
    assert caught.value.body["error"]["type"] == "authentication_error"


def test_anthropics_client_raises_its_own_errors():
    ask = {"model": "m", "max_tokens": 9}
    with anthropic_client_of(ScriptedModel(max_context=512)) as client:
        with pytest.raises(anthropic.BadRequestError, match="messages"):
            client.messages.create(**ask, messages=[])
        with pytest.raises(anthropic.BadRequestError, match="prompt is too long"):
            client.messages.create(**ask, messages=[{"role": "user", "content": "x" * 600}])
        with pytest.raises(anthropic.NotFoundError):
            client.messages.batches.list()
