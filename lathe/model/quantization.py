"""Block FP8, as DeepSeek-V3 and Qwen3 publish it: e4m3 values, and one scale for 128 x 128 of them.

A matrix [rows, columns] comes with `weight_scale_inv` [ceil(rows/128), ceil(columns/128)], bf16 or fp32.
Despite its name it is multiplied to get the weight back. e4m3 keeps 4 significant bits: a relative error of
at most 1/16.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lathe.kernels.fp8 import BLOCK, FP8, FP8_MAX, Fp8Matrix, num_blocks, spread
from lathe.model.config import ModelConfig
from lathe.model.linear import QUICK, Arithmetic
from lathe.model.transformer import Experts, Transformer


def block_scales(weight: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """What to multiply by to get each block back: its largest magnitude over 448; 1 for a block of zeros.

    [..., rows, columns] -> [..., ceil(rows/128), ceil(columns/128)]. bf16 as published; its rounding costs
    nothing, since the values are divided by the scale as it is stored.
    """
    rows, columns = weight.shape[-2:]
    padded = F.pad(weight.float().abs(), (0, -columns % BLOCK, 0, -rows % BLOCK))
    largest = padded.unflatten(-1, (-1, BLOCK)).unflatten(-3, (-1, BLOCK)).amax((-1, -3))
    return torch.where(largest > 0, largest / FP8_MAX, 1.0).to(dtype)


def quantize_blocks(weight: Tensor, scale_inv: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """A matrix (or a stack of them) as (e4m3 values of the same shape, scales)."""
    if scale_inv is None:
        scale_inv = block_scales(weight)
    values = weight.float() / spread(scale_inv.float(), *weight.shape[-2:])
    # a scale rounded down to bf16 leaves values just above 448, and the cast makes those NaN
    return values.clamp(-FP8_MAX, FP8_MAX).to(FP8), scale_inv


@dataclass(frozen=True)
class Fp8Stack:
    """The matrices of all experts, of which one at a time is dequantized: `stack[expert]`.

    values [E, rows, columns], scale_inv [E, blocks of rows, blocks of columns]. The rows are `parts` matrices
    one above the other (gate and up), each with blocks of its own: an inner width of 192 is 2 + 2 blocks.
    """

    values: Tensor
    scale_inv: Tensor
    parts: int
    dtype: torch.dtype

    def __getitem__(self, expert: int) -> Tensor:
        return Fp8Matrix(self.values[expert], self.scale_inv[expert], self.parts).dequantize(self.dtype)


class Fp8Linear(nn.Module):
    """A linear layer whose weights stay one byte each, dequantized whenever they are used."""

    def __init__(self, wide: nn.Linear):
        super().__init__()
        rows, columns = wide.weight.shape
        device = wide.weight.device
        self.weight = fp8_parameter(rows, columns, device=device)
        self.weight_scale_inv = scale_parameter(num_blocks(rows), num_blocks(columns), device=device)
        self.bias = wide.bias

    def forward(self, x: Tensor, arithmetic: Arithmetic | None = None) -> Tensor:
        return (arithmetic or QUICK).linear(x, Fp8Matrix(self.weight, self.weight_scale_inv), self.bias)


class Fp8Experts(nn.Module):
    """A layer's experts whose weights stay one byte each; only chosen experts are dequantized."""

    def __init__(self, experts: Experts):
        super().__init__()
        num_experts, width, inner = experts.down_proj.shape
        device = experts.down_proj.device
        self.dtype = experts.down_proj.dtype
        self.gate_up_proj = fp8_parameter(num_experts, 2 * inner, width, device=device)
        self.gate_up_proj_scale_inv = scale_parameter(
            num_experts, 2 * num_blocks(inner), num_blocks(width), device=device
        )
        self.down_proj = fp8_parameter(num_experts, width, inner, device=device)
        self.down_proj_scale_inv = scale_parameter(
            num_experts, num_blocks(width), num_blocks(inner), device=device
        )

    def gate_up(self) -> Fp8Stack:
        return Fp8Stack(self.gate_up_proj, self.gate_up_proj_scale_inv, 2, self.dtype)

    def down(self) -> Fp8Stack:
        return Fp8Stack(self.down_proj, self.down_proj_scale_inv, 1, self.dtype)


def fp8_parameter(*shape: int, device: torch.device) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, dtype=FP8, device=device), requires_grad=False)


def scale_parameter(*shape: int, device: torch.device) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, dtype=torch.float32, device=device), requires_grad=False)


def keep_fp8_weights(model: Transformer, weights: Collection[str]) -> None:
    """Makes room for these weights (names in the state dict) in FP8. What they held is lost."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and f"{name}.weight" in weights:
            model.set_submodule(name, Fp8Linear(module))
        elif isinstance(module, Experts) and f"{name}.gate_up_proj" in weights:
            model.set_submodule(name, Fp8Experts(module))


def quantization_config(config: ModelConfig) -> dict[str, Any]:
    """config.json's "quantization_config", as in the published Qwen3 FP8 checkpoints."""
    unconverted = ["lm_head"]
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}"
        unconverted += [f"{prefix}.input_layernorm", f"{prefix}.post_attention_layernorm"]
        if config.is_sparse(layer):
            unconverted.append(f"{prefix}.mlp.gate")
    return {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [BLOCK, BLOCK],
        "modules_to_not_convert": unconverted,
    }
