"""Drawing tokens in the compiled kernels: what engine/sampler.py does in PyTorch, for the usual cases."""

from __future__ import annotations

import ctypes

from torch import Tensor

from lathe.kernels.cpu.library import Library
from lathe.kernels.cpu.table import Draw


def normalizer(library: Library, logits_V: Tensor) -> float:
    """The logarithm of the sum of e^logit: a logit less this is its token's log-probability.

    Its bits depend on the logits alone. They are contiguous float32 on the CPU.
    """
    return library.native.lathe_normalizer(logits_V.data_ptr(), len(logits_V))


def draw(
    library: Library,
    logits_V: Tensor,
    *,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    uniform: float,
    penalties: tuple[float, float, float] | None = None,
    seen_V: Tensor | None = None,
    counts_V: Tensor | None = None,
) -> int | None:
    """A token's id, or None where more than 512 candidates must be told apart.

    `uniform` in [0, 1) decides; of the candidates that are left, best first, the one in whose share of the
    probability it falls. `penalties` are repetition, presence and frequency; they need which tokens were
    `seen_V` (bool) and the `counts_V` (float32) of what the reply said.
    """
    repetition, presence, frequency = penalties or (1.0, 0.0, 0.0)
    wanted = Draw(temperature, top_p, min_p, repetition, presence, frequency, top_k, 0, uniform)
    if penalties is not None:
        assert seen_V is not None and counts_V is not None, "penalties need what was seen"
        wanted.seen, wanted.counts = seen_V.data_ptr(), counts_V.data_ptr()
    token_id = library.native.lathe_draw(logits_V.data_ptr(), len(logits_V), ctypes.byref(wanted))
    return None if token_id < 0 else token_id
