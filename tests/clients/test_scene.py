"""The stage itself: what a client does wrong is seen, and nothing of it stays."""

import psutil
import pytest
from agent import Agent, Line
from agents import AGENTS
from scene import Scene, bare_environment, play, run

ASK = """
import json, sys, urllib.request
for text in sys.argv[2:]:
    body = {"messages": [{"role": "user", "content": text}]} if text else {}
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(sys.argv[1], json.dumps(body).encode(), headers)
    try:
        print(json.load(urllib.request.urlopen(request))["choices"][0]["message"]["content"])
    except urllib.error.HTTPError as error:
        print(error.code)
"""


@pytest.fixture
def home(tmp_path):
    return tmp_path


def test_a_process_is_ended_at_the_limit_with_all_that_it_started(home):
    scene = Scene()
    command = ["sh", "-c", "setsid sleep 100 & sleep 100"]
    run(scene, command, home, bare_environment(home), timeout_s=0.5)
    assert scene.exit_codes == [None]
    assert scene.num_leftovers == 3


def test_what_a_process_leaves_running_is_ended_and_counted(home):
    scene = Scene()
    command = ["sh", "-c", "setsid sleep 100 & echo $!; echo left >&2; exit 3"]
    run(scene, command, home, bare_environment(home), timeout_s=10)
    assert scene.exit_codes == [3]
    pid, word = scene.outputs[0].split()
    assert word == "left"
    assert scene.num_leftovers == 1
    assert not psutil.pid_exists(int(pid)) or psutil.Process(int(pid)).status() == psutil.STATUS_ZOMBIE


def test_other_requests_get_a_title_and_the_conversation_its_next_line(home, qwen):
    agent = Agent(
        name="asks",
        program="python",
        installer=None,
        packages=("openai",),
        mark="task",
        lines=lambda folder: [Line("First."), Line("Second.")],
        commands=lambda url: [
            [
                "python",
                "-c",
                ASK,
                f"{url}/v1/chat/completions",
                "task",
                "title?",
                "task again",
                "task: First.",
                "",
            ]
        ],
    )
    scene = play(agent, home, home, qwen)
    assert scene.outputs[0].split() == ["First.", "Two", "files", "First.", "Second.", "400"]
    assert [answer[:3] for answer in scene.answers] == ["200", "200", "200", "200", "400"]
    assert len(scene.prompts) == 3
    assert len(scene.asides) == 1
    assert scene.num_cached[0] == 0
    assert 0 < scene.num_cached[1] < scene.num_tokens[1]


def test_names_are_unique():
    assert len({agent.name for agent in AGENTS}) == len(AGENTS)
