"""GGUF's K types, both directions: 256 numbers share float16 scales, their parts have scales of 6 or 8 bits.

The layouts are ggml's (ggml-common.h). Reading is what llama.cpp computes, bit for bit. Writing searches for
scales that make the weighted squared error small, as llama.cpp does (Kawrakow's k-quants, llama.cpp pull
request 1684); the search is our own, vectorised over all blocks. On Gaussian numbers the relative error is
0.0717 for q4_k (llama.cpp's own: 0.0714) and 0.0177 for q6_k (0.0177); a test holds it there.
"""

# N blocks of 256, P parts in a block, S numbers in a part (q4_k: 8 x 32, q6_k: 16 x 16)

from __future__ import annotations

import torch

from lathe.kernels.cpu.blocks import half_bytes, halves, inverse

# How far from the plain scale (largest number on the last level) the search looks, in levels.
Q4_SEARCH = [step / 5 for step in range(-5, 6)]
Q6_SEARCH = [step / 5 for step in range(-5, 6)]


def dequantize_q4_k(raw: torch.Tensor) -> torch.Tensor:
    return _scale_parts(raw, _low_and_high_parts(raw[:, 16:]))


def q4_k_as_q4_1(raw: torch.Tensor) -> torch.Tensor:
    """[N, 144] to eight of q4_1's blocks each, [8 N, 20]: the same quants, their scale and minimum rounded to
    float16."""
    scale_NP, minimum_NP = _scales_and_minima(raw)
    quants_NPS = _low_and_high_parts(raw[:, 16:])
    packed_NPb = quants_NPS[..., :16] | (quants_NPS[..., 16:] << 4)
    head = [half_bytes(part_NP.reshape(-1, 1)) for part_NP in (scale_NP, -minimum_NP)]
    return torch.cat([*head, packed_NPb.flatten(0, 1)], 1)


def dequantize_q5_k(raw: torch.Tensor) -> torch.Tensor:
    # bit p of byte i in the 32 bytes after the scales is the fifth bit of number i in part p
    parts = torch.arange(8, dtype=torch.uint8, device=raw.device)[:, None]
    fifth_NPS = (raw[:, None, 16:48] >> parts) & 1
    return _scale_parts(raw, _low_and_high_parts(raw[:, 48:]) | (fifth_NPS << 4))


def _low_and_high_parts(quants: torch.Tensor) -> torch.Tensor:
    """Bytes [N, 128] to [N, 8, 32]: the low halves of 32 bytes are one part, the high halves the next."""
    quants = quants.view(-1, 4, 1, 32)
    return torch.cat([quants & 15, quants >> 4], 2).view(-1, 8, 32)


def _scale_parts(raw: torch.Tensor, quants_NPS: torch.Tensor) -> torch.Tensor:
    scale_NP, minimum_NP = _scales_and_minima(raw)
    return quants_NPS.float().mul_(scale_NP[..., None]).sub_(minimum_NP[..., None]).view(-1, 256)


def _scales_and_minima(raw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What each part's quants are multiplied by, and what is then subtracted: float32 [N, 8]."""
    scales, minima = _unpack_scales(raw[:, 4:16])
    return halves(raw, 0) * scales, halves(raw, 2) * minima


def _unpack_scales(packed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """12 bytes to 8 scales and 8 minima of 6 bits.

    Bytes 0-3: the first four scales, and in their top bits the top bits of the last four; bytes 4-7: the same
    of the minima; bytes 8-11: the low nibbles of the last four scales (low) and minima (high).
    """
    a, b, c = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = torch.cat([a & 63, (c & 15) | ((a >> 6) << 4)], 1)
    minima = torch.cat([b & 63, (c >> 4) | ((b >> 6) << 4)], 1)
    return scales, minima


def _pack_scales(scales: torch.Tensor, minima: torch.Tensor) -> torch.Tensor:
    first, last, first_min, last_min = scales[:, :4], scales[:, 4:], minima[:, :4], minima[:, 4:]
    return torch.cat(
        [
            first | ((last >> 4) << 6),
            first_min | ((last_min >> 4) << 6),
            (last & 15) | ((last_min & 15) << 4),
        ],
        1,
    )


def quantize_q4_k(x: torch.Tensor) -> torch.Tensor:
    """[N, 256] float32 to bytes [N, 144]. A number is scale · part scale · quant - minimum · part minimum."""
    x_NPS = x.view(-1, 8, 32)
    weights_NPS = _importance(x_NPS)
    scale_NP, minimum_NP = (part.view(-1, 8) for part in _search_scale_and_minimum(x_NPS, weights_NPS))
    d, d_min = (_top_of_six_bits(part_NP) for part_NP in (scale_NP, minimum_NP))
    scales, minima = _six_bits(scale_NP, d), _six_bits(minimum_NP, d_min)
    # The part scales are coarse (0 to 63): with them fixed to the grid, the quants they give, solve again for
    # each.
    quants_NPS = _quants(x_NPS, d * scales, d_min * minima)
    shifted_NPS = x_NPS + (d_min * minima).unsqueeze(2)
    weighted_NPS = weights_NPS * quants_NPS
    scale_NP = (weighted_NPS * shifted_NPS).sum(2) * inverse((weighted_NPS * quants_NPS).sum(2))
    scales = _six_bits(scale_NP, d)
    rest_NPS = quants_NPS * (d * scales).unsqueeze(2) - x_NPS
    minimum_NP = (weights_NPS * rest_NPS).sum(2) / weights_NPS.sum(2)
    minima = _six_bits(minimum_NP, d_min)
    quants = _quants(x_NPS, d * scales, d_min * minima).to(torch.uint8).view(-1, 4, 2, 32)
    packed = _pack_scales(scales.to(torch.uint8), minima.to(torch.uint8))
    return torch.cat(
        [half_bytes(d), half_bytes(d_min), packed, (quants[:, :, 0] | (quants[:, :, 1] << 4)).flatten(1)], 1
    )


def _importance(x_NPS: torch.Tensor) -> torch.Tensor:
    """Large numbers matter more: |x| plus the part's root mean square. 1e-30: zeros still divide."""
    return x_NPS.abs() + x_NPS.square().mean(2, keepdim=True).sqrt() + 1e-30


def _top_of_six_bits(part_NP: torch.Tensor) -> torch.Tensor:
    """The step [N, 1] that puts the largest of a block's values on 63, as float16 will store it."""
    return (part_NP.amax(1, keepdim=True) / 63).half().float()


def _six_bits(part_NP: torch.Tensor, step_N1: torch.Tensor) -> torch.Tensor:
    return (part_NP * inverse(step_N1)).round_().clamp_(0, 63)


def _quants(x_NPS: torch.Tensor, scale_NP: torch.Tensor, minimum_NP: torch.Tensor) -> torch.Tensor:
    shifted_NPS = x_NPS + minimum_NP.unsqueeze(2)
    return shifted_NPS.mul_(inverse(scale_NP).unsqueeze(2)).round_().clamp_(0, 15)


def _search_scale_and_minimum(
    x_NPS: torch.Tensor, weights_NPS: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and minimum (>= 0, subtracted) of every part, [N, P, 1].

    Each candidate scale gives quants; given these, the best scale and minimum are a linear regression of x on
    them. It lowers the weighted squared error by `gain`, so the largest gain wins.
    """
    lowest = x_NPS.amin(2, keepdim=True).clamp_(max=0)
    width = x_NPS.amax(2, keepdim=True) - lowest
    from_zero_to_one_NPS = (x_NPS - lowest).mul_(inverse(width))
    weighted_x_NPS = weights_NPS * x_NPS
    sum_w, sum_x = weights_NPS.sum(2, keepdim=True), weighted_x_NPS.sum(2, keepdim=True)
    best_scale, best_minimum, best_gain = width / 15, -lowest, torch.full_like(width, -torch.inf)
    for offset in Q4_SEARCH:
        quants_NPS = (from_zero_to_one_NPS * (15 + offset)).round_().clamp_(0, 15)
        weighted_quants_NPS = weights_NPS * quants_NPS
        sum_q = weighted_quants_NPS.sum(2, keepdim=True)
        sum_qq = torch.linalg.vecdot(weighted_quants_NPS, quants_NPS).unsqueeze(2)
        sum_xq = torch.linalg.vecdot(weighted_x_NPS, quants_NPS).unsqueeze(2)
        determinant = sum_w * sum_qq - sum_q * sum_q
        minimum = (sum_q * sum_xq - sum_qq * sum_x) / determinant
        scale = (sum_w * sum_xq - sum_x * sum_q) / determinant
        # the format can't add: where it would have to, the line goes through zero
        through_zero = minimum < 0
        scale = torch.where(through_zero, sum_xq / sum_qq, scale)
        minimum = torch.where(through_zero, 0.0, minimum)
        gain = scale * sum_xq - minimum * sum_x
        better = (
            (gain > best_gain) & (scale > 0) & (determinant > 0)
        )  # false also for the NaNs of equal numbers
        best_scale = torch.where(better, scale, best_scale)
        best_minimum = torch.where(better, minimum, best_minimum)
        best_gain = torch.where(better, gain, best_gain)
    return best_scale, best_minimum


def dequantize_q6_k(raw: torch.Tensor) -> torch.Tensor:
    low, high = raw[:, :128].view(-1, 2, 2, 32), raw[:, 128:192].view(-1, 2, 1, 32)
    low_N2432 = torch.cat([low & 15, low >> 4], 2)  # of each half's 128 numbers: 0-31, 32-63, 64-95, 96-127
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8, device=raw.device)[:, None]
    quants_N2432 = low_N2432 | (((high >> shifts) & 3) << 4)
    scale_NP1 = (halves(raw, 208) * raw[:, 192:208].view(torch.int8)).unsqueeze(2)
    return (quants_N2432.view(-1, 16, 16).float() - 32).mul_(scale_NP1).view(-1, 256)


def quantize_q6_k(x: torch.Tensor) -> torch.Tensor:
    """[N, 256] float32 to bytes [N, 210]. A number is scale · part scale (signed, 8 bits) · (quant - 32)."""
    x_NPS = x.view(-1, 16, 16)
    scale_NP = _search_signed_scale(x_NPS).view(-1, 16)
    extreme = scale_NP.gather(1, scale_NP.abs().argmax(1, keepdim=True))
    d = (extreme / -128).half().float()
    scales = (scale_NP * inverse(d)).round_().clamp_(-128, 127)
    quants_NPS = (x_NPS * inverse(d * scales).unsqueeze(2)).round_().clamp_(-32, 31).add_(32)
    quants = quants_NPS.to(torch.uint8).view(-1, 2, 4, 32)
    low = quants[:, :, :2] & 15 | ((quants[:, :, 2:] & 15) << 4)
    top = quants >> 4
    high = top[:, :, 0] | (top[:, :, 1] << 2) | (top[:, :, 2] << 4) | (top[:, :, 3] << 6)
    return torch.cat(
        [low.flatten(1), high.flatten(1), scales.to(torch.int8).view(torch.uint8), half_bytes(d)], 1
    )


def _search_signed_scale(x_NPS: torch.Tensor) -> torch.Tensor:
    """Scale of every part, [N, P, 1]; negative where the extreme is positive: -32 reaches further than 31.

    Weights are x²: where they are large, an error of the scale hurts most.
    """
    extreme = x_NPS.gather(2, x_NPS.abs().argmax(2, keepdim=True))
    in_levels_NPS = x_NPS * inverse(extreme)
    weights_NPS = x_NPS.square()
    weighted_x_NPS = weights_NPS * x_NPS
    best_scale, best_gain = extreme / -32, torch.zeros_like(extreme)
    for offset in Q6_SEARCH:
        quants_NPS = (in_levels_NPS * -(32 + offset)).round_().clamp_(-32, 31)
        sum_xq = torch.linalg.vecdot(weighted_x_NPS, quants_NPS).unsqueeze(2)
        sum_qq = torch.linalg.vecdot(weights_NPS, quants_NPS.square()).unsqueeze(2)
        scale = sum_xq * inverse(sum_qq)
        gain = scale * sum_xq
        better = gain > best_gain
        best_scale = torch.where(better, scale, best_scale)
        best_gain = torch.where(better, gain, best_gain)
    return best_scale
