"""A chat goes on from the ids that its client holds, and gives the ids that it read and sampled."""

import httpx
import pytest
from serving import client_of, serve

from lathe.client import ChatClient
from lathe.jsonl import read_rollouts
from lathe.testing import ScriptedModel
from lathe.types import Message, SamplingParams, Trajectory

TURNS = Trajectory((Message("user", "Hi."),))


async def talk(url: str, num_turns: int) -> Trajectory:
    trajectory = TURNS
    sampling = SamplingParams(temperature=0.8, max_tokens=40, seed=1)
    async with ChatClient(url) as client:
        for _ in range(num_turns):
            trajectory = trajectory.extend(await client.complete(trajectory, sampling), sampling)
            trajectory = trajectory.add(Message("user", "And now?"))
    return trajectory


@pytest.mark.parametrize("record", [False, True])
async def test_random_weights(llm, tmp_path, record):
    """Random bytes are mostly no text: what the client sends back could never be tokenized to them."""
    prompts = []
    submit = llm.engine.submit
    llm.engine.submit = lambda prompt, *rest, **more: (prompts.append(prompt), submit(prompt, *rest, **more))[
        1
    ]
    with serve(llm, **({"record": tmp_path} if record else {})) as url:
        trajectory = await talk(url, 3)
    assert [trajectory.token_ids[: segment.start] for segment in trajectory.segments] == prompts
    assert sum(trajectory.loss_mask) == sum(s.stop - s.start for s in trajectory.segments)
    if record:
        (rollout,) = read_rollouts(tmp_path)
        (recorded,) = rollout.trajectories
        assert recorded.token_ids == trajectory.token_ids
        assert recorded.loss_mask == trajectory.loss_mask
        assert recorded.logprobs == trajectory.logprobs


async def test_another_server_records_it_without_a_parent_that_is_not_there(llm, tmp_path):
    """The client's ids are of a conversation that this server has not seen."""
    model = ScriptedModel("One.", "Two.")
    with serve(model) as url:
        trajectory = await talk(url, 1)
    with serve(ScriptedModel("Three."), record=tmp_path) as url:
        async with ChatClient(url) as client:
            completion = await client.complete(trajectory)
    assert completion.prompt_token_ids[: len(trajectory.token_ids)] == trajectory.token_ids
    (rollout,) = read_rollouts(tmp_path)
    (recorded,) = rollout.trajectories
    assert recorded.parent is None
    assert recorded.token_ids == completion.prompt_token_ids + completion.token_ids


def test_whole_and_streamed_replies_give_the_same_ids(ask):
    model = ScriptedModel("Hé.", "Hé.")
    with client_of(model) as client:
        body = {**ask, "extra_body": {"return_token_ids": True}}
        (whole,) = client.chat.completions.create(**body).choices
        pieces = [c.choices[0].model_extra for c in client.chat.completions.create(**body, stream=True)]
    ids = [token_id for piece in pieces for token_id in piece.get("token_ids", ())]
    logprobs = [logprob for piece in pieces for logprob in piece.get("token_logprobs", ())]
    assert ids == whole.model_extra["token_ids"] and ids[:4] == list("Hé.".encode())
    assert logprobs == whole.model_extra["token_logprobs"] == [0.0] * len(ids)
    assert tuple(whole.model_extra["prompt_token_ids"]) == model.engine.prompts[0]
    assert pieces[0]["prompt_token_ids"] == whole.model_extra["prompt_token_ids"]
    assert pieces[-1]["is_exact"] is True is whole.model_extra["is_exact"]


def test_ids_are_given_to_nobody_who_did_not_ask(ask):
    with client_of(ScriptedModel("Hi.")) as client:
        assert "token_ids" not in client.chat.completions.create(**ask).choices[0].model_extra


def test_ids_that_the_model_has_no_row_for_are_refused(ask):
    with serve(ScriptedModel("Hi.")) as url:
        response = httpx.post(f"{url}/v1/chat/completions", json={**ask, "known_token_ids": [1, 999_999]})
        assert response.status_code == 400
        assert "known_token_ids" in response.json()["error"]["message"]
        response = httpx.post(f"{url}/v1/chat/completions", json={**ask, "known_token_ids": [-1]})
        assert response.status_code == 400


def test_ids_of_another_conversation_change_nothing(ask):
    model = ScriptedModel("Hi.", "Hi.")
    with serve(model) as url:
        for known in ([], [1, 2, 3]):
            httpx.post(f"{url}/v1/chat/completions", json={**ask, "known_token_ids": known})
    assert model.engine.prompts[0] == model.engine.prompts[1]
