"""One step through the model: read the planned tokens, keep their keys and values, return the next logits."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from lathe.engine.kv_cache import KVCache
from lathe.engine.scheduler import Share
from lathe.kernels.attention import Span, paged_attention
from lathe.kernels.experts import grouped_experts
from lathe.kernels.invariant_attention import invariant_paged_attention
from lathe.model.linear import INVARIANT, QUICK, Arithmetic, is_invariant
from lathe.model.packed import weight_shapes
from lathe.model.routing import Routing, sparse_layers
from lathe.model.transformer import Transformer

invariant_experts = partial(grouped_experts, linear=INVARIANT.linear, swiglu=INVARIANT.swiglu)


class Batch(NamedTuple):
    """A step's tokens, one sequence after another, and where each stands in its sequence and in the cache."""

    token_ids: list[int]
    positions: list[int]
    slots: list[int]
    spans: list[Span]
    rows: list[int]  # the tokens whose logits are wanted


def batch(shares: list[Share]) -> Batch:
    """What a step reads."""
    made = Batch([], [], [], [], [])
    for share in shares:
        sequence, first = share.sequence, share.sequence.num_computed
        last = first + share.num_tokens
        end = last + len(share.drafts)
        made.spans.append(sequence.span(len(made.token_ids), end - first))
        made.token_ids.extend(sequence.token_ids[first:last])
        made.token_ids.extend(share.drafts)
        made.positions.extend(range(first, end))
        made.slots.extend(sequence.slots(first, end))
        made.rows.extend(range(len(made.token_ids) - share.num_rows, len(made.token_ids)))
    return made


class Runner:
    """Holds the model and its cache, and computes in PyTorch; knows nothing of requests.

    `note_routing`, where set, is told after each step where its tokens went: ids of experts [T, layers, k].
    """

    def __init__(self, model: Transformer, cache: KVCache):
        self.model = model
        self.cache = cache
        self.note_routing: Callable[[list[Share], Tensor], None] | None = None

    @torch.inference_mode()
    def run(self, shares: list[Share], *, invariant: bool = False) -> Tensor:
        """Reads every share's tokens. Returns logits [rows, vocabulary]: `num_rows` of each share, in order.

        `invariant` computes each sequence's numbers with the same bits whatever else the step holds.
        """
        token_ids, positions, slots, spans, rows = batch(shares)
        device = self.cache.keys.device
        slots_T = torch.tensor(slots, device=device)

        def attend(layer: int, q_THd: Tensor, k_TKd: Tensor, v_TKd: Tensor) -> Tensor:
            self.cache.write(layer, slots_T, k_TKd, v_TKd)
            return attention(q_THd, self.cache.keys[layer], self.cache.values[layer], spans)

        attention = invariant_paged_attention if invariant else paged_attention
        experts = invariant_experts if invariant else grouped_experts
        arithmetic: Arithmetic = INVARIANT if invariant else QUICK
        routing = None
        if self.note_routing is not None:
            arithmetic = routing = Routing(arithmetic, sparse_layers(self.model.config))

        hidden_TD = self.model(
            torch.tensor(token_ids, device=device),
            torch.tensor(positions, device=device),
            attend if routing is None else routing.attend(attend),
            experts,
            arithmetic,
        )
        if routing is not None and self.note_routing is not None:
            self.note_routing(shares, routing.ids_TLk.cpu())
        rows_R = torch.tensor(rows, device=device, dtype=torch.long)
        return self.model.logits(hidden_TD[rows_R], arithmetic)

    def forget_weights(self) -> None:
        """The model's weights lie elsewhere now. Nothing here points to them."""

    @torch.inference_mode()
    def is_invariant(self) -> bool:
        """Whether `run(invariant=True)` keeps its promise on this machine, tried with random numbers: one
        matrix of each shape, and attention of the model's heads."""
        config, device = self.model.config, self.cache.keys.device
        dtype = self.cache.keys.dtype
        shapes = {shape[-2:] for shape in weight_shapes(self.model).values() if len(shape) >= 2}
        generator = torch.Generator().manual_seed(0)

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(device, dtype)

        q_THd = random(9, config.num_heads, config.head_dim)
        k_TKd, v_TKd = (random(600, config.num_kv_heads, config.head_dim) for _ in range(2))
        whole_THd = invariant_paged_attention(q_THd, k_TKd, v_TKd, [Span(0, 9, ((0, 600),))])
        alone_1Hd = invariant_paged_attention(q_THd[4:5], k_TKd, v_TKd, [Span(0, 1, ((0, 596),))])
        return torch.equal(whole_THd[4:5], alone_1Hd) and all(
            is_invariant(random(*shape)) for shape in shapes
        )
