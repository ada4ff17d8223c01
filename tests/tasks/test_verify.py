"""A verdict says what the tests saw, or that nobody can say."""

import asyncio
import contextlib
import dataclasses

import pytest
from cheats import PYTEST_TASK, PYTHON_TASK, RIGHT, STDIO_TASK, WRONG

from lathe.errors import SandboxGone
from lathe.sandbox.pool import open_pool
from lathe.tasks.patch import Patch
from lathe.tasks.reports import names_of_tests
from lathe.tasks.verify import deciding_tests, verify, verify_many
from lathe.testing import FaultyPool
from lathe.types import HiddenTests, Limits, Task

GOOD = Patch.of({"solution.py": RIGHT["the sum"]})
BAD = Patch.of({"solution.py": WRONG})


@pytest.mark.parametrize(
    "task", [PYTHON_TASK, pytest.param(PYTEST_TASK, marks=pytest.mark.slow)], ids=["python", "pytest"]
)
async def test_a_machine_that_fails_at_any_moment_is_no_wrong_answer(pool, task):
    for patch, earned in ((GOOD, 1.0), (BAD, 0.0)):
        calm = FaultyPool(pool, lambda name: False)
        assert (await verify(task, patch, calm)).reward == earned
        assert calm.num_calls > 3
        for moment in range(1, calm.num_calls + 1):
            faulty = FaultyPool(pool, lambda name: faulty.num_calls == moment)  # noqa: B023
            verdict = await verify(task, patch, faulty)
            assert not verdict.valid or verdict.reward == earned, (moment, verdict)
            if verdict.reason is not None:
                assert "a fault was injected" in verdict.reason
            if task is PYTHON_TASK:  # every call of this judge is needed
                assert not verdict.valid, moment


async def test_a_spawner_that_dies_is_no_wrong_answer():
    async with open_pool("namespace", num_shards=1) as pool:

        class Dying(FaultyPool):
            async def create(self, spec=None):
                box = await super().create(spec)
                await self.close_all()
                return box

            async def close_all(self):
                for shard in pool._backend._slots:
                    if shard is not None:
                        shard._process.kill()

        verdict = await verify(PYTHON_TASK, GOOD, Dying(pool, lambda name: False))
        assert not verdict.valid and verdict.reason
        assert (await verify(PYTHON_TASK, GOOD, pool)).reward == 1.0, "and the pool lives on"


async def test_setup_that_fails_is_no_wrong_answer(pool):
    task = dataclasses.replace(PYTHON_TASK, setup=("echo no such tool >&2; exit 3",))
    verdict = await verify(task, GOOD, pool)
    assert verdict.reason and "no such tool" in verdict.reason


async def test_a_place_without_pytest_is_no_wrong_answer(pool):
    class Bare:
        """A pool of places in which nobody can import pytest."""

        async def create(self, spec=None):
            box = await pool.create(spec)
            real = box.python
            box.python = lambda code, **options: real(
                "import sys; sys.modules['pytest'] = None\n" + code, **options
            )
            return box

    verdict = await verify(PYTEST_TASK, GOOD, Bare())
    assert verdict.reason and "judge can't run in its place" in verdict.reason
    assert (await verify(PYTHON_TASK, GOOD, Bare())).reward == 1.0


async def test_a_solution_that_breaks_its_limits_is_wrong(pool):
    small = Limits(memory_bytes=256 << 20, num_processes=32)
    hog = Patch.of(
        {"solution.py": "def add(a, b):\n    x = [bytes(10**7) for _ in range(10**4)]\n    return a + b\n"}
    )
    for task in (PYTHON_TASK, PYTEST_TASK):
        verdict = await verify(dataclasses.replace(task, limits=small), hog, pool)
        assert (verdict.reward, verdict.suspect) == (0.0, None), verdict
    slow = dataclasses.replace(STDIO_TASK, tests=dataclasses.replace(STDIO_TASK.tests, timeout_s=1.0))
    verdict = await verify(slow, Patch.of({"solution.py": "import time\ntime.sleep(60)\n"}), pool)
    assert (verdict.reward, verdict.evidence["timed_out"]) == (0.0, True)


async def test_the_evidence_tells_which_tests_failed_and_why(pool):
    half = Patch.of({"solution.py": "def add(a, b):\n    return a + b if a != 'ab' else 'ba'\n"})
    verdict = await verify(PYTEST_TASK, half, pool)
    assert verdict.evidence["num_tests"] == 3
    assert verdict.evidence["failed"] == {"tests/test_hidden.py::test_words": "failed"}
    assert "'ba' == 'abcd'" in verdict.evidence["texts"]["tests/test_hidden.py::test_words"]


async def test_only_the_named_tests_decide(pool):
    half = Patch.of({"solution.py": "def add(a, b):\n    return a + b if a != 'ab' else 'ba'\n"})
    tests = dataclasses.replace(PYTEST_TASK.tests, must_pass=("tests/test_hidden.py::test_numbers[1-2-3]",))
    assert (await verify(dataclasses.replace(PYTEST_TASK, tests=tests), half, pool)).reward == 1.0
    tests = dataclasses.replace(tests, must_pass=("tests/test_hidden.py::test_that_is_not_there",))
    verdict = await verify(dataclasses.replace(PYTEST_TASK, tests=tests), half, pool)
    assert verdict.evidence["failed"] == {"tests/test_hidden.py::test_that_is_not_there": "missing"}


async def test_protected_files_are_the_tasks(pool):
    task = dataclasses.replace(
        PYTHON_TASK, files={**PYTHON_TASK.files, "data/answers.txt": "true\n"}, protected=("data",)
    )
    patch = Patch.of({"data/answers.txt": "forged\n", "solution.py": (
        "from pathlib import Path\n\n\ndef add(a, b):\n"
        "    return a + b if Path('data/answers.txt').read_text() == 'true\\n' else None\n"
    )})  # fmt: skip
    verdict = await verify(task, patch, pool)
    assert (verdict.reward, verdict.evidence["left_out"]) == (1.0, {"data/answers.txt": "protected"})


LINES = """\
read word
for name in one two; do
    if [ "$(sh solution.sh $name < /dev/null)" = "got $name" ]; then echo "$word PASS $name"; else
        echo "$word FAIL $name"; fi
done
"""


@pytest.mark.parametrize(
    ("solution", "earned"),
    [
        ("echo got $1", 1.0),
        ("echo got one", 0.0),
        ("echo PASS one; echo PASS two; echo 0123 PASS one >&2", 0.0),
        ("kill -9 $PPID", 0.0),
    ],
)
async def test_lines_count_when_the_command_wrote_them(pool, solution, earned):
    tests = HiddenTests(
        command=("sh", "judge.sh"), report="lines", files={"judge.sh": LINES}, must_pass=("one", "two")
    )
    verdict = await verify(Task("sh", "", tests), Patch.of({"solution.sh": solution}), pool)
    assert verdict.reward == earned, verdict


RICH = """
import pkg.shapes as shapes
from pkg import text


def test_objects():
    box = shapes.Box(2, 3)
    assert box.area() == 6 and isinstance(box.area(), int)
    assert len(box) == 2 and list(box) == [2, 3] and box[1] == 3 and str(box) == "2x3"
    assert shapes.sum_of([box, shapes.Box(1, 1)]) == 7


def test_plain_data():
    values = {"a": [1, 2.5, (None, True)], "b": {1, 2}, "c": b"\\x00", 3: 1 + 2j}
    values |= {"r": range(1, 9, 2), "n": 10**30}
    assert text.same(values) == values
    assert list(text.count(3)) == [0, 1, 2]
    assert text.NAN != text.NAN


def test_lists_changed_in_place():
    items, table = [3, 1, 2], {"x": 1}
    assert text.change(items, table) is None
    assert (items, table) == ([1, 2, 3], {"x": 2})


def test_errors():
    for wrong, kind in ((-1, ValueError), ("x", KeyError)):
        try:
            text.refuse(wrong)
        except kind as error:
            assert "no" in str(error)
        else:
            raise AssertionError("nothing was raised")
"""
PACKAGE = {
    "pkg/__init__.py": "",
    "pkg/shapes.py": "class Box:\n    def __init__(self, a, b):\n        self.sides = [a, b]\n"
    "    def area(self):\n        return self.sides[0] * self.sides[1]\n"
    "    def __len__(self):\n        return 2\n    def __iter__(self):\n        return iter(self.sides)\n"
    "    def __getitem__(self, place):\n        return self.sides[place]\n"
    "    def __str__(self):\n        return 'x'.join(map(str, self.sides))\n\n\n"
    "def sum_of(boxes):\n    return sum(box.area() for box in boxes)\n",
    "pkg/text.py": "NAN = float('nan')\n\n\ndef same(value):\n    return value\n\n\n"
    "def count(n):\n    yield from range(n)\n\n\n"
    "def change(items, table):\n    items.sort()\n    table['x'] += 1\n\n\n"
    "class Odd(KeyError):\n    pass\n\n\n"
    "def refuse(value):\n    print('refusing')\n    raise (ValueError if value == -1 else Odd)('no')\n",
}


async def test_tests_see_a_solution_in_another_process_as_if_it_were_in_theirs(pool):
    task = Task("rich", "", HiddenTests(report="python", files={"test_rich.py": RICH}))
    verdict = await verify(task, Patch.of(PACKAGE), pool)
    assert verdict.reward == 1.0, verdict.evidence["texts"]
    assert verdict.evidence["num_tests"] == 4


def test_names_of_tests():
    text = (
        "def test_a(): ...\nasync def test_b(): ...\ndef helper(): ...\n"
        "class TestC:\n    def test_d(self): ...\n    def e(self): ...\n"
        "class Case(unittest.TestCase):\n    def test_f(self): ...\nclass X:\n    def test_g(self): ...\n"
    )
    assert names_of_tests("t.py", text) == [
        "t.py::test_a",
        "t.py::test_b",
        "t.py::TestC::test_d",
        "t.py::Case::test_f",
    ]
    assert deciding_tests(STDIO_TASK) == ["case 1", "case 2"]
    whole = Task("w", "", HiddenTests(report="python", files={"test_w.py": "import solution\n"}))
    assert deciding_tests(whole) == ["test_w.py"]


async def test_many_at_once_stand_in_their_order_and_leave_nothing_when_cancelled(pool):
    attempts = [(PYTHON_TASK, patch) for patch in (GOOD, BAD) * 3]
    verdicts = await verify_many(attempts, pool, concurrency=3)
    assert [verdict.reward for verdict in verdicts] == [1.0, 0.0] * 3

    class Watched(FaultyPool):
        boxes: list = []
        begun = asyncio.Event()

        def check(self, name):
            super().check(name)
            if self.num_calls == 6:
                self.begun.set()

        async def create(self, spec=None):
            self.boxes.append(await super().create(spec))
            return self.boxes[-1]

    watched = Watched(pool, lambda name: False)
    slow = Patch.of({"solution.py": "import time\n\n\ndef add(a, b):\n    time.sleep(600)\n"})
    running = asyncio.create_task(verify_many([(PYTHON_TASK, slow)] * 5, watched, concurrency=2))
    await watched.begun.wait()
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    assert running.cancelled()
    assert len(watched.boxes) == 2, "the others had not begun"
    for box in watched.boxes:
        with pytest.raises(SandboxGone):
            await box.exec(["true"])
