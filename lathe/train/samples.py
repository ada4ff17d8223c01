"""Attempts as HTML: each token in its box, what is trained in colour.

What a model wrote is a stranger's text. It is escaped, and characters that move text or can't be seen are
written as their names, so that a page shows what was sampled, not what it wants to look like.
"""

from __future__ import annotations

import json
import math
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from statistics import fmean
from typing import Any

from lathe.text.tokenizer import StreamDecoder, Tokenizer
from lathe.types import Message, Rollout, Trajectory

# What is shown of one attempt; the rest is counted.
MAX_READ = 240  # tokens between two replies
MAX_SAMPLED = 900  # tokens of one reply
MAX_TRAJECTORIES = 3
MAX_BLOCKS = 40
MAX_CHARACTERS = 6000  # of a message, or of the evidence

TokenizerOf = Callable[[str | None], Tokenizer | None]


@dataclass(frozen=True)
class Attempt:
    """A rollout among the others of its step. `advantage` is None where the attempt trains nothing.

    `is_noted` says that the trainer wrote it down; else it is the reward less its group's mean.
    """

    rollout: Rollout
    step: int
    group_size: int
    group_passed: int
    advantage: float | None
    is_noted: bool = False


def attempts_of(step: int, rollouts: Iterable[Rollout]) -> list[Attempt]:
    """A step's rollouts with their groups: the attempts at one task."""
    groups: dict[str | None, list[Rollout]] = defaultdict(list)
    for rollout in rollouts:
        groups[rollout.task].append(rollout)
    attempts = []
    for group in groups.values():
        rewards = [each.verdict.reward for each in group if each.verdict and each.verdict.reward is not None]
        for rollout in group:
            noted = rollout.info.get("advantage")
            is_noted = isinstance(noted, int | float) and math.isfinite(noted)
            reward = rollout.verdict.reward if rollout.verdict else None
            computed = None if reward is None else reward - fmean(rewards)
            attempts.append(
                Attempt(
                    rollout,
                    step,
                    len(group),
                    sum(reward >= 1.0 for reward in rewards),
                    float(noted) if is_noted and noted is not None else computed,
                    is_noted,
                )
            )
    return attempts


def choose(attempts: Sequence[Attempt], num: int) -> list[Attempt]:
    """A few that say much: from a group that both passed and failed its best and its worst, then one that the
    machine failed, then others."""

    def mixed(attempt: Attempt) -> tuple[bool, str]:
        return not 0 < attempt.group_passed < attempt.group_size, attempt.rollout.id

    valid = sorted((each for each in attempts if each.advantage is not None), key=mixed)
    if valid:
        task = valid[0].rollout.task
        group = sorted((each for each in valid if each.rollout.task == task), key=lambda each: -_gain(each))
        first = [group[0], group[-1]] if len(group) > 1 else group
    else:
        first = []
    invalid = [each for each in attempts if each.rollout.verdict and not each.rollout.verdict.valid][:1]
    chosen = first + invalid
    once = {id(each): each for each in (*chosen, *valid, *attempts)}
    return list(once.values())[:num]


def _gain(attempt: Attempt) -> float:
    return attempt.advantage or 0.0


# One attempt


def attempt_html(attempt: Attempt, tokenizer: Tokenizer | None) -> str:
    rollout = attempt.rollout
    parts = [f'<article class="attempt {_direction(attempt.advantage)}"><header>{_facts(attempt)}</header>']
    for trajectory in rollout.trajectories[:MAX_TRAJECTORIES]:
        if len(rollout.trajectories) > 1:
            of = f", of {trajectory.parent}" if trajectory.parent else ""
            parts.append(f'<p class="note">trajectory {plain(trajectory.id[:40] + of[:44])}</p>')
        if tokenizer is not None and trajectory.token_ids:
            parts.append(f'<pre class="tokens">{tokens_html(trajectory, tokenizer)}</pre>')
        else:
            parts.append(messages_html(trajectory))
    if (rest := len(rollout.trajectories) - MAX_TRAJECTORIES) > 0:
        parts.append(f'<p class="note">… and {rest} more trajectories</p>')
    if rollout.verdict is not None and rollout.verdict.evidence:
        evidence = json.dumps(rollout.verdict.evidence, indent=1, ensure_ascii=False, default=str)
        parts.append(
            f"<details><summary>evidence</summary><pre>{plain(_middle_out(evidence))}</pre></details>"
        )
    return "".join([*parts, "</article>"])


def _facts(attempt: Attempt) -> str:
    rollout, verdict = attempt.rollout, attempt.rollout.verdict
    if verdict is None:
        word = '<b class="mark">not judged</b>'
    elif verdict.reward is None:
        word = f'<b class="mark bad">invalid</b><span>{plain(str(verdict.reason)[:300])}</span>'
    else:
        word = f'<b class="mark {"good" if verdict.reward >= 1 else ""}">reward {verdict.reward:.3g}</b>'
    facts = [f"step {attempt.step}"]
    if rollout.task is not None:
        facts.append(f'<span class="task">{plain(rollout.task[:80])}</span>')
    if attempt.advantage is not None:
        name = "advantage" if attempt.is_noted else "reward − mean of its group"
        facts.append(f"{name} {attempt.advantage:+.2f}".replace("-", "−"))
    if attempt.group_size > 1:
        facts.append(f"{attempt.group_passed} of {attempt.group_size} passed")
    sampled = sum(sum(each.loss_mask) for each in rollout.trajectories)
    facts.append(f"{sampled:,} of {sum(len(t.token_ids) for t in rollout.trajectories):,} tokens sampled")
    if rollout.stop_reason is not None:
        facts.append(plain(rollout.stop_reason[:40]))
    if verdict is not None and verdict.suspect is not None:
        facts.append(f'<b class="mark bad">suspect</b> {plain(verdict.suspect[:200])}')
    return word + "".join(f"<span>{fact}</span>" for fact in facts)


def _direction(advantage: float | None) -> str:
    """The class of a trained token's tint: up or down, and how much."""
    if advantage is None:
        return "none"
    size = next((n for n, limit in enumerate((0.02, 0.25, 0.6, 1.2)) if abs(advantage) < limit), 4)
    return "flat" if size == 0 else f"{'up' if advantage > 0 else 'down'} a{size}"


# Its tokens


def tokens_html(trajectory: Trajectory, tokenizer: Tokenizer) -> str:
    """The tokens in runs of one kind: read ones are <i>, sampled ones <b>, whose class says how surprising it
    was. Of long runs the middle is left out."""
    runs = [
        (is_trained, [place for place, _ in group])
        for is_trained, group in groupby(enumerate(trajectory.loss_mask), key=lambda pair: pair[1])
    ]
    parts = []
    for number, (is_trained, places) in enumerate(runs):
        if number == MAX_BLOCKS // 2 and len(runs) > MAX_BLOCKS:
            parts.append(_gap(f"{len(runs) - MAX_BLOCKS} more turns"))
        if MAX_BLOCKS // 2 <= number < len(runs) - MAX_BLOCKS // 2:
            continue
        most = MAX_SAMPLED if is_trained else MAX_READ
        if len(places) <= most + 20:
            parts += _boxes(trajectory, places, tokenizer, is_trained)
            continue
        head, tail = places[: most // 2], places[-(most // 2) :]
        parts += _boxes(trajectory, head, tokenizer, is_trained)
        parts.append(_gap(f"{len(places) - 2 * (most // 2):,} tokens"))
        parts += _boxes(trajectory, tail, tokenizer, is_trained)
    return "".join(parts)


def _gap(what: str) -> str:
    return f'<span class="gap">… {what} …</span>'


def _boxes(
    trajectory: Trajectory, places: Sequence[int], tokenizer: Tokenizer, is_trained: bool
) -> Iterator[str]:
    for text, held in _characters([trajectory.token_ids[place] for place in places], tokenizer):
        ids = " ".join(str(trajectory.token_ids[places[n]]) for n in held)
        is_break = text.startswith("\n")
        if not is_trained:
            mark = ' class="n"' if is_break else ""
            yield f'<i{mark} data-id="{ids}">{plain(text)}</i>'
            continue
        logprobs = [trajectory.logprobs[places[n]] for n in held]
        said = " ".join(f"{value:.3g}" for value in logprobs)
        tint = f"l{surprise(sum(logprobs))}{' n' if is_break else ''}"
        yield f'<b class="{tint}" data-id="{ids}" data-lp="{said}">{plain(text)}</b>'


def _characters(ids: Sequence[int], tokenizer: Tokenizer) -> Iterator[tuple[str, list[int]]]:
    """Tokens with their text; those that only together are a character are held together."""
    stream, held = StreamDecoder(tokenizer), []
    for number, token_id in enumerate(ids):
        held.append(number)
        if text := stream.push(token_id):
            yield text, held
            held = []
    if held:
        yield stream.finish() or "∅", held


def surprise(logprob: float) -> int:
    """0 for a token that was certain, up to 4 for one that was drawn against the odds."""
    return next((n for n, limit in enumerate((-0.05, -0.35, -1.2, -3.0)) if logprob > limit), 4)


# Its messages, where ids say nothing here


def messages_html(trajectory: Trajectory) -> str:
    replies = [place for place, turn in enumerate(trajectory.messages) if turn.role == "assistant"]
    trained = replies[-len(trajectory.segments) :] if trajectory.token_ids else replies
    parts = []
    for place, message in enumerate(trajectory.messages[:MAX_BLOCKS]):
        tag = "b" if place in trained else "i"
        text = plain(_middle_out(message_text(message)))
        parts.append(f'<span class="role">{plain(message.role)}</span><{tag} class="turn">{text}</{tag}>')
    if (rest := len(trajectory.messages) - MAX_BLOCKS) > 0:
        parts.append(_gap(f"{rest} more messages"))
    if not trajectory.messages and trajectory.token_ids:
        parts.append(_gap(f"{len(trajectory.token_ids):,} ids, and no tokenizer to read them: say --model"))
    return f'<pre class="tokens">{"".join(parts)}</pre>'


def message_text(message: Message) -> str:
    calls = [f"{call.name} {_json(call.arguments)}" for call in message.tool_calls]
    return "\n".join([*filter(None, (message.reasoning, message.content)), *calls])


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _middle_out(text: str) -> str:
    if len(text) <= MAX_CHARACTERS:
        return text
    half = MAX_CHARACTERS // 2
    return f"{text[:half]}\n… {len(text) - 2 * half:,} characters …\n{text[-half:]}"


# A stranger's text

VISIBLE = frozenset("\n\t ")


def plain(text: str) -> str:
    """Text for HTML. Controls, bidirectional marks, what joins characters unseen, and halves of a surrogate
    pair are written as their code points."""
    return escape("".join(map(_shown, text)))


def _shown(char: str) -> str:
    if char in VISIBLE or char.isprintable():
        return char
    category = unicodedata.category(char)
    if category == "Zs":  # other spaces do no harm
        return char
    return f"⟨{ord(char):02X}⟩"
