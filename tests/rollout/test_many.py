"""Many attempts at once: none lost, none crossed; a machine that fails takes down its own attempts alone."""

import re
import resource
import time
from collections import Counter
from random import Random

import pytest
from rollout_tasks import Watched, solution, solver, word_task

from lathe.errors import UserError
from lathe.jsonl import read_rollouts
from lathe.rollout import rollout
from lathe.rollout.many import Plan, attempt_all, attempt_tasks, scored
from lathe.rollout.passes import Score
from lathe.rollout.results import open_results
from lathe.testing import FaultyPool, ScriptedModel


def words(count: int) -> list[str]:
    return [f"word-{place}" for place in range(count)]


def is_wrong(word: str) -> bool:
    return word.endswith("3")


async def attempt_words(count: int, concurrency: int, pool, out) -> None:
    plan = Plan([word_task(word) for word in words(count)], concurrency=concurrency)
    model = ScriptedModel(answer=solver(turns=3, wrong=is_wrong))
    with open_results(out, {}) as results:
        await attempt_tasks(plan, model, pool, results)
        results.is_complete = True


def check_none_is_lost_or_crossed(count: int, out) -> None:
    rollouts = list(read_rollouts(out))
    assert Counter(each.task for each in rollouts) == dict.fromkeys(words(count), 1)
    for each in rollouts:
        word = each.task
        assert each.verdict.reward == float(not is_wrong(word)), (word, each.verdict)
        assert each.info["patch"] == {
            "log.txt": {"text": f"{word} 0\n"},
            "words.py": {"text": solution("nothing" if is_wrong(word) else word)},
        }
        text = " ".join(message.content for each in each.trajectories for message in each.messages)
        assert set(re.findall(r"word-\d+", text)) == {word}


async def test_twenty_at_once(pool, tmp_path):
    watched, out = Watched(pool), tmp_path / "out.jsonl"
    await attempt_words(20, 20, watched, out)
    check_none_is_lost_or_crossed(20, out)
    assert watched.num_created == 40
    assert await watched.num_open() == 0
    assert not list((pool.images.root / "layers").iterdir())
    assert not out.with_name("out.jsonl.unfinished").exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_five_hundred_at_once(pool, tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    await attempt_words(500, 500, pool, out)
    took = time.monotonic() - started
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    with capsys.disabled():
        print(f"\n500 rollouts at once: {took:.1f} s, {grown:.0f} MiB more at the peak")  # noqa: T201
    check_none_is_lost_or_crossed(500, out)
    assert grown < 1024


async def attempt_with_faults(count: int, concurrency: int, share: float, pool) -> None:
    """Some attempts, drawn by a seed, meet a machine that fails at one of their calls."""
    calm = FaultyPool(pool, lambda name: False)
    model = ScriptedModel(answer=solver(turns=3, wrong=is_wrong))
    assert (await rollout(word_task("word-0"), model, calm)).verdict.reward == 1.0
    draw = Random(16)
    moments = {word: draw.randint(1, calm.num_calls) for word in words(count) if draw.random() < share}
    assert abs(len(moments) / count - share) < 0.08
    done = {}

    async def attempt(task, number):
        faulty = FaultyPool(pool, lambda name: faulty.num_calls == moments.get(task.id))
        return await rollout(task, model, faulty)

    plan = Plan([word_task(word) for word in words(count)])
    await attempt_all(
        plan.jobs(),
        attempt,
        concurrency=concurrency,
        on_done=lambda job, rollout: done.update({job.task.id: rollout}),
    )
    assert set(done) == set(words(count))
    score = Score()
    for word, each in done.items():
        score.add(word, each.verdict)
        if word in moments:
            assert not each.verdict.valid and "a fault was injected" in each.verdict.reason, word
        else:
            assert each.verdict.reward == float(not is_wrong(word)), (word, each.verdict)
    assert score.num_invalid == len(moments)
    assert score.num_solved + score.num_failed == count - len(moments)


async def test_attempts_whose_machine_fails_are_invalid_and_the_others_unharmed(pool):
    await attempt_with_faults(25, 5, 0.16, pool)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_sixteen_of_a_hundred_in_five_hundred(pool):
    await attempt_with_faults(500, 50, 0.16, pool)


async def test_a_bug_in_one_attempt_ends_the_run_as_itself(pool):
    async def attempt(task, number):
        raise KeyError(task.id)

    with pytest.raises(KeyError, match="apple"):
        await attempt_all(
            Plan([word_task("apple")], num_attempts=9).jobs(), attempt, concurrency=3, on_done=print
        )


async def test_what_is_finished_is_not_done_again(pool, tmp_path):
    out, tasks = tmp_path / "out.jsonl", [word_task("apple"), word_task("birch")]
    model = ScriptedModel(answer=solver())
    for num_attempts, num_asked in ((1, 8), (2, 16), (2, 16)):
        with open_results(out, {}) as results:
            score = scored(results, tasks, "scripted")
            assert score.num_solved == (len(results.finished))
            await attempt_tasks(Plan(tasks, num_attempts=num_attempts), model, pool, results)
        assert len(model.engine.prompts) == num_asked
    assert sorted((each.task, each.info["attempt"]) for each in read_rollouts(out)) == [
        ("apple", 1), ("apple", 2), ("birch", 1), ("birch", 2),
    ]  # fmt: skip


async def test_what_was_invalid_is_made_anew_where_that_is_asked_for(pool, tmp_path):
    out, tasks = tmp_path / "out.jsonl", [word_task("apple"), word_task("birch")]
    model = ScriptedModel(answer=solver())
    broken = FaultyPool(pool, lambda name: broken.num_calls == 3)  # of the first attempt
    score = await run(Plan(tasks, concurrency=1), model, broken, out)
    assert (score.num_solved, score.num_invalid) == (1, 1)
    for retry_invalid, num_solved in ((False, 1), (True, 2)):
        plan = Plan(tasks, retry_invalid=retry_invalid)
        assert (await run(plan, model, pool, out)).num_solved == num_solved
    assert [each.task for each in read_rollouts(out)] == ["birch", "apple"]


async def run(plan: Plan, model, pool, out) -> Score:
    with open_results(out, {}) as results:
        if plan.retry_invalid:
            results.forget_invalid()
        score = scored(results, plan.tasks, "scripted")
        await attempt_tasks(
            plan, model, pool, results, on_done=lambda done: score.add(done.task, done.verdict)
        )
    return score


def test_a_file_that_is_no_such_runs(tmp_path):
    out = tmp_path / "out.jsonl"
    for text, error in (
        ('{"trajectories": []}\n', "line 1 is no attempt"),
        ("nonsense\n", "line 1"),
        ('{"trajectories": [], "task": "birch", "verdict": {"reward": 1.0}, "model": "m", '
         '"info": {"attempt": 1}}\n', "'birch', which is none of these tasks"),
        ('{"trajectories": [], "task": "apple", "verdict": {"reward": 1.0}, "model": "other", '
         '"info": {"attempt": 1}}\n', "by other, not m"),
    ):  # fmt: skip
        out.write_text(text)
        with open_results(out, {}) as results, pytest.raises(UserError, match=error):
            scored(results, [word_task("apple")], "m")
        assert out.read_text() == text


def test_two_processes_never_write_one_file(tmp_path):
    out = tmp_path / "out.jsonl"
    with (
        open_results(out, {}),
        pytest.raises(UserError, match="Another lathe attempt is writing"),
        open_results(out, {}),
    ):
        pass


def test_a_run_goes_on_with_the_settings_that_it_began_with(tmp_path):
    out = tmp_path / "out.jsonl"
    with open_results(out, {"model": "a"}) as results:
        results.state_path("apple", 1).touch()
    with (
        pytest.raises(UserError, match="another model \\('a', now 'b'\\)"),
        open_results(out, {"model": "b"}),
    ):
        pass
