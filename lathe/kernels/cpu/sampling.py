"""Drawing tokens in the compiled kernels: what engine/sampler.py does in PyTorch, for the usual cases."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from ctypes import Array
from typing import NamedTuple

import torch
from torch import Tensor

from lathe.kernels.cpu.library import Library
from lathe.kernels.cpu.table import Draw, Drawn


class Token(NamedTuple):
    """`token_id` is None where more than 512 candidates must be told apart; `logprob` means nothing then.

    A logit less `normalizer` is its token's log-probability.
    """

    token_id: int | None
    logprob: float
    normalizer: float


def normalizer(library: Library, logits_V: Tensor) -> float:
    """The logarithm of the sum of e^logit: a logit less this is its token's log-probability.

    Its bits depend on the logits alone. They are contiguous float32 on the CPU.
    """
    return library.native.lathe_normalizer(logits_V.data_ptr(), len(logits_V))


def normalizers(library: Library, logits_RV: Tensor) -> Tensor:
    """The same of each row, [R]."""
    logits_RV = logits_RV.contiguous()
    num_rows, vocab_size = logits_RV.shape
    first, row_bytes = logits_RV.data_ptr(), 4 * vocab_size
    one = library.native.lathe_normalizer
    return torch.tensor([one(first + row * row_bytes, vocab_size) for row in range(num_rows)])


def wish(
    row: int,
    *,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    uniform: float,
    penalties: tuple[float, float, float] | None = None,
    seen_V: Tensor | None = None,
    counts_V: Tensor | None = None,
) -> Draw:
    """How a token is drawn from the logits' row `row`.

    `uniform` in [0, 1) decides; of the candidates that are left, best first, the one in whose share of the
    probability it falls. `penalties` are repetition, presence and frequency; they need which tokens were
    `seen_V` (bool) and the `counts_V` (float32) of what the reply said, which must live until the draw.
    """
    repetition, presence, frequency = penalties or (1.0, 0.0, 0.0)
    made = Draw(temperature, top_p, min_p, repetition, presence, frequency, top_k, row, uniform)
    if penalties is not None:
        assert seen_V is not None and counts_V is not None, "penalties need what was seen"
        made.seen, made.counts = seen_V.data_ptr(), counts_V.data_ptr()
    return made


@functools.cache  # ctypes makes them anew for each use, which takes longer than a draw
def _arrays_of(count: int) -> tuple[type[Array[Draw]], type[Array[Drawn]]]:
    return Draw * count, Drawn * count


def draw(library: Library, logits_RV: Tensor, wishes: Sequence[Draw]) -> list[Token]:
    """A token for each wish, all by one call. The logits are contiguous float32 on the CPU."""
    count = len(wishes)
    draws_type, drawn_type = _arrays_of(count)
    drawn = drawn_type()
    library.native.lathe_draw(logits_RV.data_ptr(), logits_RV.shape[-1], draws_type(*wishes), count, drawn)
    return [Token(d.token_id if d.token_id >= 0 else None, d.logprob, d.normalizer) for d in drawn]
