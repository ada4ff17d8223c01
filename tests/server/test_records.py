"""What is recorded of conversations over a socket, with OpenAI's client. The model's words are scripted.

HIDDEN is a control token: it is sampled, but no client sees it. A prompt that holds it was made of the exact
ids; one that was rendered from messages anew can't.
"""

import json
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from serving import client_of, post, read_until, serve, wait_until

from lathe.errors import UserError
from lathe.jsonl import read_rollouts
from lathe.server.app import create_app
from lathe.testing import ScriptedModel
from lathe.text.chat_template import ChatTemplate
from lathe.types import Rollout, SamplingParams, Trajectory

HIDDEN = "<|fim_pad|>"
TEMPLATES = Path(__file__).parents[1] / "text" / "templates"
SYSTEM = {"role": "system", "content": "You are an agent."}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": {"path": {"type": "string"}, "n": {"type": "number"}},
            },
        },
    }
    for name in ("read", "write")
]


def call_text(path: str, name: str = "read") -> str:
    return (
        f"<tool_call>\n<function={name}>\n<parameter=path>\n{path}\n</parameter>\n</function>\n</tool_call>"
    )


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def result(text: str, call_id: str = "") -> dict:
    return {"role": "tool", "content": text, "tool_call_id": call_id}


def ask(client, messages, **options) -> dict:
    """One turn. Returns the assistant's message as a client would send it back."""
    reply = client.chat.completions.create(model="m", messages=messages, **options)
    return reply.choices[0].message.model_dump(exclude_none=True)


def trajectories(folder) -> dict[str, Trajectory]:
    return {each.id: each for rollout in read_rollouts(folder) for each in rollout.trajectories}


def sampled(trajectory: Trajectory, model) -> list[str]:
    """What the model said, reply by reply."""
    return [model.tokenizer.decode(list(trajectory.token_ids[s.start : s.stop])) for s in trajectory.segments]


def check(rollout: Rollout) -> None:
    """What holds for every record."""
    known = {trajectory.id for trajectory in rollout.trajectories}
    for trajectory in rollout.trajectories:
        marked = [place for segment in trajectory.segments for place in range(segment.start, segment.stop)]
        assert [place for place, mask in enumerate(trajectory.loss_mask) if mask] == marked
        assert len(trajectory.token_ids) == len(trajectory.loss_mask) == len(trajectory.logprobs)
        assert trajectory.parent is None or trajectory.parent in known


def only(folder) -> Rollout:
    (rollout,) = read_rollouts(folder)
    check(rollout)
    return rollout


# One conversation


def test_three_turns_with_tools_are_one_trajectory_of_exact_tokens(tmp_path):
    model = ScriptedModel(
        HIDDEN + "Let me see.\n" + call_text("a.py"), HIDDEN + call_text("b.py", "write"), "Done."
    )
    with client_of(model, record=tmp_path) as client:
        talk = [SYSTEM, user("Fix it.")]
        for answer in ("one\ntwo", "written", None):
            message = ask(client, talk, tools=TOOLS)
            talk += [message]
            talk += [result(answer, message["tool_calls"][0]["id"])] if answer else []
    rollout = only(tmp_path)
    (trajectory,) = rollout.trajectories
    assert [message.role for message in trajectory.messages] == [
        *("system", "user", "assistant", "tool", "assistant", "tool", "assistant")
    ]  # fmt: skip
    assert trajectory.messages[2].tool_calls[0].arguments == {"path": "a.py"}
    assert [tool.name for tool in trajectory.tools] == ["read", "write"]
    assert [segment.finish_reason for segment in trajectory.segments] == ["tool_calls", "tool_calls", "stop"]
    assert trajectory.segments[0].sampling == SamplingParams()
    assert (rollout.stop_reason, rollout.model, rollout.verdict) == ("stop", "scripted", None)
    assert rollout.info == {"dialect": "chat", "session": None}
    # Each prompt is the one before, and what was sampled then, token for token.
    assert sampled(trajectory, model)[0].startswith(HIDDEN)
    for prompt, segment in zip(model.engine.prompts, trajectory.segments, strict=True):
        assert trajectory.token_ids[: segment.start] == prompt
    text = model.tokenizer.decode(list(trajectory.token_ids))
    assert text.count(HIDDEN) == 2
    assert "</tool_call><|im_end|>\n<|im_start|>user\n<tool_response>\none\ntwo\n</tool_response>" in text


def without_ids(message: dict) -> dict:
    calls = [{"function": call["function"]} for call in message["tool_calls"]]
    return {**message, "tool_calls": calls}


def other_json(message: dict) -> dict:
    """As a client in JavaScript writes it, which has parsed the arguments, and its text's ends trimmed."""
    calls = [
        {
            **call,
            "id": f"renamed_{place}",
            "function": {
                "name": call["function"]["name"],
                "arguments": json.dumps(json.loads(call["function"]["arguments"]), indent=2, sort_keys=True),
            },
        }
        for place, call in enumerate(message["tool_calls"])
    ]
    content = [{"type": "text", "text": message["content"].strip()}]
    return {"role": "assistant", "content": content, "tool_calls": calls, "refusal": None}


def in_two_messages(message: dict) -> list[dict]:
    return [{"role": "assistant", "content": message["content"]}, {**message, "content": None}]


@pytest.mark.parametrize("rewrite", [dict, without_ids, other_json, in_two_messages])
def test_a_reply_is_known_again_whatever_json_it_comes_back_in(tmp_path, rewrite):
    model = ScriptedModel(f"{HIDDEN}Both.\n{call_text('a')}\n{call_text('b')}", "Done.")
    with client_of(model, record=tmp_path) as client:
        talk = [user("Hi.")]
        rewritten = rewrite(ask(client, talk, tools=TOOLS))
        talk += rewritten if isinstance(rewritten, list) else [rewritten]
        ask(client, [*talk, result("1"), result("2")], tools=TOOLS)
    (trajectory,) = only(tmp_path).trajectories
    assert len(trajectory.segments) == 2
    assert HIDDEN in model.tokenizer.decode(list(model.engine.prompts[1]))
    assert [len(message.tool_calls) for message in trajectory.messages] == [0, 2, 0, 0, 0]


def test_a_conversation_may_change_its_dialect(tmp_path):
    model = ScriptedModel(f"{HIDDEN}Now.\n{call_text('a')}", f"{HIDDEN}Done.", "Bye.")
    function = TOOLS[0]["function"]
    with serve(model, record=tmp_path) as url:
        asked = [user("Hi.")]
        reply = httpx.post(f"{url}/v1/chat/completions", json={"messages": asked, "tools": TOOLS[:1]}).json()
        message = reply["choices"][0]["message"]
        call_id = message["tool_calls"][0]["id"]
        tool = {"name": "read", "input_schema": function["parameters"]}
        call = {"type": "tool_use", "id": call_id, "name": "read", "input": {"path": "a"}}
        said = [{"type": "text", "text": message["content"]}, call]
        asked = [*asked, {"role": "assistant", "content": said}]
        asked += [user([{"type": "tool_result", "tool_use_id": call_id, "content": "one"}])]
        body = {"messages": asked, "tools": [tool], "max_tokens": 100, "model": "m"}
        text = httpx.post(f"{url}/v1/messages", json=body).json()["content"][0]["text"]
        items = [
            user("Hi."),
            {"role": "assistant", "content": message["content"]},
            {"type": "function_call", "call_id": call_id, "name": "read", "arguments": '{"path":"a"}'},
            {"type": "function_call_output", "call_id": call_id, "output": "one"},
            {"role": "assistant", "content": text},
            user("Thanks."),
        ]
        body = {"input": items, "tools": [{"type": "function", **function}]}
        assert httpx.post(f"{url}/v1/responses", json=body).status_code == 200
    (trajectory,) = only(tmp_path).trajectories
    assert sampled(trajectory, model)[1:] == [f"{HIDDEN}Done.<|im_end|>", "Bye.<|im_end|>"]
    assert model.tokenizer.decode(list(model.engine.prompts[2])).count(HIDDEN) == 2


def test_streamed_replies_are_recorded_as_whole_ones(tmp_path):
    texts = [f"{HIDDEN}Grüße 🎈", "Noch was?"]
    for stream, folder in ((True, tmp_path / "streamed"), (False, tmp_path / "whole")):
        model = ScriptedModel(*texts)
        with client_of(model, record=folder) as client:
            talk = [user("Hi.")]
            for _ in range(2):
                reply = client.chat.completions.create(model="m", messages=talk, stream=stream)
                chunks = list(reply) if stream else []
                text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
                text = text or reply.choices[0].message.content
                talk += [{"role": "assistant", "content": text}, user("And?")]
    (streamed,), (whole,) = only(tmp_path / "streamed").trajectories, only(tmp_path / "whole").trajectories
    assert streamed.token_ids == whole.token_ids
    assert streamed.segments == whole.segments
    assert streamed.messages == whole.messages
    assert [HIDDEN in text for text in sampled(streamed, model)] == [True, False]


def test_what_is_new_is_all_that_a_turn_adds_to_the_file(tmp_path):
    model = ScriptedModel(*["word " * 20] * 30)
    talk = [user("x" * 20_000)]
    with client_of(model, record=tmp_path) as client:
        for _ in range(30):
            talk += [ask(client, talk), user("more")]
    (path,) = tmp_path.iterdir()
    first, *others = path.read_bytes().splitlines()
    assert len(first) > 20_000
    assert all(len(line) < 5_000 for line in others)
    assert len(only(tmp_path).trajectories[0].segments) == 30


def test_a_record_is_for_its_owner_alone(tmp_path):
    folder = tmp_path / "new" / "folder"
    with client_of(ScriptedModel("a"), record=folder) as client:
        ask(client, [user("Hi.")])
    (path,) = folder.iterdir()
    assert folder.stat().st_mode & 0o077 == 0
    assert path.stat().st_mode & 0o077 == 0


# Where conversations part


def test_an_edited_past_begins_a_new_trajectory(tmp_path):
    model = ScriptedModel(*[f"{HIDDEN}{place}" for place in range(4)])
    with client_of(model, record=tmp_path) as client:
        talk = [user("Hi.")]
        talk += [ask(client, talk), user("And?")]
        talk += [ask(client, talk), user("So?")]
        edited = [*talk[:3], {"role": "assistant", "content": "Something else."}, user("So?")]
        ask(client, edited)
        ask(client, [*talk[:2], user("Instead?")])
    first, edited, other = only(tmp_path).trajectories
    assert sampled(first, model) == [f"{HIDDEN}0<|im_end|>", f"{HIDDEN}1<|im_end|>"]
    assert sampled(edited, model) == [f"{HIDDEN}2<|im_end|>"]
    assert (first.parent, edited.parent, other.parent) == (None, first.id, first.id)
    # The client wrote that turn: nothing of it is exact, and none of the prompt is marked.
    assert HIDDEN not in model.tokenizer.decode(list(edited.token_ids[: edited.segments[0].start]))
    # A fork from the first reply shares its exact tokens.
    assert other.token_ids[: first.segments[0].stop] == first.token_ids[: first.segments[0].stop]


def test_parallel_requests_are_all_kept(tmp_path):
    model = ScriptedModel("first", *[f"{HIDDEN}{place}" for place in range(8)], delay_s=0.001)
    with client_of(model, record=tmp_path) as client, ThreadPoolExecutor(8) as pool:
        talk = [SYSTEM, user("Hi.")]
        talk += [ask(client, talk), user("And?")]
        list(pool.map(lambda _: ask(client, talk), range(8)))
    trajectories = only(tmp_path).trajectories
    assert len(trajectories) == 8
    (main,) = [each for each in trajectories if each.parent is None]
    assert {each.parent for each in trajectories if each is not main} == {main.id}
    assert sorted(sampled(each, model)[-1] for each in trajectories) == [
        f"{HIDDEN}{n}<|im_end|>" for n in range(8)
    ]
    assert sum(sum(each.loss_mask) for each in trajectories) == 6 + 8 * 3, "each sampled token is marked once"


def test_n_replies_are_rollouts_of_their_own_and_each_can_go_on(tmp_path):
    model = ScriptedModel("one", "two", "three", "fine", "fine")
    with client_of(model, record=tmp_path) as client:
        reply = client.chat.completions.create(model="m", messages=[user("Hi.")], n=3, seed=7)
        for choice in reply.choices[1:]:
            message = choice.message.model_dump(exclude_none=True)
            ask(client, [user("Hi."), message, user(f"Why {choice.message.content}?")])
    rollouts = list(read_rollouts(tmp_path))
    assert len(rollouts) == 3
    said = {}
    for rollout in rollouts:
        check(rollout)
        (trajectory,) = rollout.trajectories
        said[trajectory.segments[0].sampling.seed] = [message.content for message in trajectory.messages]
        assert trajectory.segments[0].sampling.n == 1
    texts = [choice.message.content for choice in reply.choices]
    assert said[7] == ["Hi.", texts[0]]
    assert said[8] == ["Hi.", texts[1], f"Why {texts[1]}?", "fine"]
    assert said[9] == ["Hi.", texts[2], f"Why {texts[2]}?", "fine"]


def test_the_same_question_twice_is_two_attempts(tmp_path):
    model = ScriptedModel("same", "same", "same", "same")
    with client_of(model, record=tmp_path) as client:
        talks = [[user("Hi.")], [user("Hi.")]]
        for _ in range(2):
            for talk in talks:
                talk += [ask(client, talk), user("And?")]
    rollouts = list(read_rollouts(tmp_path))
    assert [len(rollout.trajectories[0].segments) for rollout in rollouts] == [2, 2]


def test_of_two_that_say_the_same_the_one_that_has_not_gone_on_goes_on(tmp_path):
    model = ScriptedModel("same", f"{HIDDEN}same", "a", "b")
    with client_of(model, record=tmp_path) as client:
        talks = [[user("Hi.")], [user("Hi.")]]
        for _ in range(2):
            for talk in talks:
                talk += [ask(client, talk), user("And?")]
    trajectories = [each for rollout in read_rollouts(tmp_path) for each in rollout.trajectories]
    said = [sampled(trajectory, model) for trajectory in trajectories]
    assert sorted(said) == [[f"{HIDDEN}same<|im_end|>", "b<|im_end|>"], ["same<|im_end|>", "a<|im_end|>"]]


def test_other_tools_are_another_prompt(tmp_path):
    model = ScriptedModel("a", "b")
    with client_of(model, record=tmp_path) as client:
        talk = [user("Hi.")]
        talk += [ask(client, talk, tools=TOOLS), user("A title for this, please.")]
        ask(client, talk)
    agent, title = only(tmp_path).trajectories
    assert (title.parent, title.tools) == (agent.id, ())


def test_a_call_that_was_kept_names_the_parent(tmp_path):
    """Agents that shorten their past keep its last turns; some change their first when they are resumed."""
    model = ScriptedModel(f"First.\n{call_text('a')}", call_text("b"), "Done.", "Who?")
    with client_of(model, record=tmp_path) as client:
        talk = [user("Fix it.")]
        for answer in ("one", "two"):
            message = ask(client, talk, tools=TOOLS)
            talk += [message, result(answer, message["tool_calls"][0]["id"])]
        ask(client, [user("So far you have read a."), *talk[-2:]], tools=TOOLS)
        stranger = {**message, "tool_calls": [{**message["tool_calls"][0], "id": "call_1"}]}
        ask(client, [user("I am somebody else."), stranger, result("two", "call_1")], tools=TOOLS)
    other, rollout = sorted(read_rollouts(tmp_path), key=lambda rollout: len(rollout.trajectories))
    first, compacted = rollout.trajectories
    check(rollout)
    assert compacted.parent == first.id
    assert [each.parent for each in other.trajectories] == [None]


def test_a_session_names_the_parents_of_what_shares_no_words(tmp_path):
    """A probe, the agent, its two sub-agents, and the agent after its past was compacted."""
    model = ScriptedModel(*"abcdef")
    probe = [user("Which topic is this?")]
    agent = [SYSTEM, user("Fix it.")]
    helper = [{"role": "system", "content": "You search."}, user("Where is it?")]
    compacted = [SYSTEM, user("So far you have found nothing. Go on.")]
    session = {"extra_headers": {"X-Session-Id": "s1"}}
    with client_of(model, record=tmp_path) as client:
        ask(client, probe, **session)
        ask(client, agent, tools=TOOLS, **session)
        ask(client, helper, tools=TOOLS[:1], **session)
        ask(client, helper, tools=TOOLS[:1], **session)
        ask(client, compacted, tools=TOOLS, **session)
        ask(client, [*helper[:1], user("Who calls it?")], tools=TOOLS[:1], **session)
        ask(client, agent, tools=TOOLS)
    with_session, without = sorted(
        read_rollouts(tmp_path), key=lambda rollout: rollout.info["session"] is None
    )
    check(with_session)
    assert with_session.info["session"] == "s1"
    agent, compacted = with_session.trajectories[1], with_session.trajectories[4]
    assert [each.parent for each in with_session.trajectories] == [
        *(None, None, agent.id, agent.id, agent.id, compacted.id)
    ]  # fmt: skip
    assert [each.parent for each in without.trajectories] == [None]


def test_raw_text_is_recorded_without_messages(tmp_path):
    model = ScriptedModel("one", "two", "again", "three", "else")
    with client_of(model, record=tmp_path) as client:

        def go_on(prompt: str, said: str) -> None:
            assert client.completions.create(model="m", prompt=prompt).choices[0].text == said

        go_on("a", "one")
        go_on("aone<|im_end|>b", "two")
        go_on("aone<|im_end|>b", "again")
        go_on("aone<|im_end|>btwo<|im_end|>c", "three")
        go_on("b", "else")
    rollouts = sorted(read_rollouts(tmp_path), key=lambda rollout: len(rollout.trajectories))
    for rollout in rollouts:
        check(rollout)
        assert all(trajectory.messages == () for trajectory in rollout.trajectories)
    assert [len(rollout.trajectories) for rollout in rollouts] == [1, 2]
    main, fork = rollouts[1].trajectories
    assert model.tokenizer.decode(list(main.token_ids)) == "aone<|im_end|>btwo<|im_end|>cthree<|im_end|>"
    assert model.tokenizer.decode(list(fork.token_ids)) == "aone<|im_end|>bagain<|im_end|>"
    assert (fork.parent, sum(fork.loss_mask)) == (main.id, 6)


def test_thoughts_stay_as_they_were_where_the_template_keeps_them(tmp_path):
    """Qwen3's template keeps the thoughts of a chain of calls, and drops them when the user speaks again.
    Most clients send none back."""
    template = ChatTemplate((TEMPLATES / "qwen3.jinja").read_text())
    thought = f"<think>\n{HIDDEN}Hm.\n</think>\n\n"
    call = '<tool_call>\n{"name": "read", "arguments": {"path": "a.py"}}\n</tool_call>'
    model = ScriptedModel(thought + call, thought + "Fine.", thought + "Bye.", template=template)
    with client_of(model, record=tmp_path) as client:
        talk = [user("Fix it.")]
        for answer in (result("print(1)"), user("Thanks."), None):
            message = ask(client, talk, tools=TOOLS)
            assert "Hm." in message.pop("reasoning_content")
            talk += [message, answer]
    chain, later = only(tmp_path).trajectories
    assert sampled(chain, model) == [f"{thought}{call}<|im_end|>", f"{thought}Fine.<|im_end|>"]
    assert [message.reasoning for message in chain.messages if message.role == "assistant"] == ["Hm."] * 2
    assert later.parent == chain.id
    assert HIDDEN not in model.tokenizer.decode(list(model.engine.prompts[2]))


# How replies end


def test_a_reply_that_max_tokens_cut_goes_on_exactly(tmp_path):
    model = ScriptedModel(f"{HIDDEN}abcdef", "fine")
    with client_of(model, record=tmp_path) as client:
        talk = [user("Hi.")]
        talk += [ask(client, talk, max_tokens=4), user("Go on.")]
        ask(client, talk)
    (trajectory,) = only(tmp_path).trajectories
    assert [segment.finish_reason for segment in trajectory.segments] == ["length", "stop"]
    text = model.tokenizer.decode(list(trajectory.token_ids))
    assert f"{HIDDEN}abc<|im_end|>\n<|im_start|>user\nGo on." in text
    assert sampled(trajectory, model)[0] == f"{HIDDEN}abc", "the template's end mark was not sampled"


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_is_recorded_as_far_as_it_came(tmp_path, stream):
    model = ScriptedModel("word " * 1000, "again", delay_s=0.002)
    body = {"messages": [user("Hi.")], "stream": stream}
    with serve(model, record=tmp_path) as url:
        connection = post(url, body)
        if stream:
            read_until(connection, b'"content":"w')
        assert wait_until(lambda: model.engine.num_open == 1)
        time.sleep(0.05)
        connection.close()
        assert wait_until(lambda: list(tmp_path.glob("*.jsonl")))
        httpx.post(f"{url}/v1/chat/completions", json={**body, "stream": False})
    cut, whole = sorted(read_rollouts(tmp_path), key=lambda rollout: rollout.stop_reason)
    assert (cut.stop_reason, whole.stop_reason) == ("abort", "stop")
    (trajectory,) = cut.trajectories
    assert 0 < sum(trajectory.loss_mask) < 5000
    assert sampled(trajectory, model) == [trajectory.messages[1].content]


def test_a_server_that_stops_records_what_was_said(tmp_path, llm):
    body = {"messages": [user("Hi.")], "ignore_eos": True}
    with serve(llm, record=tmp_path) as url:
        streamed, whole = post(url, {**body, "stream": True}), post(url, body)
        read_until(streamed, b'"content":"')
        assert wait_until(lambda: llm.engine.num_running == 2)
        time.sleep(0.1)
    streamed.close()
    whole.close()
    rollouts = list(read_rollouts(tmp_path))
    assert [rollout.stop_reason for rollout in rollouts] == ["abort", "abort"]
    for rollout in rollouts:
        check(rollout)
        assert sum(rollout.trajectories[0].loss_mask) > 5


def test_an_engine_that_stops_under_the_server_leaves_what_was_said(tmp_path, llm):
    with serve(llm, record=tmp_path) as url:
        connection = post(url, {"messages": [user("Hi.")], "ignore_eos": True, "stream": True})
        read_until(connection, b'"content":"')
        time.sleep(0.1)
        llm.close()
        assert wait_until(lambda: list(tmp_path.glob("*.jsonl")))
        connection.close()
    assert only(tmp_path).stop_reason == "abort"


def test_a_step_that_failed_is_no_rollout(tmp_path, llm, monkeypatch):
    def fail(shares):
        raise RuntimeError("a bug")

    monkeypatch.setattr(llm.engine.runner, "run", fail)
    with serve(llm, record=tmp_path) as url:
        reply = httpx.post(f"{url}/v1/chat/completions", json={"messages": [user("Hi.")]})
        assert reply.status_code == 500
        refused = httpx.post(f"{url}/v1/chat/completions", json={"messages": []})
        assert refused.status_code == 400
    assert list(tmp_path.iterdir()) == []


# When something is wrong with the folder, or the memory


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(UserError, match=r"Can't record in .*file"):
        create_app(ScriptedModel(), record=file)


def test_a_record_that_fails_harms_no_reply(tmp_path, caplog):
    folder = tmp_path / "records"
    model = ScriptedModel("a", "b", "c", "d")
    with client_of(model, record=folder) as client, caplog.at_level(logging.ERROR):
        talk = [user("Hi.")]
        talk += [ask(client, talk), user("And?")]
        folder.rename(tmp_path / "away")
        folder.touch()  # a file of that name: nothing can be written below it
        talk += [ask(client, talk), user("And?")]
        assert "was not recorded" in caplog.text
        folder.unlink()
        (tmp_path / "away").rename(folder)
        talk += [ask(client, talk), user("And?")]
        talk += [ask(client, talk)]
    before, after = sorted(read_rollouts(folder), key=lambda rollout: len(rollout.trajectories[0].messages))
    assert [message.content for message in before.trajectories[0].messages] == ["Hi.", "a"]
    assert sampled(after.trajectories[0], model) == ["c<|im_end|>", "d<|im_end|>"]
    check(after)
