"""A repository becomes tasks: measured, broken, described, hidden, judged; resumed where it was."""

import json
import re
from collections import Counter
from dataclasses import replace

import pytest
import small_repository
from small_repository import FILES, LEFTOVERS

from lathe.errors import UserError
from lathe.rollout.attempt import rollout
from lathe.synth.book import open_book
from lathe.synth.gates import Thresholds, gates_of
from lathe.synth.repositories import candidates, make, make_tasks
from lathe.synth.repository.bugs import Bug
from lathe.synth.repository.checkout import check_out
from lathe.synth.repository.hiding import Copies
from lathe.synth.repository.issue import find_example
from lathe.synth.repository.sieve import Sieve, tried
from lathe.synth.repository.suite import measure
from lathe.synth.repository.workshop import RepositoryConfig, Workshop
from lathe.tasks.patch import Patch
from lathe.tasks.store import read_tasks
from lathe.tasks.verify import verify
from lathe.testing import ScriptedModel

CONFIG = RepositoryConfig(num_runs=3, num_gold=1, num_mutants=3, thresholds=Thresholds(2, min_mutation=0.3))
CHANGE, MONEY = "src/till/change.py", "src/till/money.py"


@pytest.fixture(scope="module")
async def repository(pool, tmp_path_factory):
    folder = small_repository.write(tmp_path_factory.mktemp("till-1.0"), {**FILES, **LEFTOVERS})
    return check_out(folder, tmp_path_factory.mktemp("clean"), pool.images)


@pytest.fixture(scope="module")
async def suite(repository, pool):
    return await measure(repository, pool, num_runs=3)


@pytest.fixture(scope="module")
async def coins_task(shop):
    return await made(shop, COINS)


@pytest.fixture(scope="module")
async def shop(repository, suite, pool):
    return Workshop(repository, suite, Copies({}), pool, CONFIG)


def bug(path: str, was: str, now: str, name: str, kind: str = "slip") -> Bug:
    assert FILES[path].count(was) == 1
    return Bug(kind, "", {path: FILES[path].replace(was, now)}, ((path, name),))


COINS = bug(CHANGE, "while left >= coin", "while left > coin", "change")


async def made(shop, candidate):
    result = await make(shop, Sieve(shop, [candidate] if isinstance(candidate, Bug) else []), candidate)
    return result.tasks[0] if result.tasks else result.drops[0].reason


def test_only_tests_that_can_be_relied_upon_decide(suite):
    assert "tests/test_money.py::test_broken" not in suite.stable
    assert suite.num_failing >= 1 and suite.num_failing + suite.num_flaky <= 2
    assert len([each for each in suite.stable if not each.endswith("test_flaky")]) == 11


def test_what_each_test_reaches_and_asks(suite):
    assert suite.reaching[(CHANGE, "change")] == [
        f"tests/test_change.py::test_{name}" for name in ("coins", "nothing_back", "not_enough")
    ]
    assert (MONEY, "never_tested") not in suite.reaching
    assert len(suite.reaching[(MONEY, "total")]) == 8
    asked = {call.expression for call in suite.calls["tests/test_money.py::TestPrice::test_tax"]}
    assert {"Price(1000)", "Price(1000).with_tax(19)", "Price(3).with_tax(50)"} <= asked
    assert suite.shortened([each for each in suite.stable if "test_total" in each]) == (
        "tests/test_money.py::test_total",
    )


async def test_a_fault_becomes_a_task(coins_task, pool):
    task = coins_task
    gates = gates_of(task)
    assert (gates.num_failing, gates.num_passing) == (1, 3)
    assert (gates.flake, gates.noop, gates.stub, gates.cheats) == (0.0, 0.0, 0.0, 0.0)
    assert gates.num_cheats >= 8 and gates.mutation >= 0.3 and gates.leak < 0.8
    assert task.info["fail_to_pass"] == ("tests/test_change.py::test_coins",)
    assert task.licence == "MIT" and task.tests.must_pass[0] == "tests/test_change.py::test_coins"
    assert "from till.change import change" in task.prompt and "while" not in task.prompt
    assert "I expected `[" in task.prompt and "change(500, [230])" not in task.prompt
    visible = task.files["tests/test_change.py"]
    assert "test_coins" not in visible and "test_nothing_back" in visible
    assert "+        while left >= coin:" in task.info["fix"]
    assert (await verify(task, Patch.of({CHANGE: FILES[CHANGE]}), pool)).reward == 1.0
    assert (await verify(task, Patch(), pool)).reward == 0.0


async def test_the_agent_finds_the_answer_nowhere(coins_task, pool):
    task = coins_task
    call = "<tool_call>\n<function=bash>\n<parameter=command>\n{}\n</parameter>\n</function>\n</tool_call>"
    seen = ScriptedModel(
        call.format("grep -rl 'left >= coin' . /opt /tmp /usr/local /etc 2>/dev/null; find . | sort"),
        None,
    )
    attempt = await rollout(task, seen, pool)
    told = next(each.content for each in attempt.trajectories[0].messages if each.role == "tool")
    assert "./src/till/money.py\n" in told
    others = [each for each in told.splitlines() if re.search(r"change\.py$|\.orig$|\.pyc$|SOURCES", each)]
    assert others == ["./src/till/change.py", "./tests/test_change.py"]
    assert attempt.verdict.reward == 0.0
    mended = ScriptedModel(call.format(f"sed -i 's/left > coin/left >= coin/' {CHANGE}"), None)
    assert (await rollout(task, mended, pool)).verdict.reward == 1.0


async def test_what_is_dropped_and_why(shop):
    def dropped(*change):
        return made(shop, bug(*change))

    assert await dropped(MONEY, "value > 3", "value > 4", "never_tested") == "no test fails"
    assert (
        await dropped(CHANGE, "from till.money import total\n", "import nowhere\n", "change")
        == "its tests can't be collected"
    )
    installed = replace(shop, copies=Copies({"/opt/till": frozenset({("till/change.py", "change")})}))
    assert await made(installed, COINS) == "another copy of the code is on this machine"
    strict = replace(shop, config=replace(CONFIG, max_failing=0.01))
    assert await made(strict, COINS) == "too many tests fail"


async def test_endless_faults_cost_their_limit_only(shop, monkeypatch):
    monkeypatch.setattr("lathe.synth.repository.suite.LEAST_S", 1.0)
    endless = bug(CHANGE, "            left -= coin\n", "", "change")
    trials = await tried(shop, [endless, COINS])
    assert trials[endless.id].timed_out
    assert trials[COINS.id].failed == ("tests/test_change.py::test_coins",)  # the file is as it was again


async def test_an_example_of_a_generator(shop, suite, repository, pool):
    fault = bug(CHANGE, "range(len(items) - 1)", "range(len(items) - 2)", "pairs")
    example = await find_example(repository, suite, fault, ["tests/test_change.py::test_pairs"], pool)
    assert example.expression.startswith("pairs(") and example.got[0] == example.expected[0] == "list"
    assert not example.is_tested


@pytest.mark.slow
async def test_a_model_breaks_a_function_and_describes_it(shop):
    answer = "Sure:\n```python\ndef change(paid, prices):\n    return [paid - total(prices)]\n```\n"
    model = ScriptedModel(answer, "Change is wrong: I get one coin for 2.70.", None, None)
    shop = replace(shop, model=model, config=replace(CONFIG, num_attempts=2, kinds=("rewrite",)))
    waiting = {each.place[1]: each for each in candidates(shop)}
    assert "change" in waiting and "total" in waiting
    task = await made(shop, waiting["change"])
    assert task.info["kind"] == "rewrite" and "return [paid - total(prices)]" in task.files[CHANGE]
    assert "I get one coin for 2.70." in task.prompt
    assert gates_of(task).difficulty == 0.0 and gates_of(task).num_attempts == 2


@pytest.mark.slow
async def test_a_making_goes_on_where_it_was(repository, pool, tmp_path, monkeypatch):
    config = replace(CONFIG, num_candidates=2, kinds=("body",), num_runs=1, num_mutants=0)
    out = tmp_path / "tasks.jsonl"
    seen = []

    def stop_at_one(summary):
        if summary.num_candidates == 1:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"), open_book(out, {}) as book:
        await make_tasks(repository, book, pool, config, concurrency=1, on_done=stop_at_one)
    before = out.read_text() if out.exists() else ""
    assert json.loads((tmp_path / "tasks.jsonl.suite").read_text())["key"].startswith(repository.digest)
    with monkeypatch.context() as patch, open_book(out, {}) as book:
        patch.setattr("lathe.synth.repository.workshop.measure", None)  # it is not measured again
        summary = await make_tasks(
            repository,
            book,
            pool,
            config,
            concurrency=1,
            on_done=lambda done: seen.append(done.num_candidates),
        )
    assert seen[0] == 1 and summary.num_candidates == 2 and summary.num_tasks >= 1
    assert out.read_text().startswith(before)
    kept = list(read_tasks(out))
    assert len(kept) == summary.num_tasks == sum(Counter(each.info["kind"] for each in kept).values())


@pytest.mark.slow
async def test_a_task_that_carries_its_repository(shop, pool):
    task = await made(replace(shop, config=replace(CONFIG, inline=True)), COINS)
    assert task.image is None and "pyproject.toml" in task.files
    assert (await verify(task, Patch.of({CHANGE: FILES[CHANGE]}), pool)).reward == 1.0


async def test_a_repository_whose_tests_all_fail_says_so(pool, tmp_path):
    folder = small_repository.write(tmp_path / "bad", {"a.py": "x = 1\n", "test_a.py": "import nowhere\n"})
    (tmp_path / "clean").mkdir()
    broken = check_out(folder, tmp_path / "clean", pool.images)
    with pytest.raises(UserError, match="No module named 'nowhere'"):
        await measure(broken, pool, num_runs=1)
