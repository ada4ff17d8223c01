"""`lathe code -p` as a script sees it: the real program on a served model, its stdout and its exit code."""

import json
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from code_process import code, environment, rollout_of, served, words
from planted_bug import NEW, TASK, copy_example, mending
from scripts import call
from serving import serve, wait_until

from lathe.agent.headless import EXIT_CODES
from lathe.jsonl import read_rollouts
from lathe.testing import ScriptedModel


@pytest.fixture
def folder(tmp_path):
    return copy_example(tmp_path / "slots")


def test_the_planted_bug_is_mended(folder, place):
    model = ScriptedModel(*mending(folder), prefix_cache=True)
    with serve(model) as url:
        result = code(folder, *place, "-p", TASK, "--yolo", "--model", url)
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("all four tests pass.\n")
    assert len(result.stdout.splitlines()) == 1
    assert NEW in (folder / "slots.py").read_text()
    tests = subprocess.run([sys.executable, "-m", "unittest"], cwd=folder, capture_output=True)
    assert tests.returncode == 0
    for line in ("● bash  python3 -m unittest", "✗", "[exit code 1]", "● edit", "✓"):
        assert line in result.stderr
    # What is kept is what the model saw and said, token for token.
    (trajectory,) = rollout_of(folder).trajectories
    assert len(trajectory.segments) == 5
    for prompt, segment in zip(model.engine.prompts, trajectory.segments, strict=True):
        assert trajectory.token_ids[: segment.start] == prompt
    assert all(share > 0 for share in model.engine.num_cached_tokens[1:])


def test_stream_json_is_one_object_a_line(folder, place):
    with served(*mending(folder)) as url:
        options = ("--yolo", "--model", url, "--output", "stream-json")
        result = code(folder, *place, "-p", *options, given=TASK)
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    kinds = [line["type"] for line in lines]
    assert kinds[0] == "system"
    assert kinds[-1] == "result"
    assert (kinds.count("assistant"), kinds.count("user")) == (5, 5)
    uses = [b for line in lines if line["type"] == "assistant" for b in line["message"]["content"]]
    ids = [block["id"] for block in uses if block["type"] == "tool_use"]
    results = [line["message"]["content"][0]["tool_use_id"] for line in lines if line["type"] == "user"]
    assert ids == results
    (diff,) = [line["diff"] for line in lines if "diff" in line]
    assert f"+            {NEW}" in diff
    assert {line["session_id"] for line in lines} == {rollout_of(folder).id}
    end = lines[-1]
    assert (end["subtype"], end["is_error"], end["exit_code"]) == ("success", False, 0)
    assert end["result"].endswith("all four tests pass.")
    assert (end["num_turns"], end["num_calls"], end["permission_denials"]) == (5, 5, [])
    assert 0 < end["usage"]["cached_tokens"] < end["usage"]["input_tokens"]


@pytest.mark.parametrize(
    ("mode", "is_edited", "refused"),
    [
        ("ask", False, "(bash, edit)"),
        pytest.param("auto-edit", True, "(bash)", marks=pytest.mark.slow),
    ],
)
def test_what_nobody_allows_is_refused_and_said(folder, place, mode, is_edited, refused):
    with served(*mending(folder)) as url:
        result = code(folder, *place, "-p", TASK, "--mode", mode, "--model", url)
    assert result.returncode == 0
    assert (NEW in (folder / "slots.py").read_text()) == is_edited
    assert f"refused {refused}" in result.stderr
    assert "--mode yolo" in result.stderr


def test_plan_mode_changes_nothing(folder, place):
    if place:
        pytest.skip("without a sandbox, a plan's commands are not kept from writing")
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    replies = (
        call("bash", command="echo gone >slots.py; touch new; cat test_slots.py | head -1"),
        call("write", file_path=str(folder / "new.py"), content="x"),
        "The plan is this.",
    )
    with served(*replies) as url:
        result = code(folder, *place, "-p", "plan it", "--mode", "plan", "--model", url, "-o", "stream-json")
    assert result.returncode == 0
    assert before == {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    said = [line["message"]["content"][0]["content"] for line in map(json.loads, result.stdout.splitlines())
            if line["type"] == "user"]  # fmt: skip
    assert "Read-only file system" in said[0]
    assert "import unittest" in said[0]
    assert "plan mode" in said[1]


LOOP = [call("bash", command="echo same")] * 9


@pytest.mark.parametrize(
    ("replies", "options", "exit_code", "words"),
    [
        (LOOP, ("--max-turns", "2"), 53, "turns are used up"),
        pytest.param(LOOP, ("--max-tokens", "50"), 54, "tokens are used up", marks=pytest.mark.slow),
        ([call("bash", command="sleep 300")], ("--max-time", "1.5"), 55, "time is up"),
        (LOOP, (), 56, "in circles"),
    ],
)
def test_budgets_have_their_own_exit_codes(folder, place, replies, options, exit_code, words):
    with served(*replies) as url:
        result = code(folder, *place, "-p", "go", "--yolo", "--model", url, *options, "-o", "json")
    assert result.returncode == exit_code, result.stderr
    assert words in result.stderr
    data = json.loads(result.stdout)
    assert (data["is_error"], data["exit_code"]) == (True, exit_code)


@pytest.mark.slow
def test_a_full_window_has_its_exit_code(folder, place):
    with served("x", max_context=1000) as url:
        result = code(folder, *place, "-p", "go", "--model", url)
    assert result.returncode == 59
    assert "window is full" in result.stderr


def test_a_session_goes_on_and_forks(folder, place):
    with served("One.", "Two.", "Three.") as url:
        code(folder, *place, "-p", "first", "--model", url)
        rollout = rollout_of(folder)
        second = code(folder, *place, "-p", "-c", "second", "--model", url)
        assert second.stdout == "Two.\n"
        forked = code(
            folder, *place, "-p", "third", "-r", rollout.id[:15], "--fork", "--model", url, "-o", "json"
        )
    data = json.loads(forked.stdout)
    assert data["session_id"] != rollout.id
    files = (folder.parent / "state" / "lathe" / "sessions").rglob("*.jsonl")
    known = {each.id: each for path in files for each in read_rollouts(path)}
    (old,) = known[rollout.id].trajectories
    new = known[data["session_id"]].trajectories[-1]
    assert [message.content for message in old.messages[2:]] == ["One.", "second", "Two."]
    assert [message.content for message in new.messages[2:]] == ["One.", "second", "Two.", "third", "Three."]
    assert new.parent == old.id
    assert new.token_ids[: len(old.token_ids)] == old.token_ids


@pytest.mark.slow
def test_any_encoding_of_the_terminal_will_do(folder, place):
    plain = {**environment(folder), "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for output, said in (("text", b"Gr?? ?"), ("json", b"Gr\\u00fc\\u00df \\u2713")):
        with served("Grüß ✓") as url:
            result = subprocess.run(
                [*words(folder, *place, "--model", url, "-o", output, "-p"), b"caf\xe9 \xff"],
                env=plain, stdin=subprocess.DEVNULL, capture_output=True, timeout=100,
            )  # fmt: skip
        assert result.returncode == 0, result.stderr
        assert said in result.stdout


def test_an_interrupt_keeps_the_session(folder, place):
    started = folder / "started"
    replies = (call("bash", command=f"touch {started}; sleep 300"),)
    with served(*replies) as url, subprocess.Popen(
        words(folder, *place, "-p", "go", "--yolo", "--model", url, "-o", "json"),
        env=environment(folder), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert wait_until(started.exists, 60)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert json.loads(out)["stop_reason"] == "interrupted"
    assert "interrupted" in rollout_of(folder).trajectories[-1].messages[-1].content


def test_a_killed_program_leaves_no_command_and_a_session_that_goes_on(folder, place):
    started, seconds = folder / "started", f"{300 + random.random():.9f}"
    replies = (call("bash", command=f"touch {started}; sleep {seconds}"), "I see.")
    with served(*replies) as url:
        with subprocess.Popen(
            words(folder, *place, "-p", "go", "--yolo", "--model", url),
            env=environment(folder), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE,
        ) as process:  # fmt: skip
            assert wait_until(lambda: started.exists() and num_processes(seconds) > 0, 60)
            process.kill()
        if not place:
            assert wait_until(lambda: num_processes(seconds) == 0, 60)
        result = code(folder, *place, "-p", "-c", "what happened?", "--model", url)
    assert result.stdout == "I see.\n"
    (trajectory,) = rollout_of(folder).trajectories
    assert "ended before this call was done" in trajectory.messages[-3].content


def num_processes(word: str) -> int:
    """How many processes of this machine, in sandboxes too, have a word in their command line."""
    count = 0
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            count += word.encode() in place.read_bytes()
        except OSError:  # it has just ended
            continue
    return count


@pytest.mark.slow
def test_real_weights_end_cleanly(folder, place):
    """The default model can't do the work; whatever it says, the program ends as it should."""
    options = ("-p", TASK, "--yolo", "--model", "smollm2", "--max-turns", "2", "--max-tokens", "120")
    result = code(folder, *place, *options, "--temperature", "0", "-o", "json")
    data = json.loads(result.stdout)
    assert result.returncode == data["exit_code"] == EXIT_CODES[data["stop_reason"]]
    assert data["stop_reason"] in ("done", "max_turns", "max_tokens", "loop", "length")
    assert "Traceback" not in result.stderr
    (trajectory,) = rollout_of(folder).trajectories
    assert sum(trajectory.loss_mask) == data["usage"]["output_tokens"] <= 120


@pytest.mark.slow
def test_tools_of_an_mcp_server_are_asked_for_and_run(folder, place, tmp_path):
    pytest.importorskip("mcp")
    server = Path(__file__).parent / "mcp_server.py"
    file = tmp_path / "mcp.json"
    file.write_text(
        json.dumps({"mcpServers": {"sums": {"command": sys.executable, "args": [str(server), "stdio"]}}})
    )
    replies = (call("mcp__sums__add", a=20, b=22), "Done.")
    for mode, said in (("ask", "nobody is there"), ("yolo", "42")):
        with served(*replies) as url:
            options = ("-p", "add", "--mcp", file, "--mode", mode, "--model", url, "-o", "stream-json")
            result = code(folder, *place, *options)
        lines = [json.loads(line) for line in result.stdout.splitlines()]
        assert "mcp__sums__add" in lines[0]["tools"], result.stderr
        assert said in lines[2]["message"]["content"][0]["content"]
