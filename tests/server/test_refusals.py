"""What the server refuses, and how: OpenAI's JSON, the right status, never a 500, and help in the words."""

import json
import logging
import socket

import httpx
import openai
import pytest
from serving import client_of, serve

from lathe.engine.engine import EngineClosed
from lathe.errors import UserError
from lathe.server import run
from lathe.server.errors import BadRequest
from lathe.testing import ScriptedModel

CHAT = "/v1/chat/completions"
HI = [{"role": "user", "content": "Hi."}]


@pytest.fixture(scope="module")
def server():
    with (
        serve(ScriptedModel(max_context=2048), max_body_bytes=100_000) as url,
        httpx.Client(base_url=url) as http,
    ):
        yield http


def refusal(response: httpx.Response) -> dict:
    """The error, once it is sure to have OpenAI's shape."""
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"message", "type", "param", "code"}
    return body["error"]


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"temperature": -0.1}, "temperature", "greater than or equal to 0"),
        ({"temperature": "hot"}, "temperature", "valid number"),
        ({"temperature": True}, "temperature", "valid number"),
        ({"top_p": 1.1}, "top_p", "less than or equal to 1"),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"top_k": 2.5}, "top_k", "valid integer"),
        ({"min_p": 2}, "min_p", "less than or equal to 1"),
        ({"repetition_penalty": 0}, "repetition_penalty", "greater than 0"),
        ({"presence_penalty": 3}, "presence_penalty", "less than or equal to 2"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"n": 1000}, "n", "less than or equal to 128"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"seed": 2**80}, "seed", "less than or equal to"),
        ({"stop": 5}, "stop", "valid string"),
        ({"stop": [5]}, "stop.0", "valid string"),
        ({"stop_token_ids": [-1]}, "stop_token_ids.0", "greater than or equal to 0"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "less than or equal to 20"),
        ({"top_logprobs": 2}, "top_logprobs", "needs logprobs"),
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": None}, "messages", "valid list"),
        ({"messages": [{"role": "robot", "content": ""}]}, "messages.0.role", "'assistant'"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content", "valid string"),
        (
            {"messages": [{"role": "user", "content": [{"text": "?"}]}]},
            "messages.0.content.0.type",
            "required",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages.0.content.0",
            "needs a text",
        ),
        ({"tools": [{"type": "function"}]}, "tools.0.function", "needs a function"),
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools.0.function.name", "at least 1"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "not supported yet"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages", "can't be set"),
    ],
)
def test_a_wrong_field_is_named(server, fields, param, words):
    response = server.post(CHAT, json={"messages": HI, **fields})
    error = refusal(response)
    assert response.status_code == 400
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert words in error["message"]


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file"])
def test_pictures_and_sound_are_refused_in_words(server, kind):
    parts = [{"type": "text", "text": "What is this?"}, {"type": kind, kind: {"url": "data:,"}}]
    response = server.post(CHAT, json={"messages": [{"role": "user", "content": parts}]})
    assert response.status_code == 400
    assert "this model reads text" in refusal(response)["message"]
    assert refusal(response)["param"] == "messages.0.content.1"


def deep(levels: int) -> str:
    return "[" * levels + "]" * levels


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"\xff\xfe",
        b'{"messages": "x"}',
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"messages": [{"role": "\\ud800", "content": ""}]}',
        b'{"messages": [{"role": "user", "content": "x"}], "\\ud800": 1, "stop": ["\\udfff"]}',
        b'{"messages": [{"role": "user", "content": [{"type": "\\ud800"}]}]}',
        b'{"messages": [{"role": "user", "content": "x"}], "tool_choice": "\\ud800"}',
        b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
        b'{"messages": [{"role": "user", "content": "x"}], "temperature": 1e999}',
        b'{"messages": [{"role": "user", "content": "x"}], "seed": ' + b"9" * 5000 + b"}",
        deep(20_000).encode(),
        ('{"messages": [{"role": "user", "content": ' + deep(900) + "}]}").encode(),
    ],
)
def test_a_damaged_body_is_a_400(server, body):
    response = server.post(CHAT, content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert refusal(response)["type"] == "invalid_request_error"


def called(arguments: str) -> dict:
    return {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [{"role": "user", "content": "a\0b\x1b"}]},
        {
            "messages": HI,
            "tools": [{"type": "function", "function": {"name": "f\0", "parameters": {"type": 5}}}],
        },
        {
            "messages": HI,
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {"properties": 5}}}],
        },
        {
            "messages": HI,
            "chat_template_kwargs": {"a": {"b": [None]}, "enable_thinking": "yes", "bos_token": 5},
        },
        {"messages": HI, "chat_template_kwargs": {"raise_exception": 1, "tojson": 2, "range": 3}},
        {"messages": [*HI, called('{"x":' + deep(700) + "}")]},
        {"messages": [*HI, called('{"x":' + "[" * 50_000)]},
        {"messages": [*HI, called('{"x": "\\ud800", "\\udfff": {"y": "\\ud800"}}')]},
        {"messages": [*HI, called("[1]")]},
        {"messages": [*HI, called("NaN")]},
        {"messages": [*HI, called('{"x": 1e999}')]},
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_strange_but_whole_requests_never_fail(server, fields, stream):
    assert server.post(CHAT, json={**fields, "stream": stream}).status_code in (200, 400)


def test_tools_nested_too_deeply(server):
    schema = json.loads(deep(400))
    tools = [
        {"type": "function", "function": {"name": "f", "parameters": {"properties": {"x": {"enum": schema}}}}}
    ]
    assert server.post(CHAT, json={"messages": HI, "tools": tools}).status_code in (200, 400)


def test_json_must_be_announced_as_json(server):
    # A web page may post text/plain to localhost without asking; for JSON its browser asks first.
    response = server.post(CHAT, content=json.dumps({"messages": HI}), headers={"content-type": "text/plain"})
    assert response.status_code == 400
    assert "Content-Type: application/json" in refusal(response)["message"]


def test_too_long_a_prompt_says_the_numbers(server):
    for stream in (False, True):
        body = {"messages": [{"role": "user", "content": "x" * 3000}], "stream": stream}
        response = server.post(CHAT, json=body)
        assert response.status_code == 400
        assert refusal(response)["code"] == "context_length_exceeded"
        assert "maximum context length is 2048 tokens" in refusal(response)["message"]


def test_a_body_over_the_limit(server):
    body = json.dumps({"messages": [{"role": "user", "content": "x" * 200_000}]}).encode()
    announced = server.post(CHAT, content=body, headers={"content-type": "application/json"})
    pieces = server.post(CHAT, content=iter([body]), headers={"content-type": "application/json"})
    for response in (announced, pieces):
        assert response.status_code == 413
        assert "100000 bytes" in refusal(response)["message"]


def test_unknown_paths_and_methods_say_what_there_is(server):
    missing = server.get("/v1/chat")
    wrong = server.get(CHAT)
    assert (missing.status_code, wrong.status_code) == (404, 405)
    assert wrong.headers["allow"] == "POST"
    for response in (missing, wrong):
        assert "POST /v1/chat/completions" in refusal(response)["message"]
    unknown = server.get("/v1/models/gpt-5")
    assert unknown.status_code == 404
    assert refusal(unknown)["code"] == "model_not_found"
    assert server.options(CHAT).status_code == 405, "no CORS: a web page's script is not let in"


def test_the_key_guards_everything_but_health():
    key = "sésame 1"
    with serve(ScriptedModel("a", "b"), api_key=key) as url, httpx.Client(base_url=url) as http:
        assert http.get("/health").json() == {"status": "ok"}
        for path in ("/v1/models", "/openapi.json", "/nothing", "/health/", "/docs"):
            assert http.get(path).status_code == 401, path
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": key.encode()},
            {"x-api-key": "no"},
        ):
            response = http.post(CHAT, json={"messages": HI}, headers=headers)
            assert response.status_code == 401
            assert refusal(response)["code"] == "invalid_api_key"
        for headers in ({"Authorization": f"Bearer {key}".encode()}, {"x-api-key": key.encode()}):
            assert http.post(CHAT, json={"messages": HI}, headers=headers).status_code == 200
    with pytest.raises(BadRequest, match="empty"), serve(ScriptedModel(), api_key=""):
        pass


def test_openais_client_raises_its_own_errors(ask):
    with client_of(ScriptedModel(max_context=512)) as client:
        with pytest.raises(openai.BadRequestError, match="greater than or equal to 0"):
            client.chat.completions.create(**ask, temperature=-1)
        with pytest.raises(openai.NotFoundError):
            client.embeddings.create(model="m", input="x")
        with pytest.raises(openai.NotFoundError, match="scripted"):
            client.models.retrieve("other")


class Boom(Exception):
    pass


@pytest.mark.parametrize(("error", "status"), [(Boom("a secret"), 500), (EngineClosed("closing"), 503)])
def test_a_bug_is_logged_and_not_shown(error, status, caplog, ask):
    model = ScriptedModel("abc")

    def submit(*_):
        raise error

    model.engine.submit = submit
    with serve(model) as url, caplog.at_level(logging.ERROR):
        whole = httpx.post(url + CHAT, json=ask)
        streamed = httpx.post(url + CHAT, json={**ask, "stream": True})
    assert whole.status_code == status
    assert "secret" not in whole.text + streamed.text
    last = [line for line in streamed.text.splitlines() if line.startswith("data: ")][-1]
    assert json.loads(last.removeprefix("data: "))["error"].keys() == {"message", "type", "param", "code"}
    assert "[DONE]" not in streamed.text
    if status == 500:
        assert caplog.text.count("a secret") >= 2, "both tracebacks are in the log"


def test_an_error_in_mid_stream_reaches_openais_client(ask):
    model = ScriptedModel("a long reply", delay_s=0.02)
    with client_of(model) as client:
        stream = client.chat.completions.create(**ask, stream=True)
        next(stream)
        model.engine.submit = None
        with pytest.raises(openai.APIError, match="traceback"):
            list(client.chat.completions.create(**ask, stream=True))
        stream.close()


def test_a_port_in_use_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"{port}.*--port"):
            run.bind("127.0.0.1", port)
    with pytest.raises(UserError, match="--host"):
        run.bind("no.such.host.invalid", 0)
    with pytest.raises(UserError, match="--port"):
        run.bind("127.0.0.1", 70_000)
