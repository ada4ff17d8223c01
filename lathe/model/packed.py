"""Layers whose weights lie in tiles of quantized numbers (kernels/cpu/packed.py), and a model of such layers.

A packed weight has the name of the one that it replaces; its parameter is the tiles' bytes, uint8
[tiles, bytes of a tile] or [E, tiles, bytes of a tile]. Arithmetic is handed the `PackedMatrix` itself:
compiled kernels read the tiles, plain PyTorch dequantizes on every use. New float weights, by
`load_state_dict` or `put_weight`, are quantized.
"""

# E experts, I intermediate size, D hidden size, T tokens

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lathe.kernels.cpu.packed import KINDS, PackedMatrix, num_tiles, quantize
from lathe.model.linear import QUICK, Arithmetic
from lathe.model.transformer import Embedding, Experts, Transformer


class Packed(nn.Module):
    """A layer of which some weights are packed: their kind and shape, by the parameter's name."""

    def __init__(self) -> None:
        super().__init__()
        self.packed: dict[str, tuple[str, int, int]] = {}

    def pack(self, name: str, wide: Tensor, kind: str) -> None:
        """Makes room for a weight of this shape on its device. What it held is lost."""
        *stack, rows, columns = wide.shape
        shape = (*stack, num_tiles(rows, columns), KINDS[kind].tile_bytes)
        data = torch.empty(shape, dtype=torch.uint8, device=wide.device)
        self.register_parameter(name, nn.Parameter(data, requires_grad=False))
        self.packed[name] = kind, rows, columns

    def matrix(self, name: str) -> PackedMatrix:
        return PackedMatrix(*self.packed[name], getattr(self, name).data)

    def stored(self, name: str, weight: Tensor) -> Tensor:
        """The bytes that stand for a float weight of the layer's shape. Anything else is passed through."""
        place = self.matrix(name)
        if not weight.is_floating_point() or weight.shape != place.shape:
            return weight
        return quantize(place.kind, weight.detach()).data

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name in self.packed:
            if prefix + name in state_dict:
                state_dict[prefix + name] = self.stored(name, state_dict[prefix + name])
        super()._load_from_state_dict(state_dict, prefix, *rest)


class PackedLinear(Packed):
    """A linear layer with packed weights."""

    def __init__(self, wide: nn.Linear, kind: str):
        super().__init__()
        self.pack("weight", wide.weight, kind)
        self.bias = wide.bias

    def forward(self, x: Tensor, arithmetic: Arithmetic | None = None) -> Tensor:
        return (arithmetic or QUICK).linear(x, self.matrix("weight"), self.bias)


class PackedEmbedding(Packed):
    """A packed embedding, of which a lookup dequantizes only the rows that it asks for."""

    def __init__(self, wide: nn.Embedding, kind: str):
        super().__init__()
        self.pack("weight", wide.weight, kind)

    def forward(self, ids_T: Tensor, arithmetic: Arithmetic, dtype: torch.dtype) -> Tensor:
        return arithmetic.embed(ids_T, self.matrix("weight"), dtype)

    def logits(self, hidden_TD: Tensor, arithmetic: Arithmetic) -> Tensor:
        return arithmetic.linear(hidden_TD, self.matrix("weight"))


@dataclass(frozen=True)
class PackedStack:
    """The matrices of all experts, of which one at a time is dequantized: `stack[expert]`."""

    packed: PackedMatrix
    dtype: torch.dtype

    def __getitem__(self, expert: int) -> Tensor:
        return self.packed[expert].dequantize(self.dtype)


class PackedExperts(Packed):
    """A layer's experts of which either stack, or both, are packed."""

    def __init__(self, experts: Experts, gate_up_kind: str | None, down_kind: str | None):
        super().__init__()
        self.dtype = experts.down_proj.dtype
        for name, kind in (("gate_up_proj", gate_up_kind), ("down_proj", down_kind)):
            if kind is None:
                self.register_parameter(name, getattr(experts, name))
            else:
                self.pack(name, getattr(experts, name), kind)

    def gate_up(self) -> Tensor | PackedStack:
        """[E, 2I, D]: the rows of gate, then the rows of up."""
        return self._stack("gate_up_proj")

    def down(self) -> Tensor | PackedStack:
        """[E, D, I]"""
        return self._stack("down_proj")

    def _stack(self, name: str) -> Tensor | PackedStack:
        return PackedStack(self.matrix(name), self.dtype) if name in self.packed else getattr(self, name)


def pack_layers(model: Transformer, kinds: Mapping[str, str]) -> None:
    """Makes room for weights (names in the state dict) in tiles of these kinds. What they held is lost."""
    for name, module in list(model.named_modules()):
        kind = kinds.get(f"{name}.weight")
        if isinstance(module, nn.Linear) and kind:
            model.set_submodule(name, PackedLinear(module, kind))
        elif isinstance(module, Embedding) and kind:
            model.set_submodule(name, PackedEmbedding(module, kind))
        elif isinstance(module, Experts):
            both = kinds.get(f"{name}.gate_up_proj"), kinds.get(f"{name}.down_proj")
            if any(both):
                model.set_submodule(name, PackedExperts(module, *both))


def packed_weights(model: nn.Module) -> dict[str, PackedMatrix]:
    """The packed weights, by their names in the state dict."""
    return {
        f"{prefix}.{name}": module.matrix(name)
        for prefix, module in model.named_modules()
        if isinstance(module, Packed)
        for name in module.packed
    }


def weight_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shapes of a model's weights as numbers, by their names in the state dict, whether packed or not."""
    shapes = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    return shapes | {name: packed.shape for name, packed in packed_weights(model).items()}


def put_weight(model: nn.Module, name: str, weight: Tensor) -> None:
    """A copy of this tensor becomes the weight, in the device and type of the one that it replaces.

    It is quantized where that is packed. Not into its memory: that may be a checkpoint's mapped file.
    """
    place = model.get_parameter(name)
    layer, _, own_name = name.rpartition(".")
    module = model.get_submodule(layer)
    if isinstance(module, Packed) and own_name in module.packed and weight.is_floating_point():
        place.data = module.stored(own_name, weight.to(place.device))
    else:
        place.data = weight.detach().to(place.device, place.dtype, copy=True)
