"""Files of JSONL as samples for SFT. What a file holds is said by the keys of its lines:

    {"trajectories": [...]}                     Rollouts (jsonl.py); their loss masks say what is trained
    {"messages": [...], "tools": [...]}         chats as OpenAI writes them; the assistant's words are trained
    {"prefix": "", "suffix": "", "middle": ""}  the middle is trained; also path, repo_name and files,
                                                [{"path": "", "code": ""}]

Chats and middles may stand in one file, rollouts have files of their own.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lathe.errors import RecordError, UserError
from lathe.jsonl import read_rollouts
from lathe.text import fim
from lathe.text.lessons import lessons
from lathe.text.messages import to_messages, to_tools
from lathe.train.batch import Sample
from lathe.train.parts import Parts
from lathe.types import Message, Rollout, Tool

FIM_END = "<|endoftext|>"  # what ends a middle in Qwen2.5-Coder's training data


@dataclass(frozen=True)
class RowConfig:
    """`max_tokens`: a longer sample is left out; a middle's surroundings are cut to fit. `min_reward`: only
    judged rollouts that earned as much (None: all)."""

    max_tokens: int = 4096
    min_reward: float | None = None


@dataclass(frozen=True)
class Rows:
    """Samples, and how many rows or parts of them were left out for which reason."""

    samples: list[Sample] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    def describe(self) -> str:
        """One line for people."""
        num_tokens = sum(len(sample.token_ids) for sample in self.samples)
        num_trained = sum(sample.num_trained for sample in self.samples)
        left = "".join(f"; left out: {count:,} {reason}" for reason, count in self.left_out.items())
        return f"{len(self.samples):,} samples, {num_tokens:,} tokens, {num_trained:,} of them trained{left}"


def read_rows(
    paths: Iterable[Path], parts: Parts, config: RowConfig, progress: Callable[[int, int], None] | None = None
) -> Rows:
    """The samples of all files (of a folder: its .jsonl), in their order. `progress` hears of bytes.

    Raises RecordError, which names file and line, for what is none of the three.
    """
    files = [file for path in paths for file in _files(path)]
    rows, done, total = Rows(), 0, sum(path.stat().st_size for path in files)

    def advance(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        if progress:
            progress(done, total)

    for path in files:
        for sample in _of_file(path, parts, config, rows.left_out, advance):
            if len(sample.token_ids) > config.max_tokens:
                rows.left_out[f"longer than {config.max_tokens} tokens"] += 1
            elif not sample.num_trained:
                rows.left_out["without a trained token"] += 1
            else:
                rows.samples.append(sample)
    return rows


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise RecordError(f"{path} does not exist: name a file of JSON lines, or a folder of .jsonl files.")
    return sorted(path.rglob("*.jsonl")) if path.is_dir() else [path]


def _of_file(
    path: Path, parts: Parts, config: RowConfig, left_out: Counter[str], advance: Callable[[int], None]
) -> Iterator[Sample]:
    if _holds_rollouts(path):
        for rollout in read_rollouts(path):
            yield from of_rollout(rollout, parts, config, left_out)
        advance(path.stat().st_size)
        return
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            advance(len(line))
            if not line.strip():
                continue
            try:
                yield from of_row(json.loads(line), parts, config)
            except (ValueError, TypeError, RecursionError, UserError) as error:
                raise RecordError(f"{path}, line {number}: {error}") from error


def _holds_rollouts(path: Path) -> bool:
    with path.open("rb") as lines:
        first = next((line for line in lines if line.strip()), b"")
    try:
        data = json.loads(first)
    except ValueError:
        return False
    return isinstance(data, dict) and "trajectories" in data


def of_rollout(rollout: Rollout, parts: Parts, config: RowConfig, left_out: Counter[str]) -> Iterator[Sample]:
    """A rollout's trajectories. Those whose tokens nobody knows are encoded as the chats that they are."""
    reward = rollout.verdict.reward if rollout.verdict else None
    if config.min_reward is not None and (reward is None or reward < config.min_reward):
        left_out[f"below a reward of {config.min_reward:g}"] += 1
        return
    for trajectory in rollout.trajectories:
        if not trajectory.token_ids:
            yield from of_chat(trajectory.messages, trajectory.tools, parts, **trajectory.template_kwargs)
            continue
        if max(trajectory.token_ids) >= parts.model.config.vocab_size:
            raise RecordError(
                f"The rollout {rollout.id} holds the token {max(trajectory.token_ids)}, and this model has "
                f"{parts.model.config.vocab_size}: it was sampled from a model with another tokenizer."
            )
        # nothing precedes the first token, so nothing could have predicted it
        mask = (False, *trajectory.loss_mask[1:])
        yield Sample(trajectory.token_ids, mask, trajectory=trajectory.id)


def of_row(row: Any, parts: Parts, config: RowConfig) -> Iterator[Sample]:
    """A chat's samples, or a middle's. Raises ValueError for another row."""
    if isinstance(row, Mapping) and isinstance(row.get("messages"), list):
        yield from of_chat(to_messages(row["messages"]), to_tools(row.get("tools")), parts)
    elif isinstance(row, Mapping) and isinstance(row.get("middle"), str):
        yield of_middle(row, parts, config.max_tokens)
    else:
        keys = f"its keys are {', '.join(map(str, row))}" if isinstance(row, Mapping) else "no object"
        raise ValueError(f"it has neither messages nor prefix, middle and suffix nor trajectories: {keys}")


def of_chat(
    messages: tuple[Message, ...], tools: tuple[Tool, ...], parts: Parts, **template_kwargs: Any
) -> Iterator[Sample]:
    found = lessons(
        parts.template,
        parts.tokenizer,
        messages,
        tools,
        end_token_ids=parts.eos_token_ids,
        **template_kwargs,
    )
    for ids, is_said in found:
        yield Sample(tuple(ids), (False, *is_said[1:]))


def of_middle(row: Mapping[str, Any], parts: Parts, max_tokens: int) -> Sample:
    texts = {name: row.get(name, "") for name in ("prefix", "suffix", "middle", "path", "repo_name")}
    wrong = [name for name, text in texts.items() if not isinstance(text, str)]
    if wrong:
        raise ValueError(f"{wrong[0]} is no text")
    middle = texts.pop("middle")
    files = tuple(fim.SourceFile(str(file["path"]), str(file["code"])) for file in row.get("files", ()))
    special = parts.tokenizer.special_tokens
    ids = [*parts.tokenizer.encode(middle), special.get(FIM_END, parts.eos_token_ids[0])]
    prompt, _ = fim.fit(parts.tokenizer, fim.FimPrompt(**texts, files=files), max(max_tokens - len(ids), 0))
    return Sample((*prompt, *ids), (False,) * len(prompt) + (True,) * len(ids))
