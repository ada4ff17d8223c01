"""Real coding agents attempt a task in a sandbox, and reach nothing but the model."""

import os
from pathlib import Path

import pytest
from agent import INSTALLED, NODE_FOLDER, TASK, WINDOW, Agent
from agents import AGENTS
from scene import TITLE, spoken

from lathe.errors import InfrastructureError
from lathe.rollout import ForeignAgent, harness_rollout
from lathe.sandbox.pool import open_pool
from lathe.sandbox.spec import Bind
from lathe.server.app import create_app
from lathe.testing import ScriptedModel
from lathe.types import HiddenTests, Limits, Task

WORKDIR = Path("/work")
GREETING = "Grüße, 世界 🎈 <b>&amp;</b>\n"
GREET_TASK = Task(
    "greet",
    TASK,
    HiddenTests(("python3", "greet.py"), "stdio", cases=(("", GREETING),)),
    limits=Limits(memory_bytes=6 << 30, num_processes=512),
)


def foreign(agent: Agent) -> ForeignAgent:
    """The first of the agent's commands."""
    name, *arguments = agent.commands("{url}")[0]
    assert name == agent.program
    command = [str(agent.executable), *("{prompt}" if word == TASK else word for word in arguments)]
    env = {"PATH": f"{NODE_FOLDER}:{os.environ['PATH']}", "HOME": "/root", **agent.environment("{url}")}
    return ForeignAgent(tuple(command), (Bind(str(INSTALLED), str(INSTALLED)),), env, timeout_s=200.0)


@pytest.mark.clients
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    "agent", [each for each in AGENTS if each.name in ("qwen-chat", "mini")], ids=lambda agent: agent.name
)
async def test_an_agent_attempts_a_task(agent: Agent, qwen, tmp_path):
    if agent.why_not:
        pytest.skip(agent.why_not)
    lines = agent.lines(WORKDIR)

    def answer(prompt: str) -> str:
        if agent.mark not in prompt:
            return TITLE
        return next(
            (spoken(line) for line in lines if line.words not in prompt), "There is nothing left to do."
        )

    model = ScriptedModel(answer=answer, tokenizer=qwen, max_context=WINDOW)
    app = create_app(model, record=tmp_path)
    try:
        async with open_pool("namespace", num_shards=1) as pool:
            done = await harness_rollout(GREET_TASK, foreign(agent), app, tmp_path, pool, model="qwen3-coder")
    except InfrastructureError as error:
        pytest.skip(f"no namespaces here: {error}")
    assert done.verdict.reward == 1.0, (done.verdict, done.info["agent"]["output"])
    assert {"greet.py", "notes.txt"} <= done.info["patch"].keys()
    told = [each for each in done.trajectories if agent.mark in qwen.decode(list(each.token_ids))]
    said = [
        qwen.decode(list(each.token_ids[part.start : part.stop])) for each in told for part in each.segments
    ]
    num_replies = 3  # of this command; another one says thanks
    assert said == [f"{spoken(line)}<|im_end|>" for line in lines[:num_replies]]
