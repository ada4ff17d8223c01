"""The names that a model goes by: listed, looked up, and carried by replies."""

import json

import httpx
import pytest
from serving import client_of, serve

from lathe.errors import UserError
from lathe.server.app import create_app
from lathe.testing import ScriptedModel

ALIASES = ("gpt-5-mini", "Qwen/Qwen3-Coder-30B-A3B-Instruct")
TURN = [{"role": "user", "content": "Hi."}]


def test_every_name_is_listed_and_answers():
    with client_of(ScriptedModel(), aliases=ALIASES) as client:
        listed = client.models.list().data
        assert [model.id for model in listed] == ["scripted", *ALIASES]
        for model in listed:
            found = client.models.retrieve(model.id)
            assert found == model
            assert found.max_model_len == 32_768


def test_an_unknown_name_is_told_which_there_are():
    with serve(ScriptedModel(), aliases=ALIASES) as url:
        reply = httpx.get(f"{url}/v1/models/gpt-4")
    assert reply.status_code == 404
    for name in ("scripted", *ALIASES):
        assert name in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    ("asked", "answered"),
    [
        ("scripted", "scripted"),
        (ALIASES[0], ALIASES[0]),
        (ALIASES[1], ALIASES[1]),
        ("claude-haiku", "scripted"),
        ("", "scripted"),
    ],
)
def test_a_reply_carries_the_name_that_was_asked_for_if_it_is_one(asked, answered):
    with client_of(ScriptedModel("Hi.", "Hi."), aliases=ALIASES) as client:
        assert client.chat.completions.create(model=asked, messages=TURN).model == answered
        chunks = list(client.chat.completions.create(model=asked, messages=TURN, stream=True))
    assert {chunk.model for chunk in chunks} == {answered}


def test_without_a_name_the_models_own():
    with serve(ScriptedModel("Hi."), aliases=ALIASES) as url:
        reply = httpx.post(
            f"{url}/v1/chat/completions",
            content=json.dumps({"messages": TURN}),
            headers={"Content-Type": "application/json"},
        )
    assert reply.json()["model"] == "scripted"


def test_a_name_given_twice_is_one_and_an_empty_one_is_refused():
    with client_of(ScriptedModel(), aliases=["a", "scripted", "a"]) as client:
        assert [model.id for model in client.models.list()] == ["scripted", "a"]
    with pytest.raises(UserError, match="--alias"):
        create_app(ScriptedModel(), aliases=[" "])
