"""A step through the compiled kernels: the model's forward is recorded once and replayed by one call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lathe.engine.kv_cache import KVCache
from lathe.engine.runner import batch
from lathe.engine.scheduler import Share
from lathe.kernels.cpu.library import Library
from lathe.kernels.cpu.program import Program, Recorder
from lathe.kernels.cpu.weights import Unsupported
from lathe.kernels.fp8 import Fp8Matrix
from lathe.model.packed import PackedStack, packed_weights
from lathe.model.quantization import Fp8Stack
from lathe.model.transformer import Transformer

SMALLEST = 16  # tokens that a table's memory is first laid out for; a larger step doubles it


class CompiledRunner:
    """What `runner.Runner` does, in compiled kernels. Always with the same bits, whatever else a step holds.

    The cache's memory is its own: keys and values lie in it as native/attention.h wants them.
    """

    def __init__(self, model: Transformer, cache: KVCache, library: Library):
        self.model = model
        self.cache = cache
        self.library = library
        self.program: Program | None = None
        self._logits_RV = torch.empty(0, model.config.vocab_size)

    def run(self, shares: list[Share], *, invariant: bool = False) -> Tensor:
        """Reads every share's tokens. Returns logits [rows, vocabulary]: `num_rows` of each, in order. They
        lie where the next run's will, if those are as many."""
        step = batch(shares)
        num_tokens = len(step.token_ids)
        if self.program is None or self.program.capacity < num_tokens:
            self.program = record(self.model, self.cache, self.library, capacity_for(num_tokens))
        if len(step.rows) != len(self._logits_RV):
            self._logits_RV = torch.empty(len(step.rows), self.model.config.vocab_size)
        return self.program.run(*step, vocab_size=self.model.config.vocab_size, out_RV=self._logits_RV)

    def forget_weights(self) -> None:
        """The model's weights lie elsewhere now."""
        self.program = None

    def is_invariant(self) -> bool:
        return True


def capacity_for(num_tokens: int) -> int:
    capacity = SMALLEST
    while capacity < num_tokens:
        capacity *= 2
    return capacity


def can_run(model: Transformer) -> bool:
    """Whether the compiled kernels compute with this model's weights, tried by recording a step of it."""
    if model.norm.weight.device.type != "cpu" or model.norm.weight.dtype not in (
        torch.float32,
        torch.bfloat16,
    ):
        return False
    cache = KVCache(model.config, 1, dtype=torch.float32, device=torch.device("cpu"))
    try:
        _record(model, cache, 1)
    except Unsupported:
        return False
    return True


def cache_dtype(model: Transformer) -> torch.dtype:
    """What keys and values are kept in. Beside rounded weights fp16's rounding does not count, and decoding
    reads half as much; exact weights get an exact cache, which a trainer's forward has, too."""
    return torch.float16 if packed_weights(model) else torch.float32


def record(model: Transformer, cache: KVCache, library: Library, capacity: int) -> Program:
    """The calls of a step of up to `capacity` tokens. Raises Unsupported."""
    return _record(model, cache, capacity).finish(library)


def _record(model: Transformer, cache: KVCache, capacity: int) -> Recorder:
    recorder = Recorder(capacity, cache.keys, cache.values)

    def run_experts(x: Any, gate_up: Any, down: Any, ids: Any, weights: Any) -> Any:
        return recorder.run_experts(x, stack(gate_up), stack(down), ids, weights)

    arithmetic: Any = recorder
    ids: Any
    positions: Any
    ids, positions = recorder.inputs()
    hidden: Any = model(ids, positions, recorder.attend, run_experts, arithmetic)
    model.logits(recorder.gather(hidden), arithmetic)  # type: ignore[arg-type]
    return recorder


def stack(weights: Any) -> Any:
    """All experts' matrices as the kernels take them."""
    if isinstance(weights, PackedStack):
        return weights.packed
    if isinstance(weights, Fp8Stack):
        return Fp8Matrix(weights.values, weights.scale_inv, weights.parts)
    return weights
