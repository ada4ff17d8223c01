"""What a trainer reads: samples, and batches of them packed one after another, without padding.

Every loss is a sum over trained tokens of `weight x something`; the weights are computed once, over all of a
step's samples (see `advantage.py`). However the samples are then cut into micro-batches, or spread over
processes, the gradients of the parts add up to the gradient of the whole.

Shapes: T tokens of a batch, S samples in it, N trained tokens in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, NamedTuple

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


def next_tokens(ids: Sequence[int]) -> Sample:
    """A text of which every token but the first is trained."""
    return Sample(tuple(ids), (False,) + (True,) * (len(ids) - 1))


def weighed(samples: Sequence[Sample]) -> list[Sample]:
    """Every trained token of a step counts alike: the loss is their mean."""
    weight = 1 / max(sum(sample.num_trained for sample in samples), 1)
    return [
        replace(sample, weights=tuple(weight if trained else 0.0 for trained in sample.loss_mask))
        for sample in samples
    ]


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
    """One batch of these samples, in their order. Raises ValueError for none, and for one without tokens, one
    that trains its first, and one whose fields differ in length."""
    if not samples or any(not sample.token_ids or sample.loss_mask[0] for sample in samples):
        raise ValueError("a sample begins with a token that is not trained")
    lengths = tuple(len(sample.token_ids) for sample in samples)
    token_ids_T = torch.tensor(joined([sample.token_ids for sample in samples], lengths))
    trained_N = torch.tensor(joined([sample.loss_mask for sample in samples], lengths)).nonzero()[:, 0]

    def column(of: Callable[[Sample], Sequence[float]], missing: float = 0.0) -> Tensor:
        values = [of(sample) or (missing,) * len(sample.token_ids) for sample in samples]
        return torch.tensor(joined(values, lengths), dtype=torch.float32)[trained_N]

    has_reference = all(sample.reference_logprobs for sample in samples)
    routings = [sample.routing for sample in samples if sample.routing is not None]
    return Batch(
        token_ids_T,
        positions_T=torch.cat([torch.arange(length) for length in lengths]),
        lengths=lengths,
        rows_N=trained_N - 1,
        targets_N=token_ids_T[trained_N],
        sample_N=torch.arange(len(samples)).repeat_interleave(torch.tensor(lengths))[trained_N],
        logprobs_N=column(lambda sample: sample.logprobs),
        advantages_N=column(lambda sample: sample.advantages, 1.0),
        weights_N=column(lambda sample: sample.weights, 1.0),
        old_N=column(lambda sample: sample.old_logprobs or sample.logprobs),
        reference_N=column(lambda sample: sample.reference_logprobs) if has_reference else None,
        routing=torch.cat(routings) if len(routings) == len(samples) else None,
    )


def joined(values: Sequence[Sequence[Any]], lengths: tuple[int, ...]) -> list[Any]:
    if tuple(map(len, values)) != lengths:
        raise ValueError("the fields of a sample differ in length")
    return list(chain.from_iterable(values))


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
