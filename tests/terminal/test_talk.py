"""What a reply looks like in a terminal and in a pipe."""

import io
from pathlib import Path

from rich.console import Console

from lathe.terminal.talk import BRIGHT, DIM, converse, show
from lathe.testing import ScriptedModel
from lathe.text.chat_template import ChatTemplate
from lathe.types import Message, SamplingParams

QWEN3 = Path(__file__).parent.parent / "text" / "templates" / "qwen3.jinja"
REPLY = "<think>\nTwo and two\nmake four.\n</think>\n\nFour.\x1b[31m"
ANSWER = Message("assistant", "Four.\x1b[31m", reasoning="Two and two\nmake four.")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def thinker(*replies):
    return ScriptedModel(*replies, template=ChatTemplate(QWEN3.read_text(encoding="utf-8")))


def printed(out) -> str:
    assert (
        show(thinker(REPLY).stream_chat([Message("user", "2+2?")]), out, Console(file=io.StringIO()))
        == ANSWER
    )
    return out.getvalue()


def test_a_terminal_shows_the_thought_dimmed():
    text = printed(Terminal())
    assert text.replace(BRIGHT + DIM, "") == f"{DIM}Two and two\nmake four.{BRIGHT}\n\nFour.[31m\n"


def test_a_pipe_gets_the_answer_alone():
    assert printed(io.StringIO()) == "Four.\x1b[31m\n"


def test_the_model_reads_its_own_turns_without_old_thoughts(capsys):
    model = thinker("<think>\nHm.\n</think>\n\nFour.", "Five.")
    converse(model, ["2+2?", "2+3?"], SamplingParams(), Console(file=io.StringIO()))
    assert capsys.readouterr().out == "Four.\nFive.\n"
    prompt = model.tokenizer.decode(model.engine.prompts[-1])
    assert "<|im_start|>assistant\nFour.<|im_end|>" in prompt
