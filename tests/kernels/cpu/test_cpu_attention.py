"""Attention over the paged cache beside float64, within the bounds that follow from its roundings."""

# T tokens, H query heads, K key-value heads, G query heads of a group, d head dimension, L keys of a sequence

import math
from dataclasses import dataclass

import pytest
import torch
from one_call import UNIT, OneCall, assert_within, kernels, random
from torch import Tensor

from lathe.kernels.cpu.table import PAGE_SIZE, Code

DECODING = [(1, length) for length in (1, 15, 16, 17, 63, 64, 65, 1000)]
CHUNKS = [(5, 5), (17, 70), (64, 64), (3, 1000), (100, 131), (2, 65)]


@dataclass
class Attention:
    """Random sequences, each as (queries, keys), whose older keys lie on scattered pages; all else is NaN."""

    shares: list[tuple[int, int]]
    group: int
    d: int
    num_kv_heads: int = 2
    size: float = 1.0  # of queries and keys
    normed: bool = False
    seed: int = 0
    dtype: torch.dtype = torch.float32  # of the cache

    def __post_init__(self) -> None:
        self.num_heads, self.num_tokens = self.group * self.num_kv_heads, sum(q for q, _ in self.shares)
        d, size = self.d, self.size
        self.q = random(self.num_tokens, self.num_heads, d, seed=self.seed, scale=size)
        self.k = random(self.num_tokens, self.num_kv_heads, d, seed=self.seed + 1, scale=size)
        self.v = random(self.num_tokens, self.num_kv_heads, d, seed=self.seed + 2)
        self.weights = [random(d, seed=3) + 1, random(d, seed=4) + 1] if self.normed else [None, None]
        self.olds = [
            (
                random(length - queries, self.num_kv_heads, d, seed=10 + s, scale=size).to(self.dtype),
                random(length - queries, self.num_kv_heads, d, seed=100 + s).to(self.dtype),
            )
            for s, (queries, length) in enumerate(self.shares)
        ]
        self.positions = [p for queries, length in self.shares for p in range(length - queries, length)]
        angles = torch.tensor(self.positions)[:, None] * 1e4 ** -(torch.arange(d // 2) / (d // 2))
        self.cos, self.sin = angles.cos().float(), angles.sin().float()

    def run(self, library=None, quantized: str | None = None) -> Tensor:
        """[T, H, d]; with `quantized`, its form for that kind of weights and what QUANTIZE makes of it."""
        num_pages = [-(-length // PAGE_SIZE) for _, length in self.shares]
        generator = torch.Generator().manual_seed(self.seed)
        pages = torch.randperm(sum(num_pages) + 3, generator=generator)[: sum(num_pages)].tolist()
        keys = torch.full(
            (sum(num_pages) + 3, self.num_kv_heads, self.d, PAGE_SIZE), torch.nan, dtype=self.dtype
        )
        values = torch.full(
            (sum(num_pages) + 3, self.num_kv_heads, PAGE_SIZE, self.d), torch.nan, dtype=self.dtype
        )
        spans, slots, start, first_page = [], [], 0, 0
        for (queries, length), count, (old_k, old_v) in zip(self.shares, num_pages, self.olds, strict=True):
            own = pages[first_page : first_page + count]
            for place in range(length - queries):
                page, slot = own[place // PAGE_SIZE], place % PAGE_SIZE
                keys[page, :, :, slot], values[page, :, slot] = old_k[place], old_v[place]
            slots += [
                own[p // PAGE_SIZE] * PAGE_SIZE + p % PAGE_SIZE for p in range(length - queries, length)
            ]
            spans.append((start, queries, length, first_page))
            start, first_page = start + queries, first_page + count
        made = OneCall(self.num_tokens)
        out = made.empty(self.num_tokens, self.num_heads, self.d)
        q, width = self.q.clone(), self.num_heads * self.d  # the kernel turns its queries in place
        forms: tuple[Tensor | None, ...] = (None, None)
        if quantized:
            form = torch.zeros(out.numel() // 32 * (72 if quantized == "q8_0" else 48), dtype=torch.uint8)
            forms = (None, form) if quantized == "q8_0" else (form, None)
        a = [q, self.k, self.v, out, keys, values, self.num_heads, self.num_kv_heads, self.d]
        made.call(
            Code.ATTEND,
            *a,
            self.cos,
            self.sin,
            *self.weights,
            *forms,
            int(self.dtype == torch.float16),
            f=(1e-6, self.d**-0.5),
        )
        again = made.quantized(out.view(self.num_tokens, width), quantized) if quantized else None
        made.run(library, spans=spans, slots=slots, pages=pages)
        if quantized:
            assert form.any() and torch.equal(form, again)
        return out

    def turned(self, x: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
        """Normed and rotated in float64, and the sizes that its roundings are shares of."""
        wide = x.double()
        if weight is not None:
            wide = wide / (wide.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight.double()
        cos, sin = (torch.cat([each, each], -1)[:, None].double() for each in (self.cos, self.sin))
        first, second = wide.chunk(2, -1)
        sizes = wide.abs() * cos.abs() + torch.cat([second, first], -1).abs() * sin.abs()
        return wide * cos + torch.cat([-second, first], -1) * sin, sizes

    def exact(self) -> tuple[Tensor, Tensor]:
        """The output in float64, and how far a computation in fp32 may be from it."""
        q, q_size = self.turned(self.q, self.weights[0])
        k, k_size = self.turned(self.k, self.weights[1])
        outs, bounds, start = [], [], 0
        for (queries, length), (old_k, old_v) in zip(self.shares, self.olds, strict=True):
            rows = slice(start, start + queries)
            start += queries
            keys, sizes = (
                torch.cat([old_k.double(), k[rows]]),
                torch.cat([old_k.double().abs(), k_size[rows]]),
            )
            values = torch.cat([old_v.double(), self.v[rows].double()])
            keys, sizes, values = (x.repeat_interleave(self.group, 1) for x in (keys, sizes, values))
            later = torch.ones(queries, length, dtype=torch.bool).triu(length - queries + 1)
            scores = torch.einsum("qhd,lhd->hql", q[rows], keys) / math.sqrt(self.d)
            scores = scores.masked_fill(later, -torch.inf)
            weights = scores.softmax(-1)
            out = torch.einsum("hql,lhd->qhd", weights, values)
            # A score's sum, and what norms and rotations of both sides were off before.
            score_size = torch.einsum("qhd,lhd->hql", q_size[rows], sizes) / math.sqrt(self.d)
            stored = (
                2.0**-11 if self.dtype == torch.float16 else 0.0
            )  # what the step's own keys are rounded by
            score_off = (stored + (self.d + self.d / 8 + 24) * UNIT) * score_size.masked_fill(later, 0).amax(
                -1
            )
            # e^x of a difference: the difference's rounding, and two units in the last place; again for each
            # block after which older terms shrink.
            spread = scores.masked_fill(later, 0).abs().amax(-1) * 2
            blocks = -(-length // 64)
            weight_off = 2 * score_off + UNIT * spread * 2 + blocks * 8 * UNIT
            sums = (length + 2 * blocks + 8) * UNIT
            share = torch.expm1(2 * weight_off) + sums  # of numerator and denominator
            size = torch.einsum("hql,lhd->qhd", weights, values.abs()) + length * math.exp(-87)
            outs.append(out)
            bounds.append((2 * share.T[..., None] + stored) * size + stored * 2.0**-14)
        return torch.cat(outs), torch.cat(bounds)


@pytest.mark.parametrize("d", [16, 64, 128, 256])
@pytest.mark.parametrize("group", [1, 2, 4, 12])
def test_attention_is_as_exact_as_its_roundings(group, d):
    for shares, seed in ((DECODING, 0), (CHUNKS, 1), ([(1, 40), (30, 50), (1, 1)], 2)):
        made = Attention(shares, group, d, num_kv_heads=1 if group == 12 else 2, seed=seed)
        assert_within(made.run(), *made.exact())


@pytest.mark.parametrize("isa", ["plain", None])
def test_heads_are_normed_and_turned_before(isa):
    for group, d in ((2, 24), (3, 64), (8, 40)):
        made = Attention([(1, 20), (7, 100), (1, 1)], group, d, normed=True)
        assert_within(made.run(kernels(isa)), *made.exact())


@pytest.mark.parametrize("isa", ["plain", None])
def test_a_cache_in_fp16(isa):
    """The step's own keys and values are rounded as well; nothing else is."""
    for group, d in ((1, 16), (4, 64), (12, 128)):
        for shares in (DECODING, CHUNKS):
            made = Attention(shares, group, d, num_kv_heads=1, dtype=torch.float16)
            assert_within(made.run(kernels(isa)), *made.exact())


@pytest.mark.parametrize("isa", ["plain", None])
@pytest.mark.parametrize("largest", [80.0, 3000.0])
def test_extreme_scores(isa, largest):
    """Queries look at one key, or away from all; no exponential overflows, and no sum is zero."""
    shares = [(1, 1), (1, 17), (1, 130), (20, 140)]
    made = Attention(shares, 2, 64, size=1e-3)
    made.sin.zero_()
    made.cos.fill_(1)
    height = math.sqrt(largest * 8 / 64)  # d^-0.5 q.k = largest
    made.q = torch.sign(made.q) * height
    for old_k, _ in made.olds:
        if len(old_k):
            old_k[len(old_k) // 2] = made.q[-1, :: made.group] * (1 if len(old_k) % 2 else -1)
            old_k[-1] = -made.q[0, :: made.group]
    made.k[-1], made.k[0] = made.q[-1, :: made.group], -made.q[0, :: made.group]
    out = made.run(kernels(isa))
    assert out.isfinite().all()
    assert_within(out, *made.exact())


@pytest.mark.parametrize("sign", [1, -1])
def test_scores_that_only_rise_or_fall(sign):
    """Each block's largest score is above, or far below, that of all before it."""
    made = Attention([(1, 300), (4, 260)], 1, 16, num_kv_heads=1)
    made.sin.zero_()
    made.cos.fill_(1)
    made.q.fill_(1)
    for old_k, _ in made.olds:
        old_k[:] = sign * torch.linspace(-20, 20, len(old_k))[:, None, None]
    assert_within(made.run(), *made.exact())


@pytest.mark.parametrize("kind", ["q4_0", "q8_0"])
def test_its_output_is_quantized_as_by_a_call_of_its_own(kind):
    for group, d in ((1, 32), (4, 64), (3, 128)):
        Attention([(1, 40), (30, 50), (1, 1)], group, d).run(quantized=kind)


def test_what_is_no_number_shows():
    """A query, a key or a value of NaN makes the output NaN, and no other sequence's."""
    for name in ("q", "k", "v"):
        made = Attention([(3, 20), (1, 18)], 2, 16)
        getattr(made, name)[1, 0, 5] = torch.nan
        out = made.run()
        assert out[1, 0].isnan().any(), name
        assert out[3].isfinite().all()
