"""`lathe code -p` as a script sees it: the real program on a served model, its stdout and its exit code."""

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from planted_bug import NEW, TASK, copy_example, mending
from scripts import call
from serving import serve, wait_until
from typer.testing import CliRunner

import lathe
from lathe.agent.headless import EXIT_CODES
from lathe.cli import CODE_EXITS, app
from lathe.jsonl import read_rollouts
from lathe.sandbox.spec import Bind, SandboxSpec
from lathe.testing import ScriptedModel

SILENT = "http://127.0.0.1:9"  # the discard port: nobody listens


@pytest.fixture
def folder(tmp_path):
    return copy_example(tmp_path / "slots")


def words(folder: Path, *options: object) -> list[str]:
    return [sys.executable, "-m", "lathe.cli", "code", "--cwd", str(folder), *map(str, options)]


def environment(folder: Path) -> dict[str, str]:
    state = folder.parent / "state"
    return {**os.environ, "XDG_STATE_HOME": str(state), "NO_COLOR": "1", "COLUMNS": "120"}


def code(folder: Path, *options: object, given: str = "") -> subprocess.CompletedProcess:
    return subprocess.run(
        words(folder, *options),
        env=environment(folder),
        input=given,
        capture_output=True,
        text=True,
        timeout=100,
    )


def error_of(result: subprocess.CompletedProcess, exit_code: int = 1) -> str:
    assert result.returncode == exit_code, result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    return result.stderr


@contextmanager
def served(*replies, **options):
    with serve(ScriptedModel(*replies, prefix_cache=True, **options)) as url:
        yield url


def rollout_of(folder: Path):
    (path,) = (folder.parent / "state" / "lathe" / "sessions").rglob("*.jsonl")
    (rollout,) = read_rollouts(path)
    return rollout


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
    ("mode", "is_edited", "refused"), [("ask", False, "(bash, edit)"), ("auto-edit", True, "(bash)")]
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
        (LOOP, ("--max-tokens", "50"), 54, "tokens are used up"),
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


def test_a_killed_program_leaves_a_session_that_goes_on(folder, place):
    started = folder / "started"
    replies = (call("bash", command=f"touch {started}; sleep 300"), "I see.")
    with served(*replies) as url:
        with subprocess.Popen(
            words(folder, *place, "-p", "go", "--yolo", "--model", url),
            env=environment(folder), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE,
        ) as process:  # fmt: skip
            assert wait_until(started.exists, 60)
            process.kill()
        result = code(folder, *place, "-p", "-c", "what happened?", "--model", url)
    assert result.stdout == "I see.\n"
    (trajectory,) = rollout_of(folder).trajectories
    assert "ended before this call was done" in trajectory.messages[-3].content


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


def test_the_help_says_what_each_exit_code_means():
    assert [number for number in EXIT_CODES.values() if f"{number} " not in CODE_EXITS] == []


# Bad input


def test_mistakes_are_one_clear_line(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    there = ("-p", "x", "--model", SILENT)
    file = folder / "slots.py"
    for options, said in (
        (("--cwd", tmp_path / "nowhere", *there), "is no folder to work in"),
        (("--cwd", file, *there), "is no folder: name a project's folder"),
        (("--cwd", Path.home(), *there), "holds your home"),
        (("--mode", "sudo", *there), "sudo is no mode: choose one of plan, ask, auto-edit, yolo"),
        (("-o", "xml", *there), "xml is no output"),
        (("--network", "all", *there), "all is no network"),
        (("--allow", "/nowhere", *there), "--allow /nowhere"),
        (("-c", *there), "there is none yet"),
        (("-r", "nope", *there), "has no session nope"),
        (("-c", "-r", "x", *there), "give one of them"),
        (("--fork", *there), "say which with -c or -r"),
        (("--yolo", "--mode", "plan", *there), "say different things"),
        (("-p", "--model", SILENT), "Say what to do"),
        (("--model", SILENT), "lathe code -p"),
        (("--backend", "magic", *there), "magic"),
        (("-p", "x", "--no-sandbox", "--model", "no-such-model-anywhere"), "no-such-model-anywhere"),
    ):
        result = CliRunner().invoke(app, ["code", "--cwd", str(folder), *map(str, options)])
        assert result.exit_code == 1, (options, result.output)
        assert result.stdout == ""
        assert "Error: " in result.stderr
        assert said in result.stderr.replace("\n", " "), options


def test_a_silent_url_has_its_exit_code(folder):
    assert "can't be reached" in error_of(code(folder, "-p", "x", "--model", SILENT), 57)


def test_a_damaged_session_is_named(folder, place):
    with served("One.") as url:
        code(folder, *place, "-p", "first", "--model", url)
        (path,) = (folder.parent / "state" / "lathe" / "sessions").rglob("*.jsonl")
        path.write_text("{}\n" + path.read_text())
        said = error_of(code(folder, *place, "-p", "-c", "more", "--model", url))
    assert f"{path}, line 1" in said.replace("\n", "")


async def test_a_machine_that_refuses_sandboxes_says_what_to_do(folder, pool):
    """Such a machine: the inside of a sandbox, where no other can be made."""
    lathe_folder = Path(lathe.__file__).parent.parent
    binds = [Bind(str(lathe_folder), str(lathe_folder)), Bind(str(folder), str(folder), True)]
    inside = await pool.create(
        SandboxSpec(workdir=str(folder), binds=tuple(binds), env={"PYTHONPATH": str(lathe_folder)})
    )
    options = ("-p", "x", "--model", SILENT, "--backend", "namespace")
    result = await inside.exec(words(folder, *options), cwd=str(folder))
    assert (result.exit_code, result.stdout) == (58, "")
    assert "lathe doctor says" in result.stderr
    assert "--no-sandbox" in result.stderr
    assert "Traceback" not in result.stderr
    knowing = await inside.exec(words(folder, *options, "--no-sandbox"), cwd=str(folder))
    assert knowing.exit_code == 57  # on to the model, which is not there


def test_the_sandbox_shows_the_project_and_no_secret(folder, place, tmp_path):
    """What a hostile command tries, by the agent's own door."""
    if place:
        pytest.skip("this machine has no sandbox")
    secret = tmp_path / "home" / "secret"
    secret.parent.mkdir()
    secret.write_text("hunter2")
    hook = folder / ".git" / "hooks" / "pre-commit"
    tries = (
        f"cat {secret}; ls -a {secret.parent}; cat /etc/shadow",
        f"touch {tmp_path}/outside /usr/outside",
        f"echo 'touch {tmp_path}/ran' >{hook}; echo '[core]' >>.git/config; mv .git .git2; rm -rf .git/hooks",
        "git config core.fsmonitor evil; echo $LATHE_API_KEY; env | grep hunter2",
        "python3 -c 'import socket; socket.create_connection((\"127.0.0.1\", 9), 2)'",
        "touch inside; git add .; git -c user.name=a -c user.email=b commit -qm inside && echo committed",
    )
    with served(*(call("bash", command=line) for line in tries), "Done.") as url:
        result = subprocess.run(
            words(folder, "-p", "go", "--yolo", "--model", url, "-o", "stream-json"),
            env={**environment(folder), "LATHE_API_KEY": "hunter2", "HOME": str(secret.parent)},
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=100,
        )  # fmt: skip
    assert result.returncode == 0, result.stderr
    lines = map(json.loads, result.stdout.splitlines())
    said = [line["message"]["content"][0]["content"] for line in lines if line["type"] == "user"]
    assert len(said) == len(tries)
    assert not any("hunter2" in text for text in said)
    assert "root:" not in said[0]
    assert not (tmp_path / "outside").exists()
    assert not hook.exists()
    assert "[core]\n[core]" not in (folder / ".git" / "config").read_text()
    assert "fsmonitor" not in (folder / ".git" / "config").read_text()
    assert "Error" in said[4]
    assert "committed" in said[5]  # and yet git works in it
    assert (folder / "inside").exists()
