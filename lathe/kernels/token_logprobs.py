"""The log-probability of one token a row, and the entropy of the row: logits are read, never copied thrice.

Shapes: N rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Scores(NamedTuple):
    """Of each row: its token's log-probability, and the entropy (nats) of what the token is drawn from, which
    has no gradient."""

    logprobs_N: Tensor
    entropy_N: Tensor


def logsumexp(logits_NV: Tensor) -> Tensor:
    return logits_NV.logsumexp(-1)


def token_logprobs(
    logits_NV: Tensor, ids_N: Tensor, normalizers: Callable[[Tensor], Tensor] = logsumexp
) -> Scores:
    """Each row's token under the softmax of its logits, in fp32. `normalizers` is their logsumexp, [N], by
    whatever way. Keeps the probabilities, [N, V]."""
    return Scores(*_TokenLogprobs.apply(logits_NV, ids_N, normalizers))


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits_NV: Tensor, ids_N: Tensor, normalizers: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        wide_NV = logits_NV.float()
        totals_N = normalizers(wide_NV)
        logprobs_N = wide_NV.gather(-1, ids_N[:, None])[:, 0] - totals_N
        probs_NV = (wide_NV - totals_N[:, None]).exp_()
        entropy_N = totals_N - torch.linalg.vecdot(probs_NV, wide_NV)
        ctx.save_for_backward(probs_NV, ids_N)
        ctx.dtype = logits_NV.dtype
        ctx.mark_non_differentiable(entropy_N)
        return logprobs_N, entropy_N

    @staticmethod
    def backward(ctx: Any, grad_N: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        probs_NV, ids_N = ctx.saved_tensors
        grad_NV = probs_NV * -grad_N[:, None]
        rows_N = torch.arange(len(ids_N), device=ids_N.device)
        grad_NV[rows_N, ids_N] += grad_N
        return grad_NV.to(ctx.dtype), None, None
