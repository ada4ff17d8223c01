"""The policy of before the step: its log-probabilities, and the experts that its tokens went to.

A step of several updates compares the policy with what it was. In a model with experts an update sends some
tokens to others, and their ratios jump. A replay sends them where they went before: with R2 where the
trainer's own forward sent them, with R3 where the engine did (arXiv 2510.11370, 2512.01374).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from lathe.model.config import ModelConfig
from lathe.model.routing import Routing, sparse_layers
from lathe.model.transformer import Transformer
from lathe.train.batch import Sample, cut, pack
from lathe.train.forward import Mode, score


def routed(mode: Mode, config: ModelConfig, replay_TLk: Tensor | None = None) -> tuple[Mode, Routing]:
    """A mode that computes the same, and what its routers will have said after one forward pass. With
    `replay_TLk`, a batch's `routing`, tokens go where that says."""
    routing = Routing(mode.arithmetic, sparse_layers(config), replay_TLk)
    return replace(
        mode, arithmetic=routing, attend=lambda lengths: routing.attend(mode.attend(lengths))
    ), routing


def replaying(mode: Mode, config: ModelConfig, replay_TLk: Tensor | None) -> Mode:
    """The mode in which a batch is trained: with a replay, where it brings one."""
    return mode if replay_TLk is None else routed(mode, config, replay_TLk)[0]


@torch.no_grad()
def with_old_policy(
    samples: Iterable[Sample], model: Transformer, mode: Mode, max_tokens: int, *, routing: bool = False
) -> list[Sample]:
    """The samples with the log-probabilities that the model gives their tokens now, in `old_logprobs`; with
    `routing`, also with the experts that their tokens go to (R2).

    Samples that bring a `routing` (R3) are computed with it, and keep it.
    """
    done: list[Sample] = []
    for group in cut(samples, max_tokens):
        batch = pack(group)
        mode_of_batch = replaying(mode, model.config, batch.routing)
        noted = None
        if routing and batch.routing is None and sparse_layers(model.config):
            mode_of_batch, noted = routed(mode, model.config)
        logprobs = iter(score(model, batch, mode_of_batch).logprobs_N.tolist())
        routings: Iterable[Tensor | None] = [sample.routing for sample in group]
        if noted is not None:
            routings = noted.ids_TLk.split(batch.lengths)
        for sample, its_routing in zip(group, routings, strict=True):
            old = tuple(next(logprobs) if trained else 0.0 for trained in sample.loss_mask)
            done.append(replace(sample, old_logprobs=old, routing=its_routing))
    return done
