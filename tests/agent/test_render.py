"""What a terminal gets, as text."""

from io import StringIO

from rich.console import Console

from lathe.agent.events import Ended, Nudged, ToolEnded, ToolStarted, TurnStarted
from lathe.agent.panels import rewind_panel, window_panel
from lathe.agent.render import Renderer, clean, diff_text, folded, hidden_words, one_line
from lathe.agent.shadow import Rewind, Snapshot
from lathe.agent.stats import Window, share_out
from lathe.text.tool_calls import Content, Reasoning
from lathe.types import Message, ToolCall


def drawn(*events) -> str:
    out = StringIO()
    renderer = Renderer(Console(file=out, width=80))
    for event in events:
        renderer.hear(event)
    return out.getvalue()


CALL = ToolCall("bash", {"command": "make\nmake test"}, "1")


def test_words_and_calls_come_in_their_order():
    events = (TurnStarted(1), Reasoning("hm"), Content("\n\nI "), Content("try."), ToolStarted(CALL))
    result = Message("tool", "\n".join(map(str, range(40))))
    text = drawn(*events, ToolEnded(CALL, result, 2.5), Nudged("empty", "Go on."), Ended("loop", "5 times"))
    assert text.splitlines() == [
        "hm",
        "I try.",
        "● bash  make ⏎ make test",
        *(f"  {number}" for number in range(4)),
        "  … 32 lines …",
        *(f"  {number}" for number in range(36, 40)),
        "  2.5 s",
        "  (told it: Go on.)",
        "Stopped: it went in circles. 5 times",
    ]


def test_a_denied_call_and_a_diff():
    denied = ToolEnded(CALL, Message("tool", "no"), 0.1, is_error=True, denied=True)
    assert drawn(denied) == "  ✗ no\n"
    edited = ToolEnded(CALL, Message("tool", "done"), 0.1, diff="--- a\n+++ b\n@@ -1 +1 @@\n-x\n+y\n")
    assert drawn(edited).splitlines() == ["  --- a", "  +++ b", "  @@ -1 +1 @@", "  -x", "  +y"]


def test_what_a_line_hides_is_shown_before_it_is_allowed():
    assert hidden_words(ToolCall("bash", {"command": "make test"})) == ""
    assert hidden_words(CALL) == "  command: make\n    make test"
    long = "true " + "x" * 500 + "; rm -rf ."
    assert hidden_words(ToolCall("bash", {"command": long})) == f"  command: {long}"
    assert "b: [1]" in hidden_words(ToolCall("mcp__a", {"command": "x", "b": [1]}))


def test_markup_in_a_strangers_text_is_text():
    assert drawn(Content("[red]x[/red] [link=file:///]y")) == "[red]x[/red] [link=file:///]y"


def test_no_control_character_is_left():
    evil = "".join(map(chr, range(0x2100))) + "\ud800"
    left = clean(evil)
    assert not any(ord(char) < 32 and char not in "\t\n" for char in left)
    assert not any(127 <= ord(char) < 160 or 0x202A <= ord(char) <= 0x202E for char in left)
    left.encode()


def test_long_texts_are_folded():
    assert list(folded("a\nb\nc", 3)) == ["a", "b", "c"]
    assert list(folded("a\nb\nc\nd", 3)) == ["a", "b", "… 1 lines …", "d"]
    assert len(one_line("x" * 1000)) == 400
    assert "97 lines more" in diff_text("+x\n" * 157, 60).plain


def test_shares_sum_to_the_whole():
    for total in (0, 1, 7, 1000):
        assert sum(share_out(total, {"a": 1, "b": 1, "c": 1}).values()) == total
    assert share_out(5, {"a": 0, "b": 0}) == {"a": 0, "b": 0}


def test_a_bar_is_never_longer_than_its_room():
    parts = {"system": 1, "tools": 1, "files": 900, "messages": 90, "results": 8}
    for size in (None, 1000, 500):
        line = window_panel(Window(parts, 1000, size, True), 80).plain.splitlines()[1]
        assert len(line) == 60


def test_what_going_back_would_do_is_said():
    rewind = Rewind(Snapshot("a", ("big",)), Snapshot("b"), ("x",), ("y",), ("y",))
    text = rewind_panel(rewind).plain
    assert text.splitlines() == [
        "  restored  x",
        "  deleted  y  (you changed it since)",
        "  not kept, stays as it is: big",
    ]
