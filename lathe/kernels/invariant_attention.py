"""Attention whose every query gives the same bits whatever is computed beside it.

A query's sum over its keys runs in blocks of BLOCK keys, counted from its sequence's first position, and the
blocks are added up in order. So neither the batch, nor how a prompt was cut into chunks, nor what came from a
cache changes an addition's place. Plain attention splits the keys by how many queries there are.

Shapes: T tokens of all sequences of a step; Q queries and L keys of one sequence; H query heads, K key-value
heads, G = H / K; R rows (query heads of one group, query by query); N blocks of B keys; d head dimension.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lathe.kernels.attention import Span, read_slots

BLOCK = 256  # keys
TILE = 128  # queries that are computed together: bounds the memory to R x L scores
TILE_ROWS = 4  # a product of matrices fills its tiles of rows, or else adds up in another order

LOWEST = torch.finfo(torch.float32).min


def invariant_paged_attention(q_THd: Tensor, k_SKd: Tensor, v_SKd: Tensor, spans: Sequence[Span]) -> Tensor:
    """`attention.paged_attention`, with the same bits for a query whoever else is in the step: [T, H, d]."""
    outs = []
    for span in spans:
        rows = slice(span.start, span.start + span.num_queries)
        outs.append(_attend(q_THd[rows], read_slots(k_SKd, span.slots), read_slots(v_SKd, span.slots)))
    return outs[0] if len(outs) == 1 else torch.cat(outs)


def invariant_causal_attention(q_THd: Tensor, k_TKd: Tensor, v_TKd: Tensor, lengths: Sequence[int]) -> Tensor:
    """`attention.causal_attention` with the bits of `invariant_paged_attention`: what a trainer computes is
    what was served."""
    outs, start = [], 0
    for length in lengths:
        rows = slice(start, start + length)
        outs.append(_attend(q_THd[rows], k_TKd[rows], v_TKd[rows]))
        start += length
    return outs[0] if len(outs) == 1 else torch.cat(outs)


def _attend(q_QHd: Tensor, k_LKd: Tensor, v_LKd: Tensor) -> Tensor:
    """The last Q of L positions attend causally."""
    num_queries, num_heads, head_dim = q_QHd.shape
    num_keys, num_kv_heads, _ = k_LKd.shape
    group = num_heads // num_kv_heads
    q_KQGd = (q_QHd * head_dim**-0.5).unflatten(1, (num_kv_heads, group)).transpose(0, 1)
    tiles = []
    for start in range(0, num_queries, TILE):
        q_KqGd = q_KQGd[:, start : start + TILE]
        first = num_keys - num_queries + start  # the position of the tile's first query
        last = first + q_KqGd.shape[1]
        q_KRd = q_KqGd.flatten(1, 2)
        num_rows = q_KRd.shape[1]
        q_KRd = F.pad(q_KRd, (0, 0, 0, -num_rows % TILE_ROWS))
        # How many keys each row sees; the rows that fill up the last tile see what the last query does.
        seen_R = torch.arange(first + 1, last + 1, device=q_QHd.device).repeat_interleave(group)
        seen_R = F.pad(seen_R, (0, q_KRd.shape[1] - num_rows), value=last)
        out_KRd = _tile(q_KRd, k_LKd[:last], v_LKd[:last], seen_R, first + 1)
        tiles.append(out_KRd[:, :num_rows].unflatten(1, (-1, group)).transpose(0, 1).flatten(1, 2))
    return tiles[0] if len(tiles) == 1 else torch.cat(tiles)


def _tile(q_KRd: Tensor, k_LKd: Tensor, v_LKd: Tensor, seen_R: Tensor, least_seen: int) -> Tensor:
    """Softmax-weighted values of all heads, [K, R, d]. Every row sees the first `least_seen` keys."""
    num_full, num_rest = divmod(len(k_LKd), BLOCK)
    parts = []
    if num_full:
        # One head at a time: its blocks are a view of the cache. All heads together would be a copy.
        heads = []
        for head in range(k_LKd.shape[1]):
            k_NBd = k_LKd[: num_full * BLOCK, head].unflatten(0, (num_full, BLOCK))
            v_NBd = v_LKd[: num_full * BLOCK, head].unflatten(0, (num_full, BLOCK))
            q_NRd = q_KRd[head].expand(num_full, -1, -1)
            heads.append(_blocks(q_NRd, k_NBd, v_NBd, seen_R, 0, least_seen))
        parts.append([torch.stack(part, 1) for part in zip(*heads, strict=True)])
    if num_rest:
        fill = (0, 0, 0, 0, 0, BLOCK - num_rest)
        k_KBd = F.pad(k_LKd[num_full * BLOCK :], fill).transpose(0, 1)
        v_KBd = F.pad(v_LKd[num_full * BLOCK :], fill).transpose(0, 1)
        rest = _blocks(q_KRd, k_KBd, v_KBd, seen_R, num_full * BLOCK, least_seen, is_one_block=True)
        parts.append([part[None] for part in rest])
    out_NKRd, sum_NKR1, top_NKR1 = (torch.cat(part) for part in zip(*parts, strict=True))
    share_NKR1 = torch.exp(top_NKR1 - top_NKR1.amax(0))
    # cumsum, as its additions go one after the other: `sum` splits a long axis, and then the order depends on
    # how many blocks there are.
    out_KRd = (out_NKRd * share_NKR1).cumsum(0)[-1]
    return out_KRd / (sum_NKR1 * share_NKR1).cumsum(0)[-1]


def _blocks(
    q_NRd: Tensor,
    k_NBd: Tensor,
    v_NBd: Tensor,
    seen_R: Tensor,
    first_key: int,
    least_seen: int,
    *,
    is_one_block: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Unnormalized output [N, R, d], sum of weights and largest score [N, R, 1] of each block by itself.

    The blocks follow one another from position `first_key` on; or they are one block of N heads.
    """
    scores_NRB = torch.matmul(q_NRd, k_NBd.mT)
    num_blocks = 1 if is_one_block else len(k_NBd)
    if first_key + num_blocks * BLOCK > least_seen:
        positions = torch.arange(first_key, first_key + num_blocks * BLOCK, device=seen_R.device)
        hidden_NRB = positions.view(num_blocks, 1, BLOCK) >= seen_R[:, None]
        scores_NRB = scores_NRB.masked_fill(hidden_NRB, -torch.inf)
    top_NR1 = scores_NRB.amax(-1, keepdim=True).clamp(min=LOWEST)  # a block that a row sees nothing of
    weights_NRB = torch.exp(scores_NRB - top_NR1)
    return torch.matmul(weights_NRB, v_NBd), weights_NRB.sum(-1, keepdim=True), top_NR1
