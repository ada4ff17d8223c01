"""The published solutions are right, and stubs are not."""

import pytest

from lathe.tasks.humaneval import humaneval_problems, humaneval_solution, humaneval_task
from lathe.tasks.verify import verify_many

# With helpers from the prompt, floats, strings, sets, errors, lists changed in place, big numbers, None.
SAMPLE = {0, 1, 4, 10, 15, 22, 26, 32, 34, 38, 50, 53, 60, 76, 95, 105, 127, 137, 155, 163}


async def judge(pool, problems, body=None):
    attempts = [(humaneval_task(problem), humaneval_solution(problem, body)) for problem in problems]
    verdicts = await verify_many(attempts, pool, concurrency=4)
    return dict(zip([problem["task_id"] for problem in problems], verdicts, strict=True))


@pytest.mark.parametrize("part", ["sample", pytest.param("all", marks=pytest.mark.slow)])
async def test_solutions_pass_and_stubs_fail(pool, part):
    problems = list(humaneval_problems())
    assert len(problems) == 164
    if part == "sample":
        problems = [problem for place, problem in enumerate(problems) if place in SAMPLE]
    right = await judge(pool, problems)
    assert {name: verdict for name, verdict in right.items() if verdict.reward != 1.0} == {}
    stubs = await judge(pool, problems, "    pass\n")
    assert {name: verdict for name, verdict in stubs.items() if verdict.reward != 0.0} == {}
