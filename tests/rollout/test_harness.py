"""Other people's agents in a task's sandbox: their conversation becomes a rollout, token for token."""

import asyncio
import re
from pathlib import Path

import pytest
from rollout_tasks import UNSEEN, Watched, call, solution, word_task

from lathe.errors import UserError
from lathe.rollout import ForeignAgent, harness_rollout
from lathe.rollout.harness import take_record
from lathe.sandbox.spec import Bind
from lathe.server.app import create_app
from lathe.testing import FaultyPool, ScriptedModel

HERE = Path(__file__).parent
AGENT = ForeignAgent(
    ("python3", "/agent/foreign_agent.py", "{prompt}"), (Bind(str(HERE), "/agent"),), timeout_s=60.0
)


def with_sh(prompt: str) -> str:
    word = re.search(r"The word is \[([\w-]+)\]", prompt)[1]
    done = prompt.count("</tool_response>")
    if done == 0:
        return f"{UNSEEN}I look.\n{call('sh', line='cat words.py; hostname')}"
    if done == 1:
        line = f"cat > words.py <<'END'\n{solution(word)}END"
        return f"{UNSEEN}I write.\n{call('sh', line=line)}"
    return f"{UNSEEN}It returns {word}."


async def test_an_agent_of_another_house(pool, tmp_path):
    model, watched = ScriptedModel(answer=with_sh), Watched(pool)
    app = create_app(model, record=tmp_path)
    done = await harness_rollout(word_task("apple"), AGENT, app, tmp_path, watched, model="scripted")
    assert done.verdict.reward == 1.0, (done.verdict, done.info)
    assert done.stop_reason == "done" and done.task == "apple"
    assert done.info["patch"] == {"words.py": {"text": solution("apple")}}
    (trajectory,) = done.trajectories
    said = [
        model.tokenizer.decode(list(trajectory.token_ids[each.start : each.stop]))
        for each in trajectory.segments
    ]
    assert len(said) == 3 and all(each.startswith(UNSEEN) for each in said)
    assert trajectory.tools[0].name == "sh"
    assert done.info["turns"] == 3 and done.info["tokens"]["reply"] == sum(trajectory.loss_mask)
    assert await watched.num_open() == 0
    assert not list(tmp_path.iterdir()), "the record is in the rollout"


async def test_agents_at_once_are_told_apart_whatever_they_say(pool, tmp_path):
    """All of them send the same session's name."""
    app = create_app(ScriptedModel(answer=with_sh), record=tmp_path)
    words = [f"word-{place}" for place in range(4)]
    attempts = (
        harness_rollout(word_task(word), AGENT, app, tmp_path, pool, model="scripted") for word in words
    )
    for word, done in zip(words, await asyncio.gather(*attempts), strict=True):
        assert done.verdict.reward == 1.0, (done.verdict, done.info)
        text = " ".join(message.content for each in done.trajectories for message in each.messages)
        assert set(re.findall(r"word-\d", text)) == {word}


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (("python3", "-c", "raise SystemExit('no key')", "{prompt}"), "never spoke.*exit code 1: no key"),
        (("no-such-agent", "{prompt}"), "never spoke"),
    ],
)
async def test_an_agent_that_never_speaks_is_no_wrong_answer(pool, tmp_path, command, reason):
    app = create_app(ScriptedModel(), record=tmp_path)
    done = await harness_rollout(
        word_task("apple"), ForeignAgent(command, timeout_s=20.0), app, tmp_path, pool, model="scripted"
    )
    assert not done.verdict.valid and re.search(reason, done.verdict.reason), done.verdict


async def test_a_server_that_fails_is_no_wrong_answer(pool, tmp_path):
    class Failing(ScriptedModel):
        async def stream_tokens(self, prompt_token_ids, sampling=None, *, tools=(), chat=False):
            raise RuntimeError("on fire")
            yield

    app = create_app(Failing(), record=tmp_path)
    done = await harness_rollout(word_task("apple"), AGENT, app, tmp_path, pool, model="scripted")
    assert not done.verdict.valid and "500" in done.verdict.reason, done.verdict


async def test_an_agent_that_gives_up_waiting_for_the_model_is_no_wrong_answer(pool, tmp_path):
    code = (
        "import httpx, os; httpx.post(os.environ['OPENAI_BASE_URL'] + '/chat/completions', timeout=2.0, "
        "json={'model': 'scripted', 'messages': [{'role': 'user', 'content': 'hi'}]})"
    )
    app = create_app(ScriptedModel("a long reply" * 100, delay_s=0.05), record=tmp_path)
    agent = ForeignAgent(("python3", "-c", code, "{prompt}"), timeout_s=60.0)
    done = await harness_rollout(word_task("apple"), agent, app, tmp_path, pool, model="scripted")
    assert not done.verdict.valid and "gave up waiting" in done.verdict.reason, done.verdict
    assert done.trajectories[0].segments[-1].finish_reason == "abort"


@pytest.mark.slow
async def test_an_agent_that_takes_too_long_is_judged_by_what_it_did(pool, tmp_path):
    slow = ForeignAgent(
        ("sh", "-c", 'python3 /agent/foreign_agent.py "$0"; sleep 600', "{prompt}"),
        AGENT.binds,
        timeout_s=8.0,
    )
    app = create_app(ScriptedModel(answer=with_sh), record=tmp_path)
    done = await harness_rollout(word_task("apple"), slow, app, tmp_path, pool, model="scripted")
    assert done.stop_reason == "max_time" and done.verdict.reward == 1.0, (done.verdict, done.info)


@pytest.mark.slow
async def test_a_machine_that_fails_is_no_wrong_answer(pool, tmp_path):
    app = create_app(ScriptedModel(answer=with_sh), record=tmp_path)
    calm = FaultyPool(pool, lambda name: False)
    await harness_rollout(word_task("apple"), AGENT, app, tmp_path, calm, model="scripted")
    for moment in range(1, calm.num_calls + 1):
        faulty = FaultyPool(pool, lambda name: faulty.num_calls == moment)  # noqa: B023
        done = await harness_rollout(word_task("apple"), AGENT, app, tmp_path, faulty, model="scripted")
        assert not done.verdict.valid and "a fault was injected" in done.verdict.reason, moment


async def test_the_agent_reaches_nothing_but_the_model(pool, tmp_path):
    code = (
        "import os, socket, sys, urllib.request as u\n"
        "print(u.urlopen(os.environ['OPENAI_BASE_URL'] + '/models').status)\n"
        "for place in (('127.0.0.1', int(sys.argv[1])), ('192.0.2.1', 80)):\n"
        "    try: socket.create_connection(place, 2); print('reached', place)\n"
        "    except OSError: print('refused')\n"
    )
    listener = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    app = create_app(ScriptedModel(), record=tmp_path)
    agent = ForeignAgent(("python3", "-c", code, str(port), "{prompt}"), timeout_s=30.0)
    done = await harness_rollout(word_task("apple"), agent, app, tmp_path, pool, model="scripted")
    listener.close()
    assert done.info["agent"]["output"].split() == ["200", "refused", "refused"], done.info


def test_the_command_line_says_where_the_task_goes():
    agent = ForeignAgent.parse("qwen -p {prompt} --approval-mode yolo")
    assert agent.command == ("qwen", "-p", "{prompt}", "--approval-mode", "yolo")
    with pytest.raises(UserError, match=r"\{prompt\}"):
        ForeignAgent.parse("qwen -p")
    with pytest.raises(UserError, match="no command line"):
        ForeignAgent.parse("qwen -p '{prompt}")


def test_a_session_without_a_record(tmp_path):
    assert take_record(tmp_path, "x") == ()
