"""One attempt: what it earns, what it leaves, and what a machine that fails makes of it."""

import asyncio
from dataclasses import replace

import pytest
from rollout_tasks import Watched, solution, solver, word_task

from lathe.agent.attempt import AgentConfig
from lathe.agent.events import ToolEnded, TurnEnded
from lathe.client import ChatClient
from lathe.errors import TaskError, UpstreamError
from lathe.rollout import RolloutConfig, rollout
from lathe.testing import FaultyPool, ScriptedModel
from lathe.types import HiddenTests, Task

ONE_TURN = RolloutConfig(tools=())


async def test_an_attempt_that_solves_its_task(pool):
    done = await rollout(word_task("apple"), ScriptedModel(answer=solver()), pool)
    assert done.verdict.reward == 1.0, done.verdict
    assert done.stop_reason == "done" and done.task == "apple" and done.model == "scripted"
    assert done.info["patch"] == {
        "log.txt": {"text": "apple 0\napple 1\n"},
        "words.py": {"text": solution("apple")},
    }
    assert set(done.info["seconds"]) == {"open", "agent", "patch", "verify"}
    (trajectory,) = done.trajectories
    assert done.info["turns"] == len(trajectory.segments) == 4
    assert done.info["tokens"]["reply"] == sum(trajectory.loss_mask)


async def test_an_attempt_that_does_not(pool):
    done = await rollout(word_task("apple"), ScriptedModel(answer=solver(wrong=lambda word: True)), pool)
    assert done.verdict.reward == 0.0 and done.verdict.valid


async def test_what_was_done_within_the_budget_is_judged(pool):
    config = RolloutConfig(AgentConfig(max_turns=3))
    done = await rollout(word_task("apple"), ScriptedModel(answer=solver()), pool, config)
    assert done.stop_reason == "max_turns" and done.verdict.reward == 1.0


async def test_what_the_setup_does_is_no_part_of_the_patch(pool):
    task = word_task("apple", setup=("echo hello > made.txt", "mkdir -p sub && echo x > sub/y"))
    done = await rollout(task, ScriptedModel(answer=solver()), pool)
    assert set(done.info["patch"]) == {"log.txt", "words.py"}


async def test_a_machine_that_fails_at_any_call_makes_the_attempt_invalid(pool):
    task, model = word_task("apple"), ScriptedModel(answer=solver(turns=3))
    calm = FaultyPool(pool, lambda name: False)
    assert (await rollout(task, model, calm)).verdict.reward == 1.0
    assert calm.num_calls > 15
    for moment in range(1, calm.num_calls + 1):
        faulty = FaultyPool(pool, lambda name: faulty.num_calls == moment)  # noqa: B023
        verdict = (await rollout(task, model, faulty)).verdict
        assert not verdict.valid, moment
        assert "a fault was injected" in verdict.reason, moment


async def test_a_spawner_that_is_killed_makes_the_attempt_invalid(pool):
    class Dying(FaultyPool):
        async def create(self, spec=None):
            box = await super().create(spec)
            (shard,) = {each for each in pool._backend._slots if each is not None}
            shard._process.kill()
            return box

    done = await rollout(word_task("apple"), ScriptedModel(answer=solver()), Dying(pool, lambda name: False))
    assert not done.verdict.valid


async def test_a_model_that_can_not_be_reached_makes_the_attempt_invalid(pool):
    async with ChatClient("http://127.0.0.1:9", max_retries=0) as model:
        for config in (RolloutConfig(), ONE_TURN):
            done = await rollout(word_task("apple"), model, pool, config)
            assert done.stop_reason == "model" and not done.verdict.valid
            assert "127.0.0.1:9" in done.verdict.reason


async def test_a_model_that_fails_in_the_middle_keeps_what_was_said(pool):
    class Failing(ScriptedModel):
        async def complete(self, trajectory, sampling=None, *, on_event=None):
            if len(trajectory.segments) == 2:
                raise UpstreamError("the engine is on fire")
            return await super().complete(trajectory, sampling, on_event=on_event)

    done = await rollout(word_task("apple"), Failing(answer=solver()), pool)
    assert not done.verdict.valid and "on fire" in done.verdict.reason
    assert len(done.trajectories[0].segments) == 2


async def test_an_image_that_is_not_there_makes_the_attempt_invalid(pool):
    done = await rollout(word_task("apple", image="nothing"), ScriptedModel(answer=solver()), pool)
    assert not done.verdict.valid and "nothing" in done.verdict.reason


@pytest.mark.parametrize("kind", [TurnEnded, ToolEnded])
async def test_cancelling_leaves_no_sandbox(pool, kind):
    watched, reached = Watched(pool), asyncio.Event()

    def hear(event):
        if isinstance(event, kind):
            reached.set()

    work = asyncio.ensure_future(
        rollout(word_task("apple"), ScriptedModel(answer=solver(), delay_s=0.001), watched, on_event=hear)
    )
    await reached.wait()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert watched.num_created == 1
    assert await watched.num_open() == 0


async def test_a_bug_is_no_verdict(pool):
    class Broken(ScriptedModel):
        async def complete(self, trajectory, sampling=None, *, on_event=None):
            raise ZeroDivisionError

    watched = Watched(pool)
    with pytest.raises(ZeroDivisionError):
        await rollout(word_task("apple"), Broken(), watched)
    assert await watched.num_open() == 0


# One turn

ADD = Task(
    id="add",
    prompt='import math\n\n\ndef add(a, b):\n    """The sum."""\n',
    tests=HiddenTests(
        report="python",
        files={"test_add.py": "import solution\n\ndef test_add():\n    assert solution.add(2, 3) == 5\n"},
    ),
    language="python",
    info={"entry_point": "add"},
)


@pytest.mark.parametrize(
    ("answer", "reward"),
    [
        ("Here:\n```python\ndef add(a, b):\n    return int(math.fsum([a, b]))\n```\nDone.", 1.0),
        ("```python\n    return a + b\n```", 1.0),
        ("```python\ndef add(a, b):\n    return a - b\n```", 0.0),
        ("I can't.", 0.0),
    ],
    ids=["function", "body", "wrong", "no code"],
)
async def test_one_question_and_its_answer(pool, answer, reward):
    watched = Watched(pool)
    done = await rollout(ADD, ScriptedModel(answer), watched, ONE_TURN)
    assert done.verdict.reward == reward, done.verdict
    assert done.trajectories[0].messages[0].content == ADD.prompt
    assert watched.num_created == 1, "the answer needs no sandbox, only its judge does"


async def test_a_task_that_names_no_file_has_no_one_turn(pool):
    with pytest.raises(TaskError, match="answer_file"):
        await rollout(replace(ADD, language=None), ScriptedModel("x"), pool, ONE_TURN)
