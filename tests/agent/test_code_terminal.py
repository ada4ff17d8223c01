"""`lathe code` as a person sees it: the real program in a real pseudo-terminal, on a served model."""

import os
from contextlib import contextmanager
from functools import partial

import pytest
from planted_bug import NEW, OLD, copy_example, mending
from pseudo_terminal import CTRL_C, CTRL_D, TAB, PseudoTerminal
from scripts import call
from serving import serve

from lathe.jsonl import read_rollouts
from lathe.testing import ScriptedModel


@pytest.fixture
def folder(tmp_path):
    return copy_example(tmp_path / "slots")


@pytest.fixture
def terminal(place, tmp_path, folder):
    """Opens the program on a model that says these replies."""
    return partial(opened, tmp_path, folder, place)


@contextmanager
def opened(tmp_path, folder, place, *replies, options=(), **model_options):
    words = ["-m", "lathe.cli", "code", "--cwd", str(folder), *place, *options]
    env = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "state"), "HOME": str(tmp_path / "home")}
    with (
        serve(ScriptedModel(*replies, prefix_cache=True, **model_options)) as url,
        PseudoTerminal([*words, "--model", url], env) as screen,
    ):
        yield screen


def test_a_bug_is_mended_with_a_persons_leave(terminal, tmp_path, folder):
    with terminal(*mending(folder)) as screen:
        screen.wait_for("scripted in", "/help lists", "❯")
        screen.type("the tests fail: find the bug and mend it")
        screen.wait_for("I run the tests first.", "bash", "python3 -m unittest", "allow?")
        screen.type("a")  # always: the same command isn't asked for again
        screen.wait_for("FAILED (failures=1)")
        screen.wait_for("slots.py", "merged")
        screen.wait_for(f"-            {OLD}", f"+            {NEW}", "allow?")
        assert OLD in (folder / "slots.py").read_text()  # nothing was changed yet
        screen.type("y")
        screen.wait_for("OK", "all four tests pass.", "5 turns")
        assert NEW in (folder / "slots.py").read_text()
        screen.type("/stats")
        screen.wait_for("turns", "5", "cached", "first token", "tok/s", "bash", "2 calls, ")
        screen.type("/context")
        screen.wait_for("of 32,768 tokens", "system", "tools", "files", "messages", "results")
        screen.type("/diff")
        screen.wait_for("--- a/slots.py", "+++ b/slots.py", NEW)
        screen.type("/quit")
        assert screen.end() == 0


def test_going_back_restores_conversation_and_files(terminal, tmp_path, folder):
    write = call("bash", command="echo made >made.txt; echo '# more' >>slots.py; rm README.md")
    replies = ("Hello.", write, "Done.", "Fresh.")
    with terminal(*replies, options=["--yolo"]) as screen:
        screen.wait_for("❯")
        screen.type("hello")
        screen.wait_for("Hello.", "1 turn")
        screen.type("make a mess")
        screen.wait_for("Done.", "2 turns")
        assert (folder / "made.txt").exists()
        (folder / "test_slots.py").write_text("mine\n")
        screen.type("/rewind")
        screen.wait_for("1", "hello", "2", "make a mess", "before which turn?")
        screen.type("2")
        screen.wait_for(
            "restored",
            "README.md",
            "slots.py",
            "test_slots.py",
            "(you changed it since)",
            "deleted  made.txt",
        )
        screen.type("k")
        screen.wait_for("Back before turn 2")
        assert not (folder / "made.txt").exists()
        assert (folder / "README.md").exists()
        assert "# more" not in (folder / "slots.py").read_text()
        assert (folder / "test_slots.py").read_text() == "mine\n"
        screen.type("what now?")
        screen.wait_for("Fresh.", "1 turn")
        screen.type("/rewind 7")
        screen.wait_for("There is no turn 7: choose one of 1, 2.", "❯")
        screen.type("", end=CTRL_D)
        assert screen.end() == 0
    (path,) = (tmp_path / "state" / "lathe" / "sessions").rglob("*.jsonl")
    (rollout,) = read_rollouts(path)
    old, new = rollout.trajectories
    assert new.parent == old.id
    assert [message.content for message in new.messages[2:]] == ["Hello.", "what now?", "Fresh."]
    assert new.token_ids[: new.segments[0].start][:200] == old.token_ids[:200]


def test_ctrl_c_ends_the_turn_and_twice_leaves_and_the_session_goes_on(terminal, tmp_path, folder):
    replies = (call("bash", command="echo begun; sleep 600"), "I stopped.", "As I said.")
    with terminal(*replies, options=["--yolo"]) as screen:
        screen.wait_for("❯")
        screen.type("wait")
        screen.wait_for("sleep 600", "running bash")
        screen.type("", end=CTRL_C)
        screen.wait_for("Stopped: interrupted.", "❯")
        screen.type("go on")
        screen.wait_for("I stopped.", "1 turn", "❯")
        screen.type("", end=CTRL_C)
        screen.wait_for("Ctrl-C again leaves.")
        screen.type("", end=CTRL_C)
        assert screen.end() == 0
    with terminal("As I said.", options=["-c"]) as screen:
        screen.wait_for("Going on with", "after 2 turns")
        screen.type("and?")
        screen.wait_for("As I said.")
        screen.type("/sessions")
        screen.wait_for("wait", "(this one)")
        screen.type("/exit")
        assert screen.end() == 0
    (path,) = (tmp_path / "state" / "lathe" / "sessions").rglob("*.jsonl")
    (rollout,) = read_rollouts(path)
    (trajectory,) = rollout.trajectories
    assert [message.role for message in trajectory.messages] == (
        ["system", "user", "assistant", "tool", "user", "assistant", "user", "assistant"]
    )
    assert "interrupted" in trajectory.messages[3].content


@pytest.mark.slow
def test_ctrl_c_stops_a_reply_that_streams(terminal, tmp_path, folder):
    with terminal("word " * 4000, "Yes.", delay_s=0.002) as screen:
        screen.wait_for("❯")
        screen.type("talk")
        screen.wait_for("word word word")
        screen.type("", end=CTRL_C)
        screen.wait_for("Stopped: interrupted.", "❯")
        screen.type("still there?")
        screen.wait_for("Yes.")


def test_a_person_says_no_and_why(terminal, tmp_path, folder):
    replies = (call("bash", command="rm -rf ."), call("bash", command="touch x"), "As you wish.")
    with terminal(*replies) as screen:
        screen.wait_for("❯")
        screen.type("clean up")
        screen.wait_for("rm -rf .", "allow?")
        screen.type("only look")
        screen.wait_for("The user did not allow this: the user said: only look.", "touch x", "allow?")
        screen.type("n")
        screen.wait_for("As you wish.")
        assert (folder / "slots.py").exists()
        assert not (folder / "x").exists()
        screen.type("/mode plan")
        screen.wait_for("Mode plan")
        screen.type("/mode sudo")
        screen.wait_for("sudo is no mode")
        screen.type("/nonsense")
        screen.wait_for("There is no /nonsense")


@pytest.mark.slow
def test_typing_has_completion_history_and_lines(terminal, tmp_path, folder):
    with terminal("One.", "Two.") as screen:
        screen.wait_for("❯")
        screen.type("see @slo", end="")
        screen.wait_for("@slots.py")  # offered
        screen.type("", end=TAB)
        screen.wait_for("ts.py")  # taken
        screen.type("", end="\x1b\r")
        screen.type("second line")
        screen.wait_for("One.")
        screen.type("\x1b[A")  # the turn before
        screen.wait_for("Two.")
        screen.type("/quit")
        screen.end()
    (path,) = (tmp_path / "state" / "lathe" / "sessions").rglob("*.jsonl")
    (rollout,) = read_rollouts(path)
    turns = [message.content for message in rollout.trajectories[0].messages if message.role == "user"]
    assert "see @slots.py\nsecond line" in turns[0]
    assert "def parse_time" in turns[0]  # the file stands behind the turn
    assert turns[1].startswith("see @slots.py\nsecond line")


def test_what_a_model_says_cant_move_the_cursor(terminal, tmp_path, folder):
    evil = "\x1b]0;title\x07\x1b[2J\u202ecod\x1b[31m"
    replies = (f"before {evil} after", call("bash", command=f"printf %s '{evil}'"), "End.")
    with terminal(*replies) as screen:
        screen.wait_for("❯")
        screen.type("say it")
        screen.wait_for("before", "after")
        screen.type("and do it")
        screen.wait_for("allow?")
        screen.type("y")
        screen.wait_for("End.")
        for bad in (b"\x1b]0;title", b"\x1b[2J", "\u202e".encode()):
            assert bad not in screen.raw
