"""LoRA (Hu et al. 2021, arXiv 2106.09685): a weight W is trained as W + s B A with two thin matrices.

The model's own weights ARE the sums, so nothing else changes: one forward for training and serving, exact or
quick, with the same bits; an engine that shares the model's memory serves every step at once; any export is
of merged weights. What a backward pass gives a sum is carried over to its two factors as soon as it is
there (dA = s B^T dW, dB = s dW A^T) and dropped: no more than one matrix has a gradient of its full size.

The price, beside LoRA as it is mostly built (x W^T + s (x A^T) B^T): a step computes dW, so it costs what a
step of full training costs, and the first weights are kept beside the sums. They may lie in a mapped file.
"""

# E experts, O outputs, I inputs, r rank

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from lathe.errors import UserError
from lathe.model.packed import packed_weights
from lathe.model.transformer import Transformer
from lathe.train.shards import is_sharded, local, rows_here


@dataclass(frozen=True)
class LoraConfig:
    """`targets`: which weights, by the ends of their names ("q_proj", "mlp.experts.down_proj") or by patterns
    ("layers.[0-3].*"); none named: every projection and every expert, not the router, embedding or head.

    s is alpha / rank, or alpha / sqrt(rank) with `rslora` (Kalajdzievski 2023, arXiv 2312.03732).
    """

    rank: int = 16
    alpha: float = 32.0
    rslora: bool = False
    targets: tuple[str, ...] = ()
    seed: int = 0

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


@dataclass(frozen=True, eq=False)
class Adapter:
    """One weight's: `weight` is what the model computes with, `first` what it was (this process's rows).
    Stacked experts have factors of their own each: a [E, r, I], b [E, O, r]."""

    weight: nn.Parameter
    first: Tensor
    a: nn.Parameter  # [r, I]
    b: nn.Parameter  # [O, r]
    scale: float

    def factors_here(self) -> tuple[Tensor, Tensor]:
        """The factors of those rows of the weight that this process holds; views."""
        rows = rows_here(self.weight)
        return (self.a[rows] if self.a.dim() == 3 else self.a), self.b[rows]

    @torch.no_grad()
    def merge(self) -> None:
        a, b = self.factors_here()
        local(self.weight).copy_(self.first.float() + self.scale * (b @ a))

    @torch.no_grad()
    def carry(self, weight: Tensor) -> None:
        """Adds what the weight's gradient means for the factors to theirs, and drops it."""
        assert weight.grad is not None
        grad, rows = local(weight.grad).float(), rows_here(self.weight)
        for factor in (self.a, self.b):
            if factor.grad is None:
                factor.grad = torch.zeros_like(factor)
        assert self.a.grad is not None and self.b.grad is not None
        a, b = self.factors_here()
        a_grad = self.a.grad[rows] if self.a.dim() == 3 else self.a.grad
        a_grad.add_(b.mT @ grad, alpha=self.scale)
        self.b.grad[rows].add_(grad @ a.mT, alpha=self.scale)
        weight.grad = None


class Lora:
    """Adapters on a model, whose weights are the merged ones from now on. All others are frozen.

    Make it before an engine is given the model: adapted weights move to new memory. Call `merge` after every
    update of the factors. Raises UserError for a rank or target that makes no sense, and for packed weights.
    """

    def __init__(self, model: Transformer, config: LoraConfig):
        self.config = config
        names = targets(model, config)
        weights = dict(model.named_parameters())
        generator = torch.Generator().manual_seed(config.seed)
        model.requires_grad_(False)
        self.adapters = {name: _adapter(weights[name], config, generator) for name in names}
        self._hooks = [
            adapter.weight.register_post_accumulate_grad_hook(partial(Adapter.carry, adapter))
            for adapter in self.adapters.values()
        ]
        self.merge()

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """All that is trained, in fp32: NAME.lora_A and NAME.lora_B by the weights' names in the model."""
        for name, adapter in self.adapters.items():
            yield f"{name}.lora_A", adapter.a
            yield f"{name}.lora_B", adapter.b

    def merge(self) -> None:
        """The model computes with the factors as they are now. In place."""
        for adapter in self.adapters.values():
            adapter.merge()

    def state_dict(self) -> dict[str, Tensor]:
        return {name: factor.detach().clone() for name, factor in self.named_parameters()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Raises UserError unless these are the factors of the same weights, of the same rank."""
        factors = dict(self.named_parameters())
        wrong = [
            name
            for name in factors.keys() | state.keys()
            if name not in factors or name not in state or factors[name].shape != state[name].shape
        ]
        if wrong:
            raise UserError(
                f"These adapters are not this model's: {min(wrong)} is missing, not of it, or of another "
                f"rank ({len(wrong)} such factors)."
            )
        for name, factor in factors.items():
            factor.copy_(state[name])
        self.merge()

    def to_bfloat16(self, model: Transformer) -> None:
        """The model computes in bf16. The factors stay in fp32; sums are made in it, and then rounded."""
        for weight in model.parameters():
            weight.data = weight.data.bfloat16()

    def release(self) -> None:
        """Ends it: the model keeps the merged weights, and is a plain one again."""
        for hook in self._hooks:
            hook.remove()
        self.adapters.clear()


def targets(model: Transformer, config: LoraConfig) -> list[str]:
    """The names of the weights that are adapted."""
    if config.rank < 1:
        raise UserError(f"lora.rank is {config.rank}; it is at least 1")
    if packed_weights(model):
        raise UserError("LoRA needs weights that can be added to: load the model without --quantize.")
    known = [name for name, weight in model.named_parameters() if weight.dim() > 1]
    layers = [name for name in known if name.startswith("layers.")]
    if not config.targets:
        return [name for name in layers if not name.endswith(".mlp.gate.weight")]
    chosen: set[str] = set()
    for pattern in config.targets:
        found = {name for name in layers if _is_meant(name.removesuffix(".weight"), pattern)}
        if not found:
            ends = sorted({name.removesuffix(".weight").rpartition(".")[2] for name in layers})
            raise UserError(
                f"lora.targets: {pattern!r} is no linear layer of this model. It has {', '.join(ends)}."
            )
        chosen |= found
    return [name for name in layers if name in chosen]


def _is_meant(name: str, pattern: str) -> bool:
    return name == pattern or name.endswith(f".{pattern}") or fnmatch.fnmatchcase(name, pattern)


def _adapter(weight: nn.Parameter, config: LoraConfig, generator: torch.Generator) -> Adapter:
    """A new one: A as nn.Linear would draw it, B zero, so that the model is at first what it was."""
    *stack, num_out, num_in = weight.shape
    bound = 1 / math.sqrt(num_in)
    a = torch.empty(*stack, config.rank, num_in).uniform_(-bound, bound, generator=generator)
    b = torch.zeros(*stack, num_out, config.rank)
    first = local(weight.detach())
    if is_sharded(weight):
        first = first.clone()  # FSDP has its own memory, where the sums must be
    else:
        weight.data = torch.empty_like(first)
    weight.requires_grad_(True)
    return Adapter(
        weight, first, nn.Parameter(a.to(first.device)), nn.Parameter(b.to(first.device)), config.scale
    )
