"""What is asked, in each mode; and that an allowed command allows no other."""

import pytest

from lathe.agent.approvals import Approvals, commands_of, parse_mode, prefixes_of
from lathe.errors import UserError
from lathe.types import ToolCall


def bash(line: str) -> ToolCall:
    return ToolCall("bash", {"command": line})


WRITE = ToolCall("write", {"path": "a", "content": ""})
READ = ToolCall("read", {"path": "a"})
FOREIGN = ToolCall("browser__open", {})


@pytest.mark.parametrize(
    ("mode", "read", "write", "command", "foreign"),
    [
        ("plan", "allow", "refuse", "allow", "refuse"),
        ("ask", "allow", "ask", "ask", "ask"),
        ("auto-edit", "allow", "allow", "ask", "ask"),
        ("yolo", "allow", "allow", "allow", "allow"),
    ],
)
def test_modes(mode, read, write, command, foreign):
    approvals = Approvals(parse_mode(mode))
    judged = [approvals.judge(call)[0] for call in (READ, WRITE, bash("make"), FOREIGN)]
    assert judged == [read, write, command, foreign]


def test_an_unknown_mode_names_those_there_are():
    with pytest.raises(UserError, match="yes is no mode: choose one of plan, ask, auto-edit, yolo"):
        parse_mode("yes")


@pytest.mark.parametrize(
    "line", ["ls", "ls -la src | head -3", "cat a.py && git status -s", "grep -rn 'a(b)' ."]
)
def test_reading_by_command_is_free(line):
    assert Approvals().judge(bash(line))[0] == "allow"


def test_allowed_once_allows_what_begins_alike():
    approvals = Approvals()
    approvals.allow(bash("pytest -q tests"))
    approvals.allow(bash("git commit -m 'x; y'"))
    approvals.allow(bash("python -c 'print(1)'"))
    for line in ("pytest", "pytest -x && ls", "git commit --amend", "python -c 'print(1)'"):
        assert approvals.judge(bash(line))[0] == "allow", line
    for line in ("git push", "python -c 'print(2)'", "python", "pytest2", "pytest\nrm -rf ."):
        assert approvals.judge(bash(line))[0] == "ask", line


@pytest.mark.parametrize(
    "line",
    [
        "pytest; rm -rf .",
        "pytest && rm -rf .",
        "pytest & rm -rf .",
        "pytest | tee out",
        "pytest || rm -rf .",
        "pytest > a.py",
        "pytest $(rm -rf .)",
        'pytest "$(rm -rf .)"',
        "pytest `rm -rf .`",
        "pytest <(rm -rf .)",
        "pytest\nrm -rf .",
        "pytest \\\n; rm -rf .",
        "pytest ;; rm -rf .",
        "pytest {a,b}>x",
        "FOO=1 pytest",
        "'pytest; rm -rf .'",
        "pytest 'unclosed",
        "",
        ";",
        "(pytest; rm -rf .)",
        "! pytest",
        "pytest;rm -rf .",
        "pytest&&rm -rf .",
        "pytest 'a' ;'rm' -rf .",
        "py''test-evil",
        "/tmp/evil/pytest",
    ],
)
def test_nothing_rides_on_an_allowed_command(line):
    approvals = Approvals(allowed={("pytest",)})
    assert approvals.judge(bash(line))[0] == "ask"


def test_allowing_an_edit_allows_edits():
    approvals = Approvals()
    approvals.allow(WRITE)
    assert approvals.mode == "auto-edit"
    assert approvals.judge(bash("make"))[0] == "ask"


def test_what_cant_be_read_for_certain_can_only_be_allowed_once():
    assert prefixes_of("for f in *; do rm $f; done") == []
    approvals = Approvals()
    approvals.allow(bash("for f in *; do rm $f; done"))
    assert approvals.allowed == set()


def test_a_missing_command_is_asked_for():
    assert Approvals().judge(ToolCall("bash", {}))[0] == "ask"


def test_words_are_the_shells():
    assert commands_of("a 'b c' \"d;e\" | f;") == [["a", "b c", "d;e"], ["f"]]
