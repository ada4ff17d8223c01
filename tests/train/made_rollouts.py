"""Attempts made by hand or at random, as trees of trajectories."""

import itertools
from random import Random

from hypothesis import strategies as st

from lathe.types import Rollout, Segment, Trajectory, Verdict


def trajectory(*pieces, first_id=1, parent=None, version=0, id=None, prefix=()):
    """Pieces are lengths: prompt, reply, prompt, reply ... Ids count up from `first_id`; `prefix` is repeated
    of a parent."""
    ids, mask, segments = list(prefix), [False] * len(prefix), []
    for place, length in enumerate(pieces):
        if place % 2:
            segments.append(Segment(len(ids), len(ids) + length, "stop", version))
        ids += range(first_id, first_id + length)
        first_id += length
        mask += [place % 2 == 1] * length
    logprobs = tuple(-0.5 if sampled else 0.0 for sampled in mask)
    more = {} if id is None else {"id": id}
    return Trajectory((), (), tuple(ids), tuple(mask), logprobs, tuple(segments), parent=parent, **more)


def attempt(reward, *own, trajectories=(), task="t", stop_reason="done", **more):
    verdict = Verdict(reason="sandbox: gone") if reward is None else Verdict(reward, **more)
    return Rollout((*own, *trajectories) or (trajectory(2, 3),), stop_reason, verdict, task)


OUTCOMES = [
    *[dict(reward=reward) for reward in (None, 0.0, 0.0, 0.5, 1.0, 1.0)],
    dict(reward=0.0, suspect="it wrote over the tests"),
    *[dict(reward=reward, stop_reason=reason) for reward in (0.0, 1.0) for reason in ("length", "max_turns")],
]


def tree(random, ids):
    """An attempt's trajectories: branches repeat tokens of those before them as prompt. No token of a reply
    stands in two of them, and some have none."""
    grown = []
    for _ in range(random.randint(1, 4)):
        parent = random.choice(grown) if grown else None
        prefix = parent.token_ids[: random.randint(0, len(parent.token_ids))] if parent else ()
        pieces = [random.randint(1, 3) for _ in range(random.randint(1, 6))]
        first_id, parent_id = next(ids) * 1000, parent.id if parent else None
        grown.append(trajectory(*pieces, first_id=first_id, parent=parent_id, prefix=prefix))
    return grown


@st.composite
def steps(draw):
    """Groups of attempts. What they earn is hypothesis's to shrink; their trees come from a seed."""
    drawn = draw(
        st.lists(st.lists(st.sampled_from(OUTCOMES), min_size=1, max_size=6), min_size=1, max_size=4)
    )
    random, ids = Random(draw(st.integers(0, 2**16))), itertools.count(1)
    return [
        [attempt(trajectories=tree(random, ids), task=f"task-{number}", **outcome) for outcome in outcomes]
        for number, outcomes in enumerate(drawn)
    ]
