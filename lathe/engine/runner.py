"""One step through the model: read the planned tokens, keep their keys and values, return the next logits."""

from __future__ import annotations

import torch
from torch import Tensor

from lathe.engine.kv_cache import KVCache
from lathe.engine.scheduler import Share
from lathe.kernels.attention import paged_attention
from lathe.kernels.experts import grouped_experts
from lathe.model.transformer import Transformer


class Runner:
    """Holds the model and its cache; knows nothing of requests."""

    def __init__(self, model: Transformer, cache: KVCache):
        self.model = model
        self.cache = cache

    @torch.inference_mode()
    def run(self, shares: list[Share]) -> Tensor:
        """Reads every share's tokens. Returns logits [shares that sample, vocabulary], in their order."""
        token_ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        spans = []
        last_rows = []
        for share in shares:
            sequence, first = share.sequence, share.sequence.num_computed
            last = first + share.num_tokens
            spans.append(sequence.span(len(token_ids), share.num_tokens))
            token_ids += sequence.token_ids[first:last]
            positions += range(first, last)
            slots += sequence.slots(first, last)
            if share.samples:
                last_rows.append(len(token_ids) - 1)
        device = self.cache.keys.device
        slots_T = torch.tensor(slots, device=device)

        def attend(layer: int, q_THd: Tensor, k_TKd: Tensor, v_TKd: Tensor) -> Tensor:
            self.cache.write(layer, slots_T, k_TKd, v_TKd)
            return paged_attention(q_THd, self.cache.keys[layer], self.cache.values[layer], spans)

        hidden_TD = self.model(
            torch.tensor(token_ids, device=device),
            torch.tensor(positions, device=device),
            attend,
            grouped_experts,
        )
        return self.model.logits(hidden_TD[torch.tensor(last_rows, device=device, dtype=torch.long)])
