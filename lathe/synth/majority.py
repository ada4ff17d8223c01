"""Outputs where there is no reference: what most of several independent solutions give.

Agreement of solutions that were written apart is the oracle of CodeT (Chen et al. 2022, arXiv 2207.10397) and
of its successors; solutions that err alike outvote the truth, which no count can show.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lathe.synth.lab import Outcome


@dataclass(frozen=True)
class Agreed:
    """For an input's place, what most solutions gave, and the share of all that did."""

    outcomes: Mapping[int, Outcome]
    shares: Mapping[int, float]


def majority(outcomes: Sequence[Sequence[Outcome]], min_share: float = 0.6, min_votes: int = 2) -> Agreed:
    """What is agreed on, from each solution's outcomes, input by input.

    A solution that gave nothing (a skip) votes for nothing, and still counts among all. An input without
    `min_votes` for one outcome, or less than `min_share` of all, is left out; so is a tie.
    """
    agreed: dict[int, Outcome] = {}
    shares: dict[int, float] = {}
    for place in range(min(map(len, outcomes), default=0)):
        votes: Counter[str] = Counter()
        by_key: dict[str, Outcome] = {}
        for each in outcomes:
            if each[place].skip is None:
                key = vote_of(each[place])
                votes[key] += 1
                by_key.setdefault(key, each[place])
        ranked = votes.most_common(2)
        if not ranked or (len(ranked) == 2 and ranked[0][1] == ranked[1][1]):
            continue
        key, count = ranked[0]
        if count >= min_votes and count >= min_share * len(outcomes):
            agreed[place], shares[place] = by_key[key], count / len(outcomes)
    return Agreed(agreed, shares)


def vote_of(outcome: Outcome) -> str:
    """Equal for outcomes that are the same answer: lazily or not, whatever the exception's own class."""
    if outcome.raises:
        return f"raises {outcome.raises[0]}"
    return f"{outcome.value} {sorted(outcome.after.items())}"


def ranked_solutions(outcomes: Sequence[Sequence[Outcome]], agreed: Agreed) -> list[int]:
    """The solutions' places, by how often they agree with the majority: the first may be a reference."""
    scores: dict[int, int] = defaultdict(int)
    for number, each in enumerate(outcomes):
        scores[number] = sum(
            vote_of(each[place]) == vote_of(wanted) for place, wanted in agreed.outcomes.items()
        )
    return sorted(range(len(outcomes)), key=lambda number: (-scores[number], number))
