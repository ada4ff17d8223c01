"""Gates, queries, the book of a making, its loop."""

import asyncio
import json
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lathe.errors import InfrastructureError, UserError
from lathe.jsonl import from_json, to_json
from lathe.synth.book import Drop, Made, open_book
from lathe.synth.gates import Gates, Thresholds, first_failure, gates_of, with_gates
from lathe.synth.making import make_all
from lathe.synth.where import parse_query
from lathe.types import HiddenTests, Task

TASK = Task("t", "Write it.", HiddenTests(report="python", files={"test_t.py": "assert True"}))
GOOD = Gates(
    num_tests=8, num_gold=3, flake=0.0, noop=0.0, stub=0.0, cheats=0.0, num_cheats=7, mutation=0.9,
    num_mutants=30, tpr=1.0, num_right=5, tnr=1.0, num_wrong=6, difficulty=0.25, num_attempts=4,
)  # fmt: skip

shares = st.none() | st.floats(0, 1)
counts = st.integers(0, 99)


@given(
    st.builds(Gates, num_tests=counts, flake=shares, mutation=shares, num_mutants=counts, difficulty=shares)
)
def test_gates_survive_json(gates):
    assert from_json(Gates, json.loads(json.dumps(to_json(gates))), "") == gates
    assert gates_of(with_gates(TASK, gates)) == gates


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"num_tests": 4}, "too few tests"), ({"flake": 0.1}, "flaky"),
        ({"mutation": 0.5}, "mutation score too low"),
        ({"noop": 1.0}, "doing nothing earns a reward"), ({"stub": 1.0}, "a stub earns a reward"),
        ({"cheats": 1.0}, "a cheat earns a reward"), ({"tpr": 0.8}, "right solutions rejected"),
        ({"tnr": 0.5}, "wrong solutions accepted"), ({}, None), ({"tnr": None, "mutation": None}, None),
    ],
)  # fmt: skip
def test_the_first_failing_gate_is_named(change, reason):
    assert first_failure(Gates(**{**vars(GOOD), **change}), Thresholds()) == reason


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("mutation >= 0.8 and difficulty < 0.5", True),
        ("mutation>=0.95 or num_tests == 8", True),
        ("not (0.2 < difficulty < 0.3)", False),
        ("kind in ('write', 'fix')", True),
        ("language == 'c'", False),
        ("4 * difficulty * (1 - difficulty) > 0.7", True),
        ("-difficulty > -1", True),
        ("language != 'c'", False),  # None: it was not said
    ],
)
def test_queries(text, wanted):
    task = with_gates(Task("t", "p", TASK.tests, info={"kind": "fix"}), GOOD)
    assert parse_query(text)(task) is wanted


def test_what_was_not_measured_is_neither_below_nor_above():
    assert not parse_query("difficulty < 0.5")(TASK)
    assert not parse_query("difficulty >= 0.5")(TASK)


@pytest.mark.parametrize(
    "text",
    ["__import__('os').system('x')", "mutation.real", "(lambda: 1)()", "mutation >", "[x for x in id]", ""],
)
def test_a_query_says_no_more_than_it_may(text):
    with pytest.raises(UserError, match="--where"):
        parse_query(text)


def test_a_misspelt_name_is_answered_with_the_right_one():
    with pytest.raises(UserError, match="Did you mean mutation"):
        parse_query("mutaton > 0.5")


def test_incomparable_values_are_the_users_mistake():
    with pytest.raises(UserError, match="task t"):
        parse_query("id > 3")(TASK)


@dataclass(frozen=True)
class Number:
    id: str


def numbers(count):
    return [Number(str(place)) for place in range(count)]


def task_of(candidate, kind):
    return Task(f"{candidate.id}-{kind}", "Write it.", TASK.tests, info={"kind": kind})


async def two_of_each(candidate):
    await asyncio.sleep(0)
    tasks = tuple(task_of(candidate, kind) for kind in ("write", "fix"))
    return Made(candidate.id, tasks, (Drop("too long", "900 lines", "predict"),))


async def test_a_run_stopped_anywhere_goes_on_and_does_nothing_twice(tmp_path):
    out = tmp_path / "tasks.jsonl"
    with open_book(out, {"seed": 1}) as book:
        whole = await make_all(numbers(6), two_of_each, book)
    text, drops = out.read_bytes(), book.drops_path.read_bytes()
    assert (whole.num_tasks, whole.num_fruitful, whole.reasons) == (12, 6, {"predict: too long": 6})
    for cut in range(0, len(drops), 17):
        done = drops[:cut].count(b"\n") - 1
        for ahead in (0, 40, 400):  # what was written of candidates without their line
            lines = text.splitlines(keepends=True)
            out.write_bytes(
                (b"".join(lines[: 2 * done]) + b"".join(lines[2 * done :])[:ahead]) if done > 0 else b""
            )
            book.drops_path.write_bytes(drops[:cut])
            made = []

            async def make(candidate, made=made):
                made.append(candidate.id)
                return await two_of_each(candidate)

            with open_book(out, {"seed": 1}) as again:
                summary = await make_all(numbers(6), make, again, concurrency=1)
            assert out.read_bytes() == text
            assert made == [str(place) for place in range(max(done, 0), 6)]
            assert (summary.num_tasks, summary.kinds) == (12, {"write": 6, "fix": 6})


async def test_other_settings_are_refused(tmp_path):
    with open_book(tmp_path / "t.jsonl", {"seed": 1}) as book:
        book.add(await two_of_each(Number("a")))
    with pytest.raises(UserError, match="another seed"), open_book(tmp_path / "t.jsonl", {"seed": 2}):
        pass


async def test_two_writers_and_strangers_files_are_refused(tmp_path):
    with (
        open_book(tmp_path / "t.jsonl", {}),
        pytest.raises(UserError, match="Another lathe make"),
        open_book(tmp_path / "t.jsonl", {}),
    ):
        pass
    (tmp_path / "mine.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="Choose another --out"), open_book(tmp_path / "mine.jsonl", {}):
        pass


async def test_a_failed_machine_leaves_its_candidate_for_the_next_run(tmp_path):
    async def make(candidate):
        if candidate.id == "1":
            raise InfrastructureError("no memory")
        return await two_of_each(candidate)

    with open_book(tmp_path / "t.jsonl", {}) as book:
        summary = await make_all(numbers(4), make, book)
    assert (summary.num_candidates, summary.total) == (3, 4)
    assert "1" not in book.finished


async def test_a_machine_that_fails_again_and_again_is_said(tmp_path):
    async def make(candidate):
        raise InfrastructureError("no memory")

    with open_book(tmp_path / "t.jsonl", {}) as book, pytest.raises(InfrastructureError):
        await make_all(numbers(4), make, book)


async def test_tasks_that_were_not_asked_for_are_drops(tmp_path):
    with open_book(tmp_path / "t.jsonl", {}) as book:
        summary = await make_all(numbers(2), two_of_each, book, where=parse_query("kind == 'fix'"))
    assert (summary.num_tasks, summary.reasons["write: not asked for"]) == (2, 2)
