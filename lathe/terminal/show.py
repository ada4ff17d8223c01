"""Rollouts for people: who said what, and which of it would be trained on.

With a tokenizer, a trajectory is shown as the tokens that it was, control tokens and all, in blocks: what the
model read, what it sampled. Without one, as its messages. What would be trained on is green.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby

from rich.console import Console
from rich.text import Text

from lathe.engine.loading import load_tokenizer
from lathe.errors import UserError
from lathe.model import hub
from lathe.model.checkpoint import open_checkpoint
from lathe.terminal.talk import CONTROLS
from lathe.text.tokenizer import Tokenizer
from lathe.text.tool_arguments import json_text
from lathe.types import Message, Rollout, Trajectory, Verdict

TRAINED = "green"
READ = "dim"
MAX_LINES = 24  # of what was read; an agent's first prompt has a thousand


@dataclass(frozen=True)
class Detail:
    """How much of a rollout is shown. `full` leaves no line out."""

    full: bool = False
    ids: bool = False
    logprobs: bool = False


def tokenizers(name: str | None) -> Callable[[str | None], Tokenizer | None]:
    """A function from a record's model to its tokenizer, None where there is none on this machine. `name`
    stands for all of them; it must be there, or to be had."""
    known: dict[str | None, Tokenizer | None] = {None: None}
    chosen = None if name is None else load_tokenizer(open_checkpoint(hub.resolve(name)))

    def find(model: str | None) -> Tokenizer | None:
        if chosen is not None:
            return chosen
        if model not in known:
            try:
                known[model] = load_tokenizer(open_checkpoint(hub.resolve(str(model), fetch=False)))
            except UserError:
                known[model] = None
        return known[model]

    return find


def show_rollout(rollout: Rollout, tokenizer: Tokenizer | None, out: Console, detail: Detail) -> None:
    say(out, rollout_line(rollout), "bold")
    for trajectory in rollout.trajectories:
        say(out, trajectory_line(trajectory), "cyan")
        if trajectory.tools:
            say(out, f"tools  {' '.join(tool.name for tool in trajectory.tools)}", READ)
        if tokenizer is not None and trajectory.token_ids:
            show_tokens(trajectory, tokenizer, out, detail)
        else:
            show_messages(trajectory, out, detail)
    say(out, "")


def rollout_line(rollout: Rollout) -> str:
    known = [("model", rollout.model), ("task", rollout.task), *rollout.info.items()]
    words = [f"{name} {value}" for name, value in known if value is not None]
    return "  ".join(
        ["rollout", rollout.id, rollout.stop_reason or "not ended", verdict_words(rollout.verdict), *words]
    )


def verdict_words(verdict: Verdict | None) -> str:
    if verdict is None:
        return "not judged"
    return f"reward {verdict.reward:g}" if verdict.reward is not None else f"invalid: {verdict.reason}"


def trajectory_line(trajectory: Trajectory) -> str:
    versions = trajectory.weights_versions
    words = ["trajectory", trajectory.id]
    words += [f"parent {trajectory.parent}"] if trajectory.parent else []
    words += [f"{len(trajectory.token_ids):,} tokens", f"{sum(trajectory.loss_mask):,} sampled"]
    words += [f"weights {', '.join(map(str, versions))}"] if versions else []
    words += [trajectory.segments[-1].finish_reason] if trajectory.segments else []
    return "  ".join(words)


# As tokens


@dataclass(frozen=True)
class Block:
    """Neighbouring tokens [start, stop) that were all read, or all sampled in one reply."""

    start: int
    stop: int
    is_trained: bool
    title: str


def blocks(trajectory: Trajectory) -> Iterator[Block]:
    """All of a trajectory's tokens, by its mask."""
    segments = {segment.start: segment for segment in trajectory.segments}
    number = 0

    def kind(place: int) -> tuple[bool, int]:
        nonlocal number
        number += place in segments  # a reply may follow a reply, with nothing read between
        return trajectory.loss_mask[place], number

    for (is_trained, _), group in groupby(range(len(trajectory.token_ids)), kind):
        places = list(group)
        start, stop = places[0], places[-1] + 1
        title = f"{'sampled' if is_trained else 'read'} {stop - start}"
        if is_trained and (segment := segments.get(start)) is not None:
            title += f"  {segment.finish_reason}  weights {', '.join(map(str, segment.weights_versions))}"
        yield Block(start, stop, is_trained, title)


def show_tokens(trajectory: Trajectory, tokenizer: Tokenizer, out: Console, detail: Detail) -> None:
    for block in blocks(trajectory):
        ids = list(trajectory.token_ids[block.start : block.stop])
        show_block(block.title, tokenizer.decode(ids), block.is_trained, out, detail)
        if detail.ids:
            say(out, f"ids {' '.join(map(str, ids))}", "magenta")
        if detail.logprobs and block.is_trained:
            logprobs = trajectory.logprobs[block.start : block.stop]
            for token_id, logprob in zip(ids, logprobs, strict=True):
                say(out, f"{logprob:10.4f}  {token_id:>6}  {tokenizer.decode([token_id])!r}", "magenta")


# As messages


def show_messages(trajectory: Trajectory, out: Console, detail: Detail) -> None:
    """Which replies were sampled is told by their number: they are the last ones. Where no tokens are held,
    as in a row for SFT, all of the assistant's turns would be trained on."""
    replies = [place for place, turn in enumerate(trajectory.messages) if turn.role == "assistant"]
    trained = replies[-len(trajectory.segments) :] if trajectory.token_ids else replies
    for place, message in enumerate(trajectory.messages):
        title = message.role if message.name is None else f"{message.role} {message.name}"
        show_block(title, message_text(message), place in trained, out, detail)


def message_text(message: Message) -> str:
    parts = [f"({message.reasoning})"] if message.reasoning else []
    parts += [message.content] if message.content else []
    parts += [f"{call.name} {json_text(call.arguments)}" for call in message.tool_calls]
    return "\n".join(parts)


# Lines


def show_block(title: str, text: str, is_trained: bool, out: Console, detail: Detail) -> None:
    say(out, f"── {title}", "bold green" if is_trained else "bold")
    lines = text.removesuffix("\n").split("\n")
    num_left_out = len(lines) - MAX_LINES
    if not (detail.full or is_trained or num_left_out <= 1):
        half = MAX_LINES // 2
        lines = [*lines[:half], f"… {num_left_out} lines (--full shows them)", *lines[-half:]]
    say(out, "\n".join(lines), TRAINED if is_trained else READ)


def say(out: Console, text: str, style: str = "") -> None:
    # A reply is a stranger's text: it must not move the cursor, nor be taken for markup; and half of a
    # surrogate pair is no UTF-8.
    plain = text.translate(CONTROLS).encode("utf-8", "backslashreplace").decode()
    out.print(Text(plain, style=style), soft_wrap=True)
