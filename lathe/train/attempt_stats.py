"""What a step's attempts were like, as numbers for the log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from lathe.train.reward import is_cut_off, num_sampled
from lathe.train.staleness import draws_from_model, token_versions
from lathe.types import Rollout


def attempt_stats(
    attempts: Sequence[Rollout],
    counted: Sequence[Rollout],
    parts: Sequence[Mapping[str, float]],
    version: int | None,
) -> dict[str, float]:
    """`counted` are those of the `attempts` that are in a baseline, `parts` what each of them earned.

    `invalid` and `suspect` are shares of all attempts. Over those that count: `reward` and its parts
    (`reward_verdict` and so on), `solved`, `truncated`, `reply_tokens` and `trajectories` are means, and
    `drawn_otherwise` the share of sampled tokens that come from another distribution than the one whose
    log-probabilities are noted (a temperature, top_p, a grammar). With a `version`, `staleness` is the mean
    over tokens.
    """
    verdicts = [rollout.verdict for rollout in attempts if rollout.verdict is not None]
    trajectories = [each for rollout in counted for each in rollout.trajectories]
    num_tokens = sum(map(num_sampled, counted))
    num_otherwise = sum(
        segment.stop - segment.start
        for each in trajectories
        for segment in each.segments
        if segment.sampling is not None and not draws_from_model(segment.sampling)
    )
    stats = {
        "reward": mean([each["total"] for each in parts]),
        "solved": mean([each["verdict"] >= 1.0 for each in parts]),
        "invalid": mean([not verdict.valid for verdict in verdicts]),
        "suspect": mean([verdict.suspect is not None for verdict in verdicts]),
        "truncated": mean([is_cut_off(rollout) for rollout in counted]),
        "reply_tokens": num_tokens / max(len(counted), 1),
        "trajectories": len(trajectories) / max(len(counted), 1),
        "drawn_otherwise": num_otherwise / max(num_tokens, 1),
    }
    for name in dict.fromkeys(name for each in parts for name in each if name != "total"):
        stats[f"reward_{name}"] = mean([each[name] for each in parts])
    if version is not None:
        sampled = [each for trajectory in trajectories for each in token_versions(trajectory)]
        lags = [version - each for each in sampled if each is not None]
        stats |= {"staleness": mean(lags), "largest_staleness": float(max(lags, default=0))}
    return stats


def mean(values: Sequence[float]) -> float:
    return fmean(values) if values else 0.0
