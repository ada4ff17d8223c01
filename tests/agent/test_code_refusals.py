"""What `lathe code` refuses, clearly; and what its sandbox keeps from commands."""

import json
import subprocess
from pathlib import Path

import pytest
from code_process import code, environment, served, words
from planted_bug import copy_example
from scripts import call
from typer.testing import CliRunner

import lathe
from lathe.agent.headless import EXIT_CODES
from lathe.cli import app
from lathe.commands.code import CODE_EXITS
from lathe.sandbox.spec import Bind, SandboxSpec

SILENT = "http://127.0.0.1:9"  # the discard port: nobody listens


@pytest.fixture
def folder(tmp_path):
    return copy_example(tmp_path / "slots")


def error_of(result: subprocess.CompletedProcess, exit_code: int = 1) -> str:
    assert result.returncode == exit_code, result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    return result.stderr


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


@pytest.mark.slow
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
