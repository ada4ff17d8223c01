"""Attention in plain PyTorch: over whole packed sequences (training), and over a paged cache (serving).

Shapes: T tokens of all sequences of a step, packed one after another; Q queries and L keys of one sequence;
H query heads; K key-value heads (grouped-query attention: H is a multiple of K); d head dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Span(NamedTuple):
    """One sequence's share of a step.

    Its `num_queries` newest tokens stand in the packed axis at `start`. Its keys and values, these tokens
    included, stand in the cache at `slots`: (first, last + 1) runs, in the order of positions.
    """

    start: int
    num_queries: int
    slots: tuple[tuple[int, int], ...]


def causal_attention(q_THd: Tensor, k_TKd: Tensor, v_TKd: Tensor, lengths: Sequence[int]) -> Tensor:
    """Each token attends to itself and to what precedes it in its own sequence. Returns [T, H, d]."""
    outs, start = [], 0
    for length in lengths:
        rows = slice(start, start + length)
        outs.append(_attend(q_THd[rows], k_TKd[rows], v_TKd[rows]))
        start += length
    return outs[0] if len(outs) == 1 else torch.cat(outs)


def paged_attention(q_THd: Tensor, k_SKd: Tensor, v_SKd: Tensor, spans: Sequence[Span]) -> Tensor:
    """The same over a cache of S slots that already holds the step's own keys and values. Returns [T, H, d].

    A sequence is computed by itself, so that who else is in the batch can't change its attention.
    Memory is [Q, L] booleans for a prompt's chunk, nothing for a single query.
    """
    outs = []
    for span in spans:
        rows = slice(span.start, span.start + span.num_queries)
        outs.append(_attend(q_THd[rows], read_slots(k_SKd, span.slots), read_slots(v_SKd, span.slots)))
    return outs[0] if len(outs) == 1 else torch.cat(outs)


def read_slots(cache_SKd: Tensor, slots: tuple[tuple[int, int], ...]) -> Tensor:
    """Keys or values of one sequence, [L, K, d]. A view when its pages are neighbours, as they mostly are."""
    runs = [cache_SKd[first:last] for first, last in slots]
    return runs[0] if len(runs) == 1 else torch.cat(runs)


def _attend(q_QHd: Tensor, k_LKd: Tensor, v_LKd: Tensor) -> Tensor:
    """The last Q of L positions attend causally."""
    num_queries, num_heads, head_dim = q_QHd.shape
    num_keys, num_kv_heads, _ = k_LKd.shape
    k_KLd, v_KLd = k_LKd.transpose(0, 1), v_LKd.transpose(0, 1)
    if num_queries == 1:
        # One query sees every key: the query heads of a group become the rows of one small matrix.
        q_KGd = q_QHd.view(num_kv_heads, num_heads // num_kv_heads, head_dim)
        out_KGd = F.scaled_dot_product_attention(q_KGd[None], k_KLd[None], v_KLd[None])[0]
        return out_KGd.reshape(1, num_heads, head_dim)
    mask_QL = None
    if num_queries != num_keys:
        mask_QL = torch.ones(num_queries, num_keys, dtype=torch.bool, device=q_QHd.device)
        mask_QL = mask_QL.tril(num_keys - num_queries)
    out_HQd = F.scaled_dot_product_attention(
        q_QHd.transpose(0, 1)[None],
        k_KLd[None],
        v_KLd[None],
        attn_mask=mask_QL,
        is_causal=mask_QL is None,
        enable_gqa=num_kv_heads != num_heads,
    )[0]
    return out_HQd.transpose(0, 1)
