"""/tokenize and /detokenize, as clients of llama.cpp and of vLLM ask them."""

import httpx
import pytest
from serving import serve

from lathe.testing import ScriptedModel


@pytest.fixture(scope="module")
def model():
    return ScriptedModel("Hello.", max_context=256)


@pytest.fixture(scope="module")
def server(model):
    with serve(model) as url, httpx.Client(base_url=url) as http:
        yield http


def tokens(server: httpx.Client, **body) -> dict:
    response = server.post("/tokenize", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def test_llama_cpps_shape(server, model):
    assert tokens(server, content="aé", add_special=True) == {
        "tokens": list("aé".encode()),
        "count": 3,
        "max_model_len": 256,
    }
    mark = model.tokenizer.special_tokens["<|im_end|>"]
    assert tokens(server, content="a<|im_end|>")["tokens"] == [97, mark]
    assert tokens(server, content="<|im_end|>", parse_special=False)["tokens"] == list(b"<|im_end|>")
    assert tokens(server, content="a€", with_pieces=True)["tokens"] == [
        {"id": 97, "piece": "a"},
        {"id": 0xE2, "piece": [0xE2]},
        {"id": 0x82, "piece": [0x82]},
        {"id": 0xAC, "piece": [0xAC]},
    ]
    assert tokens(server, content="")["tokens"] == []


def test_vllms_shape(server, model):
    assert tokens(server, model="m", prompt="ab<|im_end|>", add_special_tokens=True)["count"] == 3
    messages = [{"role": "user", "content": "Hi <|im_end|>."}]
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    open_turn = tokens(server, messages=messages)["tokens"]
    closed = tokens(server, messages=messages, add_generation_prompt=False)["tokens"]
    assert open_turn[: len(closed)] == closed
    assert len(open_turn) > len(closed)
    assert tokens(server, messages=messages, tools=[tool])["count"] > len(open_turn)


def test_a_conversation_has_the_ids_that_a_chat_would_have(server, model):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi."}]
    ids = tokens(server, messages=messages)["tokens"]
    assert server.post("/v1/chat/completions", json={"messages": messages}).status_code == 200
    assert model.engine.prompts[-1] == tuple(ids)


def test_what_is_longer_than_the_context_is_counted(server):
    assert tokens(server, prompt="x" * 1000)["count"] == 1000
    assert tokens(server, messages=[{"role": "user", "content": "x" * 1000}])["count"] > 1000


def test_and_back(server):
    text = "a <|im_start|> é€👍🏽"
    body = {"tokens": tokens(server, content=text)["tokens"]}
    assert server.post("/detokenize", json=body).json() == {"content": text, "prompt": text}
    assert server.post("/detokenize", json={"tokens": []}).json()["content"] == ""
    assert server.post("/detokenize", json={"tokens": [0xE2]}).json()["content"] == "\ufffd"


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"content": "a", "prompt": "b"}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": ""}]}, "messages"),
        ("/tokenize", {"content": ["a"]}, "content"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"messages": [{"role": "robot"}]}, "messages.0.role"),
        (
            "/tokenize",
            {"messages": [{"role": "user", "content": [{"type": "audio"}]}]},
            "messages.0.content.0",
        ),
        (
            "/tokenize",
            {"messages": [{"role": "assistant", "content": "a"}], "continue_final_message": True},
            "continue_final_message",
        ),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": "abc"}, "tokens"),
        ("/detokenize", {"tokens": [1, -1]}, "tokens.1"),
        ("/detokenize", {"tokens": [1, 271]}, "tokens"),
    ],
)
def test_a_wrong_field_is_named(server, path, body, param):
    response = server.post(path, json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
