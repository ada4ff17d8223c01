"""GGUF's types with blocks of 32 numbers, both directions: a float16 scale, in the *_1 types also a minimum.

Layouts and rounding are ggml's (ggml-common.h, the *_ref functions of ggml-quants.c): what is written is bit
for bit what llama.cpp would write, and what is read is what it would compute with.
"""

# N blocks; bytes of a block: q4_0 d2 q16 · q4_1 d2 m2 q16 · q5_0 d2 h4 q16 · q5_1 d2 m2 h4 q16 · q8_0 d2 q32
# (d scale, m minimum, q quants: the low half of a byte is number i, the high half number i + 16; h fifth
# bits)

from __future__ import annotations

import torch


def halves(raw: torch.Tensor, start: int) -> torch.Tensor:
    """The float16 at byte `start` of every block, as float32 [N, 1]."""
    return raw[:, start : start + 2].view(torch.float16).float()


def half_bytes(values: torch.Tensor) -> torch.Tensor:
    """float32 [N, 1] as the two bytes of a float16."""
    return values.half().view(torch.uint8)


def inverse(scale: torch.Tensor) -> torch.Tensor:
    """1 / scale, and 0 for 0: a block of equal numbers."""
    return torch.where(scale == 0, 0.0, 1 / scale)


def dequantize_q8_0(raw: torch.Tensor) -> torch.Tensor:
    return raw[:, 2:].view(torch.int8).float().mul_(halves(raw, 0))


def quantize_q8_0(x: torch.Tensor) -> torch.Tensor:
    scale = x.abs().amax(1, keepdim=True) / 127
    quants = _round_away(x * inverse(scale))
    return torch.cat([half_bytes(scale), quants.view(torch.uint8)], 1)


def _round_away(x: torch.Tensor) -> torch.Tensor:
    """C's roundf, as int8: halves go away from zero (torch.round: to even). floor(x + 0.5) rounds 0.49999997
    up; counting whole halves is exact."""
    halves = (2 * x).trunc_()
    return halves.add_(halves.sign()).mul_(0.5).to(torch.int8)  # the cast goes towards zero


def dequantize_q4_0(raw: torch.Tensor) -> torch.Tensor:
    return (_nibbles(raw[:, 2:]).float() - 8).mul_(halves(raw, 0))


def dequantize_q4_1(raw: torch.Tensor) -> torch.Tensor:
    return _nibbles(raw[:, 4:]).float().mul_(halves(raw, 0)).add_(halves(raw, 2))


def dequantize_q5_0(raw: torch.Tensor) -> torch.Tensor:
    return (_with_fifth_bits(raw[:, 2:]).float() - 16).mul_(halves(raw, 0))


def q5_0_as_q8_0(raw: torch.Tensor) -> torch.Tensor:
    """The same numbers in wider blocks."""
    quants = _with_fifth_bits(raw[:, 2:]).view(torch.int8) - 16
    return torch.cat([raw[:, :2], quants.view(torch.uint8)], 1)


def dequantize_q5_1(raw: torch.Tensor) -> torch.Tensor:
    return _with_fifth_bits(raw[:, 4:]).float().mul_(halves(raw, 0)).add_(halves(raw, 2))


def quantize_q4_0(x: torch.Tensor) -> torch.Tensor:
    scale, quants = _around_zero(x, 8)
    return torch.cat([half_bytes(scale), _pack_nibbles(quants)], 1)


def quantize_q4_1(x: torch.Tensor) -> torch.Tensor:
    scale, minimum, quants = _from_minimum(x, 15)
    return torch.cat([half_bytes(scale), half_bytes(minimum), _pack_nibbles(quants)], 1)


def quantize_q5_0(x: torch.Tensor) -> torch.Tensor:
    scale, quants = _around_zero(x, 16)
    return torch.cat([half_bytes(scale), _pack_fifth_bits(quants), _pack_nibbles(quants & 15)], 1)


def quantize_q5_1(x: torch.Tensor) -> torch.Tensor:
    scale, minimum, quants = _from_minimum(x, 31)
    parts = [half_bytes(scale), half_bytes(minimum), _pack_fifth_bits(quants), _pack_nibbles(quants & 15)]
    return torch.cat(parts, 1)


def _around_zero(x: torch.Tensor, levels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale, and quants from 0 to 2·levels - 1 that stand for -levels and up; the extreme becomes -levels.

    Of two extremes with opposite signs the first one counts. Only such blocks are searched for it: argmax
    takes half of the time.
    """
    least, most = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
    extreme = torch.where(-least > most, least, most)
    tied = (-least == most).squeeze(1).nonzero().squeeze(1)
    extreme[tied] = x[tied].gather(1, x[tied].abs().argmax(1, keepdim=True))
    scale = extreme / -levels
    quants = (
        (x * inverse(scale)).add_(levels + 0.5).clamp_(0, 2 * levels - 1)
    )  # positive: the cast below floors
    return scale, quants.to(torch.uint8)


def _from_minimum(x: torch.Tensor, top: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scale, minimum, and quants from 0 to `top`."""
    minimum = x.amin(1, keepdim=True)
    scale = (x.amax(1, keepdim=True) - minimum) / top
    quants = ((x - minimum) * inverse(scale)).add_(0.5).clamp_(0, top)
    return scale, minimum, quants.to(torch.uint8)


def _nibbles(quants: torch.Tensor) -> torch.Tensor:
    return torch.cat([quants & 15, quants >> 4], 1)


def _pack_nibbles(quants: torch.Tensor) -> torch.Tensor:
    return quants[:, :16] | (quants[:, 16:] << 4)


def _with_fifth_bits(raw: torch.Tensor) -> torch.Tensor:
    bits = torch.arange(8, dtype=torch.uint8, device=raw.device)
    fifth = (raw[:, :4, None] >> bits) & 1
    return _nibbles(raw[:, 4:]) | (fifth.flatten(1) << 4)


def _pack_fifth_bits(quants: torch.Tensor) -> torch.Tensor:
    powers = 1 << torch.arange(8, dtype=torch.uint8, device=quants.device)
    return ((quants >> 4).view(-1, 4, 8) * powers).sum(2, dtype=torch.uint8)
