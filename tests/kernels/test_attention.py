import pytest
import torch

from lathe.kernels.attention import Span, causal_attention, paged_attention


def reference(q_QHd, k_LKd, v_LKd):
    """Softmax attention of the last Q of L positions, written out in float64."""
    q, k, v = (x.double() for x in (q_QHd, k_LKd, v_LKd))
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores_HQL = torch.einsum("qhd,lhd->hql", q, k) / q.shape[-1] ** 0.5
    later_QL = torch.arange(len(k)) > torch.arange(len(k) - len(q), len(k))[:, None]
    return torch.einsum("hql,lhd->qhd", scores_HQL.masked_fill(later_QL, -torch.inf).softmax(-1), v)


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (9, 3), (6, 1)])
def test_packed_sequences_do_not_see_each_other(heads):
    lengths = [1, 7, 33]
    q, k, v = (torch.randn(sum(lengths), n, 16) for n in (heads[0], heads[1], heads[1]))
    out = causal_attention(q, k, v, lengths)
    start = 0
    for length in lengths:
        rows = slice(start, start + length)
        assert (out[rows] - reference(q[rows], k[rows], v[rows])).abs().max() < 1e-5
        start += length


@pytest.mark.parametrize("num_queries", [1, 2, 9, 40])
def test_paged_attention_reads_scattered_pages_in_order(num_queries):
    cache_k, cache_v = torch.randn(256, 2, 16), torch.randn(256, 2, 16)
    slots = ((160, 176), (16, 32), (32, 40))
    order = [slot for first, last in slots for slot in range(first, last)]
    q = torch.randn(3 + num_queries, 6, 16)
    spans = [Span(0, 3, ((96, 112),)), Span(3, num_queries, slots)]
    out = paged_attention(q, cache_k, cache_v, spans)
    assert (out[:3] - reference(q[:3], cache_k[96:112], cache_v[96:112])).abs().max() < 1e-5
    assert (out[3:] - reference(q[3:], cache_k[order], cache_v[order])).abs().max() < 1e-5


def test_attention_has_gradients():
    q, k, v = (torch.randn(5, n, 8, dtype=torch.float64, requires_grad=True) for n in (4, 2, 2))
    assert torch.autograd.gradcheck(lambda q, k, v: causal_attention(q, k, v, [2, 3]), (q, k, v))
