"""Sessions come back token for token, whatever ended the process that wrote them."""

import multiprocessing
import os
from pathlib import Path

import pytest

from lathe.agent.session import SessionStore, branch
from lathe.agent.shadow import Snapshot
from lathe.errors import RecordError, UserError
from lathe.jsonl import read_rollouts
from lathe.types import Completion, Message, SamplingParams, TokenLogprob, Tool, ToolCall, Trajectory


def answered(
    trajectory: Trajectory, text: str, *new_ids: int, calls: tuple[ToolCall, ...] = ()
) -> Trajectory:
    prompt = trajectory.token_ids + tuple(range(len(trajectory.token_ids), len(trajectory.token_ids) + 3))
    reply = Completion(
        Message("assistant", text, calls),
        prompt,
        new_ids,
        tuple(TokenLogprob(token_id, -0.1 * token_id) for token_id in new_ids),
        "stop",
    )
    return trajectory.extend(reply, SamplingParams(temperature=0.7))


def begun() -> Trajectory:
    return Trajectory((Message("system", "You are\u2028 careful. \ud800"),), (Tool("bash", "runs"),))


@pytest.fixture
def store(tmp_path) -> SessionStore:
    project = tmp_path / "project"
    project.mkdir()
    return SessionStore(tmp_path / "state", project)


def two_turns(store: SessionStore):
    session = store.create("tiny")
    first = begun()
    session.begin_turn("fix it\nplease", first, Snapshot("a" * 40, ("big.bin",)))
    first = answered(
        first.add(Message("user", "fix it")), "", 7, 8, calls=(ToolCall("bash", {"c": 1}, "c1"),)
    )
    session.save(first)
    first = first.add(Message("tool", "done", tool_call_id="c1"))
    session.save(first)
    first = answered(first, "fixed", 9)
    session.end_turn(first, Snapshot("b" * 40), "done")
    session.begin_turn("more", first, Snapshot("c" * 40))
    second = answered(first.add(Message("user", "more")), "more done", 11, 12)
    session.end_turn(second, None, "done")
    session.close()
    return session, first, second


def test_what_was_written_is_read(store):
    written, _, second = two_turns(store)
    read = store.resume(written.id)
    assert read.trajectory == second
    assert read.points == written.points
    assert read.points[0].after == Snapshot("b" * 40)
    assert (read.title, read.model) == ("fix it", "tiny")
    read.close()


def test_a_session_is_a_rollout_for_every_reader(store):
    written, _, second = two_turns(store)
    (rollout,) = read_rollouts(written.path)
    assert rollout.id == written.id
    assert rollout.trajectories == (second,)
    assert sum(rollout.trajectories[0].loss_mask) == 5


def test_each_turn_costs_what_is_new(store):
    session = store.create()
    trajectory = begun().add(Message("user", "x" * 10_000))
    session.begin_turn("x", trajectory, None)
    sizes = []
    for _ in range(3):
        trajectory = answered(trajectory, "y", 1)
        session.save(trajectory)
        sizes.append(session.path.stat().st_size)
    assert sizes[2] - sizes[1] < 1_000
    session.close()


def test_going_back_begins_a_trajectory_that_names_the_old_one(store):
    written, first, second = two_turns(store)
    session = store.resume()
    point = session.points[1]
    back = session.rewind(point)
    assert back.messages == first.messages
    assert back.token_ids == first.token_ids
    assert not any(back.loss_mask)
    assert back.parent == second.id
    again = answered(back.add(Message("user", "other")), "other", 13)
    session.begin_turn("other", back, None)
    session.end_turn(again, None, "done")
    session.close()
    read = store.resume(written.id)
    assert read.trajectory == again
    assert [each.prompt for each in read.points] == ["fix it\nplease", "other"]
    (rollout,) = read_rollouts(read.path)
    assert rollout.trajectories == (second, again)
    read.close()


def test_a_cleared_session_has_no_conversation(store):
    two_turns(store)
    session = store.resume()
    session.clear()
    session.close()
    read = store.resume()
    assert (read.trajectory, read.points) == (None, [])
    read.close()


def test_a_fork_goes_on_and_leaves_the_old_one(store):
    written, first, second = two_turns(store)
    before = written.path.read_bytes()
    fork = store.fork(written.id)
    assert fork.id != written.id
    assert fork.trajectory.token_ids == second.token_ids
    assert fork.trajectory.parent == second.id
    assert fork.rewind(fork.points[1]).messages == first.messages
    fork.close()
    assert written.path.read_bytes() == before
    read = store.resume(fork.id)
    assert read.trajectory.messages == first.messages
    read.close()


@pytest.mark.parametrize("num_lost", [1, 2, 40])
def test_a_torn_end_is_dropped_and_the_session_goes_on(store, num_lost):
    written, _, second = two_turns(store)
    data = written.path.read_bytes()
    lines = data.splitlines(keepends=True)
    written.path.write_bytes(data[:-num_lost])
    session = store.resume()
    assert session.trajectory.messages == second.messages[:-2]  # the last line was the whole of turn two
    session.save(second)
    session.close()
    assert written.path.read_bytes().startswith(b"".join(lines[:-1]))
    read = store.resume()
    assert read.trajectory == second
    read.close()


def test_a_damaged_line_is_named(store):
    written, _, _ = two_turns(store)
    lines = written.path.read_bytes().splitlines(keepends=True)
    written.path.write_bytes(lines[0] + b"{nonsense}\n" + b"".join(lines[2:]))
    with pytest.raises(RecordError, match="line 2"):
        store.resume()
    written.path.write_bytes(lines[0] + b"".join(lines[2:]))
    with pytest.raises(RecordError, match="line 2: part"):
        store.resume()
    written.path.write_bytes(b"\x00\xff\n")
    with pytest.raises(RecordError, match="line 1"):
        store.resume()
    assert store.list()[0].title == "(damaged)"


def test_an_empty_file_is_an_error_of_one_line(store):
    written, _, _ = two_turns(store)
    written.path.write_bytes(b"")
    with pytest.raises(UserError, match="empty"):
        store.resume(written.id)


def test_unknown_sessions_and_beginnings(store):
    with pytest.raises(UserError, match="none yet"):
        store.resume()
    first, _, _ = two_turns(store)
    second, _, _ = two_turns(store)
    with pytest.raises(UserError, match="has no session nope"):
        store.resume("nope")
    with pytest.raises(UserError, match="beginning of 2"):
        store.resume("2")
    os.utime(first.path, (2e9, 2e9))
    assert [info.id for info in store.list()] == [first.id, second.id]
    session = store.resume(second.id[:-1])
    assert session.id == second.id
    session.close()


def _try(path: Path, project: Path, said) -> None:
    try:
        SessionStore(path, project).resume()
        said.put("opened")
    except UserError as error:
        said.put(str(error))


def test_one_session_is_open_in_one_place(store, tmp_path):
    two_turns(store)
    session = store.resume()
    context = multiprocessing.get_context("spawn")
    said = context.Queue()
    process = context.Process(target=_try, args=(tmp_path / "state", store.project, said))
    process.start()
    assert "open in another terminal" in said.get(timeout=60)
    process.join(60)
    session.close()


def test_nothing_is_written_before_something_is_said(store):
    session = store.create()
    session.clear()
    session.close()
    assert store.list() == []


def test_others_cant_read_it(store):
    written, _, _ = two_turns(store)
    assert written.path.stat().st_mode & 0o077 == 0
    assert written.path.parent.stat().st_mode & 0o077 == 0


def test_a_folder_that_cant_be_written_is_a_clear_error(tmp_path):
    (tmp_path / "state").write_text("a file")
    session = SessionStore(tmp_path / "state", tmp_path).create()
    with pytest.raises(UserError, match="can't be kept"):
        session.begin_turn("x", begun(), None)


def test_a_branch_marks_no_token_twice():
    trajectory = answered(begun().add(Message("user", "x")), "y", 1, 2)
    copy = branch(trajectory, 2, len(trajectory.token_ids))
    assert copy.segments == ()
    assert len(copy.loss_mask) == len(copy.token_ids)
