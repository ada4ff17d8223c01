"""Verdicts that are remembered: one judging for the same answer, and never a fault."""

import asyncio
from dataclasses import replace

from lathe.tasks.known import KnownVerdicts
from lathe.tasks.patch import Patch
from lathe.types import HiddenTests, Task, Verdict

TASK = Task("add", "Add.", HiddenTests(), info={"deterministic": True})
ONE, OTHER = Patch.of({"a.py": "1"}), Patch.of({"a.py": "2"})


class Judge:
    """Counts, and answers what it is told to; the last answer again and again."""

    def __init__(self, *verdicts: Verdict):
        self.verdicts = list(verdicts)
        self.num_running = self.most_running = self.num_asked = 0

    async def __call__(self, task, patch, pool) -> Verdict:
        self.num_asked += 1
        self.num_running += 1
        self.most_running = max(self.most_running, self.num_running)
        await asyncio.sleep(0.01)
        self.num_running -= 1
        return self.verdicts.pop(0) if len(self.verdicts) > 1 else self.verdicts[0]


async def ask(known: KnownVerdicts, *patches: Patch, task: Task = TASK) -> list[float | None]:
    return [each.reward for each in await asyncio.gather(*(known.verify(task, p, None) for p in patches))]


async def test_the_same_answer_is_judged_once_also_when_it_is_asked_for_at_once():
    known = KnownVerdicts(judge=(judge := Judge(Verdict(1.0))))
    assert await ask(known, ONE, ONE, OTHER, ONE) == [1.0] * 4
    assert await ask(known, OTHER) == [1.0]
    assert (judge.num_asked, known.num_judged, known.num_asked) == (2, 2, 5)


async def test_other_tasks_and_tasks_that_do_not_judge_alike_share_nothing():
    known = KnownVerdicts(judge=(judge := Judge(Verdict(0.0))))
    await ask(known, ONE)
    await ask(known, ONE, task=replace(TASK, id="sub"))
    await ask(known, ONE, ONE, task=replace(TASK, info={}))
    assert judge.num_asked == 4


async def test_a_fault_is_not_remembered_and_those_who_waited_ask_again():
    known = KnownVerdicts(judge=(judge := Judge(Verdict(reason="broken"), Verdict(1.0))))
    assert sorted(await ask(known, ONE, ONE, ONE), key=str) == [1.0, 1.0, None]
    assert judge.num_asked == 2


async def test_no_more_than_so_many_at_once_and_a_cancelled_one_holds_nobody():
    known = KnownVerdicts(2, judge := Judge(Verdict(1.0)))
    await ask(known, *(Patch.of({"a.py": str(n)}) for n in range(7)))
    assert judge.most_running == 2
    first = asyncio.create_task(known.verify(TASK, ONE, None))
    second = asyncio.create_task(known.verify(TASK, ONE, None))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    first.cancel()
    assert (await second).reward == 1.0
