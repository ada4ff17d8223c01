"""Rotary position embeddings (Su et al. 2021), plain or stretched by YaRN (arXiv 2309.00071).

T tokens, H heads, d head dimension. A head's dimensions i and i + d/2 form a pair, which turns by
position x frequency_i.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lathe.model.config import ModelConfig, YarnConfig


def rope_tables(config: ModelConfig, positions_T: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines for these positions, each fp32 [T, 1, d], for `rotate`."""
    return tables(inverse_frequencies(config, positions_T.device), rope_scale(config), positions_T)


def rope_scale(config: ModelConfig) -> float:
    """What queries and keys are multiplied by: YaRN's correction of the softmax's temperature."""
    return 1.0 if config.yarn is None else config.yarn.scale


def tables(frequencies_h: Tensor, scale: float, positions_T: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines, each fp32 [T, 1, d], for `rotate`.

    Computed from the positions alone, so a million of them needs no table of a million rows. In fp32 as the
    models were trained: bf16 can't tell position 257 from 258.
    """
    angles_Th = positions_T[:, None].float() * frequencies_h
    cos_Th, sin_Th = angles_Th.cos(), angles_Th.sin()
    cos_Td, sin_Td = torch.cat((cos_Th, cos_Th), -1), torch.cat((-sin_Th, sin_Th), -1)
    return cos_Td[:, None] * scale, sin_Td[:, None] * scale


def rotate(x_THd: Tensor, cos_T1d: Tensor, sin_T1d: Tensor) -> Tensor:
    """Turns every pair by its angle; computed in fp32, returned in x's dtype.

    (a, b) -> (a cos - b sin, b cos + a sin): swapping the halves is a roll, the minus sits in the sines.
    """
    x32 = x_THd.float()
    return torch.addcmul(x32 * cos_T1d, x32.roll(x32.shape[-1] // 2, -1), sin_T1d).to(x_THd.dtype)


def inverse_frequencies(config: ModelConfig, device: torch.device | None = None) -> Tensor:
    """Radians per position of each pair, fp32 [d/2]."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=device) / config.head_dim
    # fp32 powers, as in training: a double-precision table rounds differently, and position 100,000 shows it
    wavelengths = config.rope_theta**exponents
    if config.yarn is None:
        return 1.0 / wavelengths
    stays = yarn_ramp(config.yarn, config.head_dim, config.rope_theta).to(wavelengths.device)
    return 1.0 / (config.yarn.factor * wavelengths) * (1 - stays) + 1.0 / wavelengths * stays


def yarn_ramp(yarn: YarnConfig, head_dim: int, rope_theta: float) -> Tensor:
    """1 for the pairs that keep their frequency, 0 for those that are stretched, fp32 [d/2]."""

    def pair_that_turns(times: float) -> float:
        """Which pair turns this often within the original length (fractional, may lie outside the range)."""
        wavelength = yarn.original_max_position_embeddings / (times * 2 * math.pi)
        return head_dim * math.log(wavelength) / (2 * math.log(rope_theta))

    first = max(math.floor(pair_that_turns(yarn.beta_fast)), 0)
    last = min(math.ceil(pair_that_turns(yarn.beta_slow)), head_dim - 1)
    width = max(last - first, 0.001)  # the authors' guard for a ramp of no width
    ramp = (torch.arange(head_dim // 2, dtype=torch.float32) - first) / width
    return 1 - ramp.clamp(0, 1)
