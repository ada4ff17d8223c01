"""The policy of before the step: its log-probabilities, and the experts that its tokens went to.

A step of several updates compares the policy with what it was. In a model with experts an update sends some
tokens to others, and their ratios jump. A replay sends them where they went before: with R2 where the
trainer's own forward sent them, with R3 where the engine did (arXiv 2510.11370, 2512.01374).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from lathe.engine.engine import Engine
from lathe.engine.runner import Runner
from lathe.engine.scheduler import Share
from lathe.engine.sequence import Sequence
from lathe.errors import UserError
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


class EngineRouting:
    """Where the routers of an engine in this process send its tokens (R3), until told to `forget`.

    Tokens are found again by themselves and those before them, as in the engine's cache of beginnings:
    nothing of it travels with a completion, and a prompt that was read for one reply is known for all.
    Raises UserError for an engine that computes in the compiled kernels.
    """

    def __init__(self, engine: Engine):
        if not isinstance(engine.runner, Runner):
            raise UserError(
                "R3 is not needed with the compiled kernels: train with deterministic = true, then the "
                "trainer's routers choose as the engine's do, bit for bit."
            )
        self._seen: dict[int, Tensor] = {}
        self._keys: WeakKeyDictionary[Sequence, list[int]] = WeakKeyDictionary()
        engine.runner.note_routing = self._note

    def forget(self) -> None:
        """The engine has new weights: what it computed before is of no use."""
        self._seen.clear()

    def find(self, samples: Iterable[Sample]) -> tuple[list[Sample], float]:
        """The samples with their `routing`, -1 for tokens that the engine has not read; and the share of
        tokens that it has. Each sample's last token is never read: nothing was sampled after it."""
        samples, done, num_known = list(samples), [], 0
        if not self._seen:
            return samples, 0.0
        unknown = torch.full_like(next(iter(self._seen.values())), -1)
        for sample in samples:
            rows = [self._seen.get(key) for key in keys_after(0, sample.token_ids)]
            routing = torch.stack([unknown if row is None else row for row in rows])
            done.append(replace(sample, routing=routing))
            num_known += sum(row is not None for row in rows)
        return done, num_known / sum(len(sample.token_ids) for sample in samples)

    def _note(self, shares: list[Share], ids_TLk: Tensor) -> None:
        rows = iter(ids_TLk)
        for share in shares:
            sequence, first = share.sequence, share.sequence.num_computed
            keys = self._keys.setdefault(sequence, [0])  # of everything before each place
            keys.extend(keys_after(keys[-1], sequence.token_ids[len(keys) - 1 : first + share.num_tokens]))
            last = first + share.num_tokens + 1
            for key in (*keys[first + 1 : last], *keys_after(keys[last - 1], share.drafts)):
                self._seen[key] = next(rows)


def keys_after(key: int, token_ids: Iterable[int]) -> Iterator[int]:
    """A key for each token and all before it, whose key is the given one."""
    for token_id in token_ids:
        key = hash((key, token_id))
        yield key
