"""One attempt: what it earns, what it leaves, and what a machine that fails makes of it."""

from rollout_tasks import solution, solver, word_task

from lathe.rollout import rollout
from lathe.testing import ScriptedModel


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
