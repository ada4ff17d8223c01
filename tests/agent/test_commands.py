import pytest

from lathe.agent.commands import Typed, completions, mentions, parse_command
from lathe.errors import UserError


@pytest.mark.parametrize(
    ("line", "typed"),
    [
        ("/help", Typed("help")),
        ("  /mode auto-edit ", Typed("mode", "auto-edit")),
        ("/exit", Typed("quit")),
        ("/model http://localhost:8000/v1", Typed("model", "http://localhost:8000/v1")),
        ("/etc/hosts is wrong", None),
        ("fix /help", None),
        ("/", None),
        ("/rewind 1\nand more", None),
    ],
)
def test_commands(line, typed):
    assert parse_command(line) == typed


def test_an_unknown_command_gets_a_hint():
    with pytest.raises(UserError, match="Did you mean /context"):
        parse_command("/contxt")
    with pytest.raises(UserError, match="/help"):
        parse_command("/zzzzzz")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("look at @src/a.py, please", ["src/a.py"]),
        ("@a.py and @b\\ c.txt. (@d) @a.py", ["a.py", "b c.txt", "d"]),
        ("mail a@b.org, @ and @@", []),
    ],
)
def test_mentions(text, names):
    assert mentions(text) == names


def test_completion():
    files = ["src/main.py", "main.c", "docs/domain.md", "a b.txt"]
    assert list(completions("/co", files)) == [("/context", 3), ("/compact", 3)]
    assert list(completions("/mode a", files)) == [("ask", 1), ("auto-edit", 1)]
    assert list(completions("/resume 2", files, ["2026", "1999"])) == [("2026", 1)]
    assert [name for name, _ in completions("see @main", files)] == [
        "@main.c",
        "@src/main.py",
        "@docs/domain.md",
    ]
    assert list(completions("see @a\\ ", files)) == [("@a\\ b.txt", 4)]
    assert list(completions("a word", files)) == []
    assert list(completions("mail a@m", files)) == []
