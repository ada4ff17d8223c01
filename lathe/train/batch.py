"""What a trainer reads: samples, and batches of them packed one after another, without padding.

Every loss is a sum over trained tokens of `weight x something`; the weights are computed once, over all of a
step's samples (see `advantage.py`). However the samples are then cut into micro-batches, or spread over
processes, the gradients of the parts add up to the gradient of the whole.

Shapes: T tokens of a batch, S samples in it, N trained tokens in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sample:
    """One sequence to train on. All fields but `routing` have one entry a token.

    `loss_mask`: the token is trained, given those before it; never True for the first token, which nothing
    precedes. `logprobs`: the engine's for it, when it was sampled. `advantages` and `weights` are 0.0 where
    the mask is False. `old_logprobs` and `reference_logprobs` are those of the trainer's policy before the
    step and of the reference, where a loss wants them. `routing`, for a replay: the experts [T, layers, k]
    that each token went to.
    """

    token_ids: tuple[int, ...]
    loss_mask: tuple[bool, ...]
    logprobs: tuple[float, ...] = ()
    advantages: tuple[float, ...] = ()
    weights: tuple[float, ...] = ()
    old_logprobs: tuple[float, ...] = ()
    reference_logprobs: tuple[float, ...] = ()
    routing: Tensor | None = None
    trajectory: str = ""

    @property
    def num_trained(self) -> int:
        return sum(self.loss_mask)


class Batch(NamedTuple):
    """Samples one after another. `rows_N` are the places in [0, T) whose next token is trained; all other
    `_N` tensors belong to that next token. `sample_N` is the number of its sample in this batch. `old_N` is
    `logprobs_N`, the engine's, where samples bring no old ones; `reference_N` None where one brings none."""

    token_ids_T: Tensor
    positions_T: Tensor
    lengths: tuple[int, ...]
    rows_N: Tensor
    targets_N: Tensor
    sample_N: Tensor
    logprobs_N: Tensor
    advantages_N: Tensor
    weights_N: Tensor
    old_N: Tensor
    reference_N: Tensor | None = None
    routing: Tensor | None = None

    @property
    def num_samples(self) -> int:
        return len(self.lengths)


def pack(samples: Sequence[Sample]) -> Batch:
    """One batch of these samples, in their order. Raises ValueError for none, or one without tokens."""
    ids: list[int] = []
    positions: list[int] = []
    columns: list[tuple[int, int, int, float, float, float, float, float]] = []  # one a trained token
    for number, sample in enumerate(samples):
        start, length = len(ids), len(sample.token_ids)
        if length == 0 or sample.loss_mask[0]:
            raise ValueError("a sample begins with a token that is not trained")
        ids += sample.token_ids
        positions += range(length)
        for place in (place for place, trained in enumerate(sample.loss_mask) if trained):
            logprob = sample.logprobs[place] if sample.logprobs else 0.0
            advantage = sample.advantages[place] if sample.advantages else 1.0
            weight = sample.weights[place] if sample.weights else 1.0
            old = sample.old_logprobs[place] if sample.old_logprobs else logprob
            reference = sample.reference_logprobs[place] if sample.reference_logprobs else 0.0
            numbers = (logprob, advantage, weight, old, reference)
            columns.append((start + place - 1, sample.token_ids[place], number, *numbers))
    rows, targets, places, logprobs, advantages, weights, olds, references = (
        zip(*columns, strict=True) if columns else ((),) * 8
    )
    has_reference = all(sample.reference_logprobs for sample in samples)
    routings = [sample.routing for sample in samples if sample.routing is not None]
    return Batch(
        torch.tensor(ids),
        torch.tensor(positions),
        tuple(len(sample.token_ids) for sample in samples),
        torch.tensor(rows, dtype=torch.long),
        torch.tensor(targets, dtype=torch.long),
        torch.tensor(places, dtype=torch.long),
        torch.tensor(logprobs, dtype=torch.float32),
        torch.tensor(advantages, dtype=torch.float32),
        torch.tensor(weights, dtype=torch.float32),
        torch.tensor(olds, dtype=torch.float32),
        torch.tensor(references, dtype=torch.float32) if has_reference else None,
        torch.cat(routings) if len(routings) == len(samples) else None,
    )


def cut(samples: Iterable[Sample], max_tokens: int) -> list[list[Sample]]:
    """The samples in groups of at most `max_tokens` tokens, in their order; a longer one stands alone."""
    groups: list[list[Sample]] = []
    room = 0
    for sample in samples:
        if len(sample.token_ids) > room:
            groups.append([])
            room = max_tokens
        groups[-1].append(sample)
        room -= len(sample.token_ids)
    return groups
