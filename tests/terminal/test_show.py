import io
import re

import pytest
from rich.console import Console
from typer.testing import CliRunner

from lathe.cli import app
from lathe.jsonl import write_rollouts
from lathe.terminal.show import Detail, blocks, show_rollout, tokenizers
from lathe.testing import tiny_tokenizer
from lathe.types import (
    Completion,
    Message,
    Rollout,
    SamplingParams,
    TokenLogprob,
    Tool,
    ToolCall,
    Trajectory,
    Verdict,
)

TOKENIZER = tiny_tokenizer()


def ids_of(text: str) -> tuple[int, ...]:
    return tuple(TOKENIZER.encode(text, allow_special=True))


def reply(prompt: tuple[int, ...], text: str, message: Message, version: int) -> Completion:
    tokens = tuple(TokenLogprob(token_id, -0.25) for token_id in ids_of(text))
    ids = tuple(token.token_id for token in tokens)
    return Completion(message, prompt, ids, tokens, "stop", weights_version=version)


@pytest.fixture
def rollout() -> Rollout:
    talk = Trajectory((Message("user", "Look."),), (Tool("ls"), Tool("cat")), id="t1", parent="t0")
    call = Message("assistant", "I [b]see[/b].\x1b[2J", (ToolCall("ls", {"path": "ü"}),))
    talk = talk.extend(reply(ids_of("<|im_start|>user\nLook.<|im_end|>\n"), "I [b]see[/b].\x1b[2J", call, 3))
    talk = talk.add(Message("tool", "\n".join(f"file {n}" for n in range(100))))
    done = Message("assistant", "Done \ud800.", reasoning="Hm.")
    prompt = talk.token_ids + ids_of("".join(f"\nfile {n}" for n in range(100)))
    talk = talk.extend(reply(prompt, "Done.", done, 5), SamplingParams())
    return Rollout(
        (talk,), "stop", Verdict(reward=0.5), task="fix", model="tiny", id="r1", info={"session": "s"}
    )


def shown(rollout: Rollout, tokenizer=TOKENIZER, color: bool = False, **detail) -> str:
    text = io.StringIO()
    out = Console(file=text, width=60, force_terminal=color, color_system="standard" if color else None)
    show_rollout(rollout, tokenizer, out, Detail(**detail))
    return text.getvalue()


def test_tokens_are_shown_in_blocks(rollout):
    lines = shown(rollout).splitlines()
    assert lines[0] == "rollout  r1  stop  reward 0.5  model tiny  task fix  session s"
    assert lines[1] == "trajectory  t1  parent t0  825 tokens  22 sampled  weights 3, 5  stop"
    assert lines[2] == "tools  ls cat"
    assert lines[3:7] == [
        "── read 13",
        "<|im_start|>user",
        "Look.<|im_end|>",
        "── sampled 17  stop  weights 3",
    ]
    assert lines[7] == "I [b]see[/b].[2J", "no markup, and no escape reaches the terminal"
    assert lines[8:10] == ["── read 790", ""]
    assert "… 77 lines (--full shows them)" in lines
    assert lines[-3:] == ["── sampled 5  stop  weights 5", "Done.", ""]


def test_full_ids_and_logprobs(rollout):
    text = shown(rollout, full=True, ids=True, logprobs=True)
    assert all(f"file {n}\n" in text for n in range(100))
    assert "ids 68 111 110 101 46\n" in text
    assert "   -0.2500      68  'D'\n" in text
    assert text.count("-0.2500") == 22


def test_messages_are_shown_where_there_is_no_tokenizer(rollout):
    text = shown(rollout, None)
    assert '── user\nLook.\n── assistant\nI [b]see[/b].[2J\nls {"path": "ü"}\n── tool\nfile 0\n' in text
    assert text.endswith("── assistant\n(Hm.)\nDone \\ud800.\n\n")


def green(text: str) -> list[str]:
    return [
        words for style, words in re.findall(r"\x1b\[([\d;]*)m([^\x1b]+)", text) if "32" in style.split(";")
    ]


def test_what_would_be_trained_on_is_green(rollout):
    sampled = ["── sampled 17  stop  weights 3", "I [b]see[/b].[2J", "── sampled 5  stop  weights 5", "Done."]
    assert green(shown(rollout, color=True)) == sampled
    assert [words.split("\n")[0] for words in green(shown(rollout, None, color=True))] == [
        *("── assistant", "I [b]see[/b].[2J", 'ls {"path": "ü"}', "── assistant", "(Hm.)", "Done \\ud800.")
    ]  # fmt: skip
    row = Rollout((Trajectory((Message("user", "a"), Message("assistant", "b"))),))
    assert green(shown(row, color=True)) == ["── assistant", "b"]


def test_few_shots_are_not_green():
    shots = (Message("user", "1"), Message("assistant", "one"), Message("user", "2"))
    talk = Trajectory(shots).extend(reply((1, 2), "two", Message("assistant", "two"), 0))
    assert green(shown(Rollout((talk,)), None, color=True)) == ["── assistant", "two"]


def test_a_reply_right_behind_a_reply_is_a_block_of_its_own():
    first = Trajectory(()).extend(reply((1,), "ab", Message("assistant"), 0))
    both = first.extend(reply(first.token_ids, "c", Message("assistant"), 1))
    assert [(block.start, block.stop, block.is_trained) for block in blocks(both)] == [
        *((0, 1, False), (1, 3, True), (3, 4, True))
    ]  # fmt: skip


def test_the_command_reads_files_and_folders(tmp_path, rollout):
    write_rollouts(tmp_path / "a.jsonl", [rollout, Rollout((), verdict=Verdict(reason="no sandbox"))])
    result = CliRunner().invoke(app, ["show", str(tmp_path)])
    assert result.exit_code == 0
    assert "── assistant" in result.stdout, "no model named tiny is on this machine"
    assert "invalid: no sandbox" in result.stdout
    damaged = tmp_path / "b.jsonl"
    damaged.write_bytes(b"{}\n")
    result = CliRunner().invoke(app, ["show", str(damaged)])
    assert result.exit_code == 1
    assert "line 1" in result.output


def test_a_tokenizer_is_found_by_the_records_model():
    find = tokenizers(None)
    assert find(None) is None
    assert find("no/such-model") is None
    assert find("smollm2") is find("smollm2") is not None
    assert tokenizers("smollm2")("no/such-model").vocab_size == find("smollm2").vocab_size
