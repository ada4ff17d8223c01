"""From a batch to the log-probabilities of its trained tokens: the model's own forward over packed sequences.

Shapes: T tokens of a batch, N trained tokens in it, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lathe.errors import UserError
from lathe.kernels.attention import causal_attention
from lathe.kernels.cpu import library
from lathe.kernels.cpu.exact import Exact
from lathe.kernels.expert_gradients import trained_experts
from lathe.kernels.token_logprobs import Scores, logsumexp, token_logprobs
from lathe.model.linear import QUICK, Arithmetic
from lathe.model.transformer import Attend, RunExperts, RunLayer, Transformer, run_layer
from lathe.train.batch import Batch

MOST_LOGITS = 1 << 25  # numbers: 128 MB in fp32. More rows than that go through the head in pieces.


@dataclass(frozen=True)
class Mode:
    """How a forward computes. `attend` is made for the lengths of the packed sequences; `run_layer` decides
    what of a layer is kept for the backward pass."""

    arithmetic: Arithmetic
    attend: Callable[[Sequence[int]], Attend]
    run_experts: RunExperts
    normalizers: Callable[[Tensor], Tensor]
    run_layer: RunLayer = run_layer


def recompute(layer: nn.Module, *inputs: Any) -> Tensor:
    """Keeps nothing of a layer but what goes in; the backward pass runs it again (Chen et al. 2016,
    "Training deep nets with sublinear memory cost"). The same numbers: nothing here is random."""
    return checkpoint(layer, *inputs, use_reentrant=False, preserve_rng_state=False)


def quick() -> Mode:
    """In PyTorch, the fastest way."""

    def attend(lengths: Sequence[int]) -> Attend:
        return lambda _, q_THd, k_TKd, v_TKd: causal_attention(q_THd, k_TKd, v_TKd, lengths)

    return Mode(QUICK, attend, trained_experts, logsumexp)


def exact() -> Mode:
    """In the engine's compiled kernels: its bits. Raises UserError where there are none."""
    found = library.load()
    if found is None:
        raise UserError(f"Deterministic training needs the engine's own kernels. {library.why_not()}")
    arithmetic = Exact(found)

    return Mode(arithmetic, arithmetic.attend, arithmetic.run_experts, arithmetic.normalizers)


def score(model: Transformer, batch: Batch, mode: Mode) -> Scores:
    """The log-probabilities that the model gives the batch's trained tokens, at temperature 1.

    Only their rows get logits, and never more than `MOST_LOGITS` of those at once: where there are more, the
    backward pass computes them again, piece by piece.
    """
    hidden_TD = model(
        batch.token_ids_T,
        batch.positions_T,
        mode.attend(batch.lengths),
        mode.run_experts,
        mode.arithmetic,
        mode.run_layer,
    )
    hidden_ND = hidden_TD[batch.rows_N]

    def of_rows(hidden_nD: Tensor, targets_n: Tensor) -> Scores:
        return token_logprobs(model.logits(hidden_nD, mode.arithmetic), targets_n, mode.normalizers)

    num_rows = max(1, MOST_LOGITS // model.config.vocab_size)
    if len(hidden_ND) <= num_rows:
        return of_rows(hidden_ND, batch.targets_N)
    pieces = [
        checkpoint(of_rows, hidden_nD, targets_n, use_reentrant=False)
        for hidden_nD, targets_n in zip(
            hidden_ND.split(num_rows), batch.targets_N.split(num_rows), strict=True
        )
    ]
    return Scores(*(torch.cat(columns) for columns in zip(*pieces, strict=True)))
