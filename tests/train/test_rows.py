"""Rows of JSONL as samples: what is trained of each kind, what is left out, what is refused."""

import json
from collections import Counter
from pathlib import Path

import pytest
from tiny_models import random_model, tiny_config

from lathe.errors import RecordError
from lathe.jsonl import write_rollouts
from lathe.testing import tiny_tokenizer
from lathe.text import fim
from lathe.text.chat_template import ChatTemplate
from lathe.train.parts import Parts
from lathe.train.rows import RowConfig, read_rows
from lathe.types import Message, Rollout, Trajectory, Verdict

END = 258  # <|im_end|>


@pytest.fixture(scope="module")
def parts() -> Parts:
    model = random_model(tiny_config())
    return Parts(model, tiny_tokenizer(), ChatTemplate.builtin(), (END,))


def written(path: Path, *rows: object) -> list[Path]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [path]


def trained_text(sample, parts: Parts) -> str:
    pairs = zip(sample.token_ids, sample.loss_mask, strict=True)
    return parts.tokenizer.decode(token_id for token_id, trained in pairs if trained)


def test_chats_and_middles(tmp_path, parts):
    call = {"id": "1", "function": {"name": "bash", "arguments": '{"command": "ls"}'}}
    chat = {
        "messages": [
            {"role": "user", "content": "Look"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "a.py", "tool_call_id": "1"},
            {"role": "assistant", "content": "a.py"},
        ],
        "tools": [{"type": "function", "function": {"name": "bash", "parameters": {"type": "object"}}}],
    }
    middle = {"prefix": "def f(x):\n", "suffix": "    return y\n", "middle": "    y = x + 1\n"}
    rows = read_rows(written(tmp_path / "rows.jsonl", chat, middle), parts, RowConfig())
    said, filled = (trained_text(sample, parts) for sample in rows.samples)
    calls = "<tool_call>\n<function=bash>\n<parameter=command>\nls\n</parameter>\n</function>\n</tool_call>"
    assert said == f"{calls}<|im_end|>a.py<|im_end|>"
    assert filled == middle["middle"] + "<|endoftext|>"
    prompt, text = fim.decode(parts.tokenizer, rows.samples[1].token_ids)
    assert (prompt.prefix, prompt.suffix, text) == tuple(middle[k] for k in ("prefix", "suffix", "middle"))
    assert not rows.left_out


def test_a_middles_surroundings_are_cut_to_fit(tmp_path, parts):
    row = {"prefix": "a" * 500, "suffix": "b" * 500, "middle": "x"}
    rows = read_rows(written(tmp_path / "rows.jsonl", row), parts, RowConfig(max_tokens=50))
    (sample,) = rows.samples
    assert len(sample.token_ids) == 50
    assert trained_text(sample, parts) == "x<|endoftext|>"


def test_rollouts_are_trained_where_they_were_sampled(tmp_path, parts):
    def rollout(reward: float | None, *trajectories: Trajectory) -> Rollout:
        verdict = None if reward is None else Verdict(reward)
        return Rollout(trajectories, verdict=verdict)

    sampled = Trajectory((), (), (1, 2, 3, 4), (False, False, True, True), (0.0, 0.0, -1.0, -0.5))
    raw = Trajectory((), (), (5, 6), (True, True), (-1.0, -1.0))
    spoken = Trajectory((Message("user", "Hi"), Message("assistant", "Ho")))
    write_rollouts(tmp_path / "a.jsonl", [rollout(1.0, sampled, raw), rollout(0.0, sampled)])
    write_rollouts(tmp_path / "b.jsonl", [rollout(None, sampled), rollout(1.0, spoken)])
    rows = read_rows([tmp_path], parts, RowConfig(min_reward=1.0))
    assert [sample.loss_mask for sample in rows.samples[:2]] == [(False, False, True, True), (False, True)]
    assert trained_text(rows.samples[2], parts) == "Ho<|im_end|>"
    assert rows.left_out == Counter({"below a reward of 1": 2})
    assert len(read_rows([tmp_path], parts, RowConfig()).samples) == 5


def test_what_is_too_long_or_says_nothing_is_counted(tmp_path, parts):
    long = {"messages": [{"role": "user", "content": "a" * 99}, {"role": "assistant", "content": "b"}]}
    silent = {"messages": [{"role": "system", "content": "a"}, {"role": "assistant", "content": "b"}]}
    rows = read_rows(written(tmp_path / "rows.jsonl", long, silent), parts, RowConfig(max_tokens=80))
    assert len(rows.samples) == 1
    assert "left out: 1 longer than 80 tokens" in rows.describe()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{nonsense", "rows.jsonl, line 2: "),
        ('{"text": "a"}', "line 2: it has neither messages nor .*: its keys are text"),
        ("[1]", "line 2: it has neither messages"),
        ('{"messages": [{"role": "wizard"}]}', "line 2: A message has the role 'wizard'"),
        ('{"prefix": 1, "suffix": "", "middle": ""}', "line 2: prefix is no text"),
    ],
)
def test_a_line_that_is_no_row_is_named(tmp_path, parts, line, message):
    good = json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})
    (tmp_path / "rows.jsonl").write_text(f"{good}\n{line}\n")
    with pytest.raises(RecordError, match=message):
        read_rows([tmp_path / "rows.jsonl"], parts, RowConfig())


def test_rollouts_of_another_tokenizer_are_refused(tmp_path, parts):
    write_rollouts(
        tmp_path / "a.jsonl", [Rollout((Trajectory((), (), (1, 999), (False, True), (0.0, -1.0)),))]
    )
    with pytest.raises(RecordError, match="holds the token 999, and this model has 300"):
        read_rows([tmp_path / "a.jsonl"], parts, RowConfig())
    with pytest.raises(RecordError, match="does not exist"):
        read_rows([tmp_path / "none"], parts, RowConfig())
