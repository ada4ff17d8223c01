"""Credit: from groups of attempts to samples with advantages and weights.

A group is all attempts at one task. An attempt is a rollout with all of its trajectories: sub-agents', and
those before and after a compaction. It has one reward, so it has one advantage, and every token that was
sampled in it is trained with that, once. How many trajectories it took changes nobody's baseline.

An invalid attempt is dropped before anything is computed: the samples are those of a step without it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, stdev
from typing import Literal, NamedTuple, TypeAlias

from lathe.errors import UserError
from lathe.train.attempt_stats import attempt_stats
from lathe.train.batch import Sample
from lathe.train.loss import Algorithm
from lathe.train.reward import RewardConfig, is_cut_off, reward_parts
from lathe.train.staleness import is_stale, token_versions
from lathe.types import Rollout, Trajectory

Normalization = Literal["sequence", "token", "constant"]
Attempt: TypeAlias = tuple[Sample, ...]

# What the papers do: whether advantages are divided by the group's standard deviation, and how tokens are
# averaged.
PAPERS: dict[str, tuple[bool, Normalization]] = {
    "grpo": (True, "sequence"),
    "dr_grpo": (False, "constant"),
    "dapo": (True, "token"),
    "cispo": (True, "token"),
    "gspo": (True, "sequence"),
    "gspo_token": (True, "sequence"),
}
SMALLEST_STD = 1e-6  # added to a standard deviation: rewards that differ by less than that are equal


@dataclass(frozen=True)
class CreditConfig:
    """How rewards become advantages and weights. None is what the algorithm's paper does: see `like`.

    `baseline`: the mean of the group; of its other attempts; or nothing. `scale_by_std` divides by the
    group's standard deviation (of n - 1). `normalization`: "sequence" averages each attempt's tokens, then
    attempts; "token" averages over all tokens; "constant" divides by attempts x `max_tokens`.

    `truncated`, of an attempt that a limit ended: "train" it; "mask" it, so that it counts in the baseline
    alone (DAPO's overlong filtering); "drop" it like an invalid one.
    `stale`, of tokens that weights sampled more than `max_staleness` versions ago: "keep" them; "mask" them,
    the attempt's other tokens are trained; "drop" the whole attempt like an invalid one.
    """

    baseline: Literal["mean", "leave_one_out", "none"] = "mean"
    scale_by_std: bool | None = None
    normalization: Normalization | None = None
    max_tokens: int | None = None
    truncated: Literal["train", "mask", "drop"] = "train"
    stale: Literal["keep", "mask", "drop"] = "keep"
    max_staleness: int | None = None

    def __post_init__(self) -> None:
        if self.stale != "keep" and self.max_staleness is None:
            raise UserError(f"credit.stale is {self.stale!r}; it needs credit.max_staleness, in versions.")
        for name in ("max_tokens", "max_staleness"):
            value = getattr(self, name)
            if value is not None and value < (name == "max_tokens"):
                raise UserError(f"credit.{name} is {value}; that is too small.")

    def like(self, algorithm: Algorithm) -> CreditConfig:
        """With the paper's choice wherever none was made. Raises UserError when a constant is missing."""
        scale, normalization = PAPERS[algorithm]
        chosen = replace(
            self,
            scale_by_std=scale if self.scale_by_std is None else self.scale_by_std,
            normalization=self.normalization or normalization,
        )
        if chosen.normalization == "constant" and chosen.max_tokens is None:
            raise UserError(
                f"{algorithm} divides by a constant: set credit.max_tokens to the longest reply's tokens, or "
                'credit.normalization to "token" or "sequence".'
            )
        return chosen


@dataclass(frozen=True)
class Credit:
    """A step's attempts as samples, without weights yet (see `weigh`), and what was seen on the way.

    `num_useful` groups have something to learn from; `num_equal` do not, because all attempts earned alike;
    `num_too_small` had less than two valid attempts. `stats` are numbers for the log.
    """

    attempts: tuple[Attempt, ...]
    num_groups: int
    num_useful: int
    num_equal: int
    num_too_small: int
    stats: dict[str, float] = field(default_factory=dict)


def assign_credit(
    groups: Sequence[Sequence[Rollout]],
    config: CreditConfig,
    reward: RewardConfig | None = None,
    *,
    version: int | None = None,
) -> Credit:
    """The samples of a step. `version` is that of the weights which are trained, where staleness counts.

    Groups whose attempts all earned alike have no gradient: they are skipped and counted (see `refill`).
    Raises ValueError for a rollout that nobody has judged, and a group of more than one task.
    """
    reward = reward or RewardConfig()
    attempts: list[Attempt] = []
    kinds: Counter[str] = Counter()
    all_judged = [judge_group(group, config, reward, version=version) for group in groups]
    for judged in all_judged:
        found = [
            samples_of(rollout, advantage, config, version=version)
            for rollout, advantage in zip(judged.rollouts, judged.advantages, strict=True)
            if not (config.truncated == "mask" and is_cut_off(rollout))
        ]
        found = [attempt for attempt in found if attempt]
        if any(judged.advantages) and found:
            kinds["useful"] += 1
            attempts += found
        else:
            kinds["too small" if len(judged.rollouts) < 2 else "equal"] += 1
    stats = attempt_stats(
        [rollout for group in groups for rollout in group],
        [rollout for judged in all_judged for rollout in judged.rollouts],
        [parts for judged in all_judged for parts in judged.parts],
        version,
    )
    return Credit(tuple(attempts), len(groups), kinds["useful"], kinds["equal"], kinds["too small"], stats)


class Judged(NamedTuple):
    """A group's attempts that count, with what each earned and its advantage."""

    rollouts: tuple[Rollout, ...]
    parts: tuple[dict[str, float], ...]
    advantages: tuple[float, ...]


def judge_group(
    group: Sequence[Rollout], config: CreditConfig, reward: RewardConfig, *, version: int | None = None
) -> Judged:
    """Who counts in a group, and how much better than its baseline each attempt was."""
    if len({rollout.task for rollout in group}) > 1:
        raise ValueError("the attempts of a group are at more than one task")
    rollouts = tuple(rollout for rollout in group if _counts(rollout, config, version))
    parts = tuple(reward_parts(rollout, reward) for rollout in rollouts)
    return Judged(rollouts, parts, tuple(group_advantages([each["total"] for each in parts], config)))


def _counts(rollout: Rollout, config: CreditConfig, version: int | None) -> bool:
    if rollout.verdict is None:
        raise ValueError(
            f"the rollout {rollout.id} has no verdict: it must be judged before it is trained on"
        )
    if not rollout.verdict.valid or (config.truncated == "drop" and is_cut_off(rollout)):
        return False
    return config.stale != "drop" or not any(
        is_stale(sampled, version, config.max_staleness)
        for trajectory in rollout.trajectories
        for sampled in token_versions(trajectory)
        if sampled is not None
    )


def group_advantages(rewards: Sequence[float], config: CreditConfig) -> list[float]:
    """How much better than its group each attempt was. Does not depend on the order of the group.

    mean: r - mean(r) (GRPO, arXiv 2402.03300). leave_one_out: r - mean(the others' r), which is n / (n - 1)
    times as much (RLOO, arXiv 2402.14740). All alike, or one alone, gives zeros, exactly.
    """
    num = len(rewards)
    if config.baseline == "none":
        advantages = list(rewards)
    elif num < 2 or min(rewards) == max(rewards):
        return [0.0] * num
    else:
        mean = fmean(rewards)
        factor = num / (num - 1) if config.baseline == "leave_one_out" else 1.0
        advantages = [factor * (each - mean) for each in rewards]
    if config.scale_by_std and num > 1:
        std = stdev(rewards) + SMALLEST_STD
        advantages = [each / std for each in advantages]
    return advantages


def samples_of(
    rollout: Rollout, advantage: float, config: CreditConfig, *, version: int | None = None
) -> Attempt:
    """A sample for each trajectory in which something is trained: every token that the model sampled there.

    What a branch repeats of its parent is prompt in it. Tokens whose log-probability nobody knows, and stale
    ones under "mask", are left out.
    """
    if len({trajectory.id for trajectory in rollout.trajectories}) < len(rollout.trajectories):
        raise ValueError(f"the rollout {rollout.id} holds a trajectory twice")
    samples = []
    for trajectory in rollout.trajectories:
        mask = trained_mask(trajectory, config, version)
        if any(mask):
            samples.append(
                Sample(
                    trajectory.token_ids,
                    mask,
                    trajectory.logprobs,
                    tuple(advantage if trained else 0.0 for trained in mask),
                    trajectory=trajectory.id,
                )
            )
    return tuple(samples)


def trained_mask(trajectory: Trajectory, config: CreditConfig, version: int | None) -> tuple[bool, ...]:
    """Which tokens are trained: the sampled ones, but for those that can't be, or are too stale."""
    known = map(math.isfinite, trajectory.logprobs)
    mask = tuple(map(all, zip(trajectory.loss_mask, known, strict=True)))
    if config.stale != "mask":
        return mask
    versions = token_versions(trajectory)
    return tuple(
        trained and not is_stale(sampled or 0, version, config.max_staleness)
        for trained, sampled in zip(mask, versions, strict=True)
    )


# The weights: how a step is averaged


def weigh(attempts: Sequence[Attempt], config: CreditConfig) -> list[Sample]:
    """The samples with their weights: those of one update, all of them. With every objective at 1 per token,
    the weights' sum is 1 for "sequence" and "token".

    |y| is the number of tokens trained in an attempt, over all of its turns and trajectories: whoever talks
    to three sub-agents weighs as much as who does without. Raises ValueError for a config without `like`.
    """
    num_tokens = [sum(sample.num_trained for sample in attempt) for attempt in attempts]
    samples = []
    for attempt, num in zip(attempts, num_tokens, strict=True):
        if config.normalization == "sequence":
            weight = 1.0 / (len(attempts) * num)
        elif config.normalization == "token":
            weight = 1.0 / sum(num_tokens)
        elif config.normalization == "constant" and config.max_tokens is not None:
            weight = 1.0 / (len(attempts) * config.max_tokens)
        else:
            raise ValueError("credit.normalization is open: take CreditConfig.like(algorithm)")
        samples += [
            replace(sample, weights=tuple(weight if trained else 0.0 for trained in sample.loss_mask))
            for sample in attempt
        ]
    return samples


def minibatches(attempts: Sequence[Attempt], num: int) -> list[list[Attempt]]:
    """The attempts in `num` parts for as many updates, each with attempts of every group while they last.
    Parts are never empty, so there may be fewer. An attempt is never split."""
    return [list(attempts[first::num]) for first in range(min(num, len(attempts)))]


# Groups that teach nothing


class Refill(NamedTuple):
    """How many groups to sample next; when there are too few and no more to come, `shortfall` says so."""

    num_more: int
    shortfall: str | None = None


def refill(num_useful: int, num_tried: int, *, wanted: int, max_tried: int) -> Refill:
    """After `num_tried` groups, whatever became of them, `num_useful` of them are of use: how many more?

    Never leads beyond `max_tried`, so a step ends when all tasks are solved, or none, or every sandbox fails
    (DAPO's dynamic sampling, arXiv 2503.14476, with an end).
    """
    missing, room = wanted - num_useful, max_tried - num_tried
    if missing <= 0:
        return Refill(0)
    if room > 0:
        return Refill(min(missing, room))
    go_on = f"the step goes on with {num_useful}" if num_useful else "the step has nothing to learn from"
    return Refill(0, f"{num_useful} of {wanted} groups are of use after {num_tried} were sampled: {go_on}")
