"""A model's forward with the engine's bits, and gradients: what a trainer computes is what was served.

`Exact` is an arithmetic whose every number comes from the compiled kernels that the engine replays, one call
at a time, on float32 tensors. Gradients are PyTorch's, of the same functions.
"""

# T tokens, D hidden size, H query heads, K key-value heads, d head dimension, k experts of a token,
# E experts, I inner size, V vocabulary

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lathe.kernels.attention import causal_attention
from lathe.kernels.cpu.library import Library
from lathe.kernels.cpu.sampling import normalizers
from lathe.kernels.cpu.table import PAGE_SIZE, Code, Op, Step
from lathe.kernels.cpu.weights import matrix
from lathe.kernels.expert_gradients import expert_gradients, sort_by_expert
from lathe.kernels.token_logprobs import token_logprobs

Rope = tuple[Tensor, Tensor]


class Exact:
    """The compiled kernels' arithmetic for training; see model/linear.py for what the methods mean."""

    def __init__(self, library: Library):
        self.library = library

    def embed(self, ids_T: Tensor, table: Any, dtype: torch.dtype) -> Tensor:
        return F.embedding(ids_T, table)

    def rope(self, frequencies_h: Tensor, scale: float, positions_T: Tensor) -> Rope:
        frequencies, positions = frequencies_h.contiguous(), positions_T.int().contiguous()
        tables = [torch.empty(len(positions), len(frequencies)) for _ in range(2)]
        a = [frequencies.data_ptr(), len(frequencies), *(table.data_ptr() for table in tables)]
        self._call(Code.ROPE_TABLE, a, (scale,), len(positions), positions=positions.data_ptr())
        return tables[0][:, None], tables[1][:, None]

    def rotate(self, x_THd: Tensor, rope: Rope) -> Tensor:
        (a, b), (cos, sin) = x_THd.chunk(2, -1), rope
        return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)

    def norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        def forward(x: Tensor, weight: Tensor) -> Tensor:
            out = torch.empty_like(x)
            rows, width = x.numel() // x.shape[-1], x.shape[-1]
            a = [x.data_ptr(), width, weight.data_ptr(), out.data_ptr()]
            self._call(Code.NORM, a, (eps,), rows)
            return out

        def gradients(grad: Tensor, wanted: Wanted, x: Tensor, weight: Tensor) -> Gradients:
            scale = (x.square().mean(-1, keepdim=True) + eps).rsqrt_()
            normal, grad_normal = x * scale, grad * weight
            grad_weight = (grad * normal).flatten(0, -2).sum(0) if wanted[1] else None
            shrunk = normal.mul_((grad_normal * normal).mean(-1, keepdim=True))
            return grad_normal.sub_(shrunk).mul_(scale), grad_weight

        return computed(forward, gradients, x, weight)

    def linear(self, x: Tensor, weight: Any, bias: Tensor | None = None) -> Tensor:
        def forward(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
            made, keep = matrix(weight, bias)
            out = torch.empty(len(x), made.rows)
            a = [ctypes.addressof(made), x.data_ptr(), 0, 0, out.data_ptr()]
            self._call(Code.LINEAR, a, (), len(x))
            del keep
            return out

        def gradients(grad: Tensor, wanted: Wanted, x: Tensor, weight: Tensor, *bias: Tensor) -> Gradients:
            of_bias = [grad.sum(0)] if bias else []
            return grad @ weight if wanted[0] else None, grad.T @ x if wanted[1] else None, *of_bias

        return computed(forward, gradients, x, weight, *([] if bias is None else [bias]))

    def swiglu(self, gate: Tensor, up: Tensor) -> Tensor:
        def forward(gate: Tensor, up: Tensor) -> Tensor:
            out = torch.empty_like(gate)
            a = [gate.data_ptr(), up.data_ptr(), gate.shape[-1], out.data_ptr()]
            self._call(Code.SWIGLU, a, (), len(gate))
            return out

        def gradients(grad: Tensor, wanted: Wanted, gate: Tensor, up: Tensor) -> Gradients:
            return torch.ops.aten.silu_backward(grad * up, gate), F.silu(gate).mul_(grad)

        return computed(forward, gradients, gate, up)

    def route(self, logits_TE: Tensor, num_chosen: int, normalized: bool) -> tuple[Tensor, Tensor]:
        num_tokens, num_experts = logits_TE.shape
        ids_Tk = torch.empty(num_tokens, num_chosen, dtype=torch.int32)

        def forward(logits: Tensor) -> Tensor:
            weights = torch.empty(num_tokens, num_chosen)
            a = [logits.data_ptr(), num_experts, num_chosen, ids_Tk.data_ptr(), weights.data_ptr()]
            self._call(Code.ROUTE, [*a, int(normalized)], (), num_tokens)
            return weights

        def again(logits: Tensor) -> Tensor:
            weights = logits.softmax(-1).gather(-1, ids_Tk.long())
            return weights / weights.sum(-1, keepdim=True) if normalized else weights

        return ids_Tk, computed(forward, by_autograd(again), logits_TE)

    def run_experts(
        self, x_TD: Tensor, gate_up_EFD: Tensor, down_EDI: Tensor, ids_Tk: Tensor, weights_Tk: Tensor
    ) -> Tensor:
        ids = ids_Tk.int().contiguous()

        def forward(x: Tensor, gate_up: Tensor, down: Tensor, weights: Tensor) -> Tensor:
            parts = [matrix(gate_up, part=part, parts=2)[0] for part in (0, 1)] + [matrix(down)[0]]
            num_tokens, num_chosen = weights.shape
            rows, inner, num_experts = num_tokens * num_chosen, parts[0].rows, len(down)
            order, begins = (torch.empty(size, dtype=torch.int32) for size in (2 * rows, 2 * num_experts + 1))
            between, outs, out = (
                torch.empty(2 * rows, inner),
                torch.empty(rows, x.shape[1]),
                torch.empty_like(x),
            )
            a = [ctypes.addressof(part) for part in parts] + [x.data_ptr(), 0, 0, ids.data_ptr()]
            a += [weights.data_ptr(), num_chosen, num_experts, order.data_ptr(), begins.data_ptr()]
            a += [between.data_ptr(), 0, outs.data_ptr(), out.data_ptr()]
            self._call(Code.EXPERTS, a, (), num_tokens)
            return out

        def gradients(grad: Tensor, wanted: Wanted, *layer: Tensor) -> Gradients:
            return expert_gradients(grad, wanted, sort_by_expert(ids, len(down_EDI)), None, *layer)

        return computed(forward, gradients, x_TD, gate_up_EFD, down_EDI, weights_Tk)

    def attend(self, lengths: Sequence[int]) -> Callable[[int, Tensor, Tensor, Tensor], Tensor]:
        """Attention of sequences of these lengths, packed one after the other, for the model's forward."""

        def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return self._attend(q, k, v, lengths)

        def again(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return causal_attention(q, k, v, lengths)

        return lambda _, q, k, v: computed(forward, by_autograd(again), q, k, v)

    def logprobs(self, logits_TV: Tensor, ids_T: Tensor) -> Tensor:
        """The log-probability of each row's token, [T], as the engine reports it."""
        return token_logprobs(logits_TV, ids_T, self.normalizers).logprobs_N

    def normalizers(self, logits_TV: Tensor) -> Tensor:
        """What each row's logits are reduced by to become log-probabilities, [T]."""
        return normalizers(self.library, logits_TV)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int]) -> Tensor:
        (num_tokens, num_heads, d), num_kv_heads = q.shape, k.shape[1]
        pages_of = [-(-length // PAGE_SIZE) for length in lengths]
        cache = torch.empty(2, sum(pages_of) * PAGE_SIZE, num_kv_heads, d)
        spans: list[tuple[int, int, int, int]] = []
        slots: list[int] = []
        start = page = 0
        for length, num_pages in zip(lengths, pages_of, strict=True):
            spans.append((start, length, length, page))
            slots += range(page * PAGE_SIZE, page * PAGE_SIZE + length)
            start, page = start + length, page + num_pages
        # q and k are turned already: by an angle of 0 they stay what they are. The kernel scales q in place.
        q, out = q.clone(), torch.empty_like(q)
        cos, sin = torch.ones(num_tokens, d // 2), torch.zeros(num_tokens, d // 2)
        arrays = [np.array(numbers, dtype=np.int32) for numbers in (slots, spans, range(page))]
        a = [each.data_ptr() for each in (q, k, v, out, cache[0], cache[1])]
        a += [num_heads, num_kv_heads, d, cos.data_ptr(), sin.data_ptr()]
        slots_at, spans_at, pages_at = (array.ctypes.data for array in arrays)
        self._call(
            Code.ATTEND,
            a,
            (0.0, d**-0.5),
            num_tokens,
            slots=slots_at,
            spans=spans_at,
            pages=pages_at,
            num_spans=len(spans),
        )
        return out

    def _call(self, code: Code, a: Sequence[int], f: Sequence[float], num_tokens: int, **step: int) -> None:
        table = (Op * 1)(Op(code, 0))
        table[0].a[: len(a)] = a
        table[0].f[: len(f)] = f
        self.library.native.lathe_run(table, 1, ctypes.byref(Step(num_tokens=num_tokens, **step)))


Wanted = tuple[bool, ...]  # for each input, whether it needs a gradient
Gradients = tuple[Tensor | None, ...]


def computed(forward: Callable[..., Tensor], gradients: Callable[..., Gradients], *inputs: Tensor) -> Tensor:
    """What `forward` computes of these tensors, made contiguous. `gradients` is given the output's gradient,
    which inputs need one, and the inputs."""
    return _Computed.apply(forward, gradients, *inputs)


def by_autograd(again: Callable[..., Tensor]) -> Callable[..., Gradients]:
    """The gradients of a function in PyTorch."""

    def gradients(grad: Tensor, wanted: Wanted, *given: Tensor) -> Gradients:
        with torch.enable_grad():
            inputs = [each.detach().requires_grad_(need) for each, need in zip(given, wanted, strict=True)]
            out = again(*inputs)
        found = iter(torch.autograd.grad(out, [each for each in inputs if each.requires_grad], grad))
        return tuple(next(found) if need else None for need in wanted)

    return gradients


class _Computed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, forward: Callable[..., Tensor], gradients: Callable[..., Gradients], *inputs: Tensor
    ) -> Tensor:
        ctx.gradients = gradients
        ctx.save_for_backward(*inputs)
        return forward(*(each.detach().contiguous() for each in inputs))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        return None, None, *ctx.gradients(grad, ctx.needs_input_grad[2:], *ctx.saved_tensors)
