"""Real coding agents do a whole task against the real server: what they write is what the model said."""

import pytest
from agent import GREET, NOTES, Agent
from agents import AGENTS
from scene import Scene, play, spoken

from lathe.jsonl import read_rollouts

UNSEEN = "<|fim_pad|>"


def marked(agent: Agent):
    """What the development environment has anyway is run by every `make test`."""
    marks = [pytest.mark.clients, pytest.mark.timeout(400)] if agent.installer else []
    return pytest.param(agent, id=agent.name, marks=marks)


@pytest.fixture
def project(tmp_path):
    folder = tmp_path / "project"
    folder.mkdir()
    return folder


@pytest.fixture
def scene(agent: Agent, project, tmp_path, qwen, record_property) -> Scene:
    if agent.why_not:
        pytest.skip(agent.why_not)
    home = tmp_path / "home"
    home.mkdir()
    scene = play(agent, project, home, qwen)
    record_property("row", row(agent, scene))
    return scene


@pytest.mark.parametrize("agent", [marked(agent) for agent in AGENTS])
def test_an_agent_does_its_task(agent: Agent, scene: Scene, project):
    assert set(scene.exit_codes) == {0}, scene
    assert {answer[:3] for answer in scene.answers} == {"200"}, scene
    assert (project / "greet.py").read_text() == GREET, scene
    assert (project / "notes.txt").read_text() == NOTES, scene

    lines = agent.lines(project)
    assert len(scene.prompts) == len(lines), scene
    assert lines[-1].words in scene.outputs[-1], scene
    for line, prompt in zip(lines, scene.prompts[1:], strict=False):
        new = prompt.rpartition(line.words)[2]
        assert new.count("<tool_response>") == len(line.calls), f"{new}\n{scene}"
    assert min(scene.cached_shares()) > agent.cached_share, scene
    if agent.installer is None:  # ours, so it prints the usage that it was told
        for count, cached in zip(scene.num_tokens, scene.num_cached, strict=True):
            assert f"prompt {count} ({cached} cached)" in scene.outputs[0], scene


@pytest.mark.parametrize("agent", [marked(agent) for agent in AGENTS])
def test_an_agents_conversation_is_recorded(agent: Agent, project, tmp_path, qwen):
    """Whatever the client makes of the replies before it sends them back, they go on from their own tokens:
    rendered anew, they would lack the token that no client saw, and begin another trajectory."""
    if agent.why_not:
        pytest.skip(agent.why_not)
    home = tmp_path / "home"
    home.mkdir()
    scene = play(agent, project, home, qwen, record=tmp_path / "records", unseen=UNSEEN)
    assert set(scene.exit_codes) == {0}, scene
    trajectories = [each for rollout in read_rollouts(tmp_path / "records") for each in rollout.trajectories]
    told = [each for each in trajectories if agent.mark in qwen.decode(list(each.token_ids))]
    assert len(told) == agent.num_trajectories, scene
    said = [
        qwen.decode(list(each.token_ids[segment.start : segment.stop]))
        for each in told
        for segment in each.segments
    ]
    assert said == [f"{UNSEEN}{spoken(line)}<|im_end|>" for line in agent.lines(project)], scene
    others = sum(len(each.segments) for each in trajectories) - len(said)
    assert others == len(scene.asides), scene


def row(agent: Agent, scene: Scene) -> str:
    new = [count - cached for count, cached in zip(scene.num_tokens, scene.num_cached, strict=True)]
    cells = [
        agent.name,
        agent.version,
        f"{len(scene.prompts)} ({len(scene.asides)})",
        ", ".join(f"{count:,}" for count in scene.num_tokens),
        ", ".join(f"{count:,}" for count in new),
        ", ".join(f"{share:.1%}" for share in scene.cached_shares()),
    ]
    return f"| {' | '.join(cells)} |"
