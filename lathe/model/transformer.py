"""The decoder: dense or with experts, one forward pass for training and for serving.

All sequences of a step lie one after another in a single axis; there is no batch axis and no padding. How
attention reads other tokens, how experts are computed and with which arithmetic is passed in, and by a
trainer what of a layer is kept.

Shapes: T tokens of the step, D hidden size, H query heads, K key-value heads, d head dimension, V vocabulary,
E experts, k experts per token, I intermediate size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from lathe.model.config import ModelConfig
from lathe.model.linear import QUICK, Arithmetic, Linear, Rope
from lathe.model.rope import inverse_frequencies, rope_scale

# (layer, q_THd, k_TKd, v_TKd) -> out_THd
Attend: TypeAlias = Callable[[int, Tensor, Tensor, Tensor], Tensor]
# (x_TD, gate_up [E, 2I, D], down [E, D, I], expert_ids_Tk, weights_Tk) -> out_TD;
# the two weights are tensors, or give one expert's matrix when indexed by its number
RunExperts: TypeAlias = Callable[[Tensor, Any, Any, Tensor, Tensor], Tensor]
RunLayer: TypeAlias = Callable[..., Tensor]  # (layer, its inputs) -> x_TD


def run_layer(layer: nn.Module, *inputs: Any) -> Tensor:
    return layer(*inputs)


class Transformer(nn.Module):
    """The weights of a decoder, and its forward pass.

    Its weights' names are Hugging Face's without the leading "model.", but for a layer's experts: they are
    stacked in mlp.experts.gate_up_proj [E, 2I, D] (gate above up) and mlp.experts.down_proj [E, D, I].
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.config = config
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, **factory)
        self.layers = nn.ModuleList(
            DecoderLayer(config, layer, **factory) for layer in range(config.num_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, **factory)
        self.lm_head = (
            None
            if config.tie_word_embeddings
            else Linear(config.hidden_size, config.vocab_size, bias=False, **factory)
        )

    def forward(
        self,
        token_ids_T: Tensor,
        positions_T: Tensor,
        attend: Attend,
        run_experts: RunExperts,
        arithmetic: Arithmetic = QUICK,
        run_layer: RunLayer = run_layer,
    ) -> Tensor:
        """Hidden states [T, D] after the last norm, for `logits`. Positions count within each sequence."""
        frequencies = inverse_frequencies(self.config, self.norm.weight.device)
        rope = arithmetic.rope(frequencies, rope_scale(self.config), positions_T)
        # the embedding may be stored in a narrower type
        x_TD = self.embed_tokens(token_ids_T, arithmetic, self.norm.weight.dtype)
        for layer in self.layers:
            x_TD = run_layer(layer, x_TD, rope, attend, run_experts, arithmetic)
        return self.norm(x_TD, arithmetic)

    def logits(self, hidden_TD: Tensor, arithmetic: Arithmetic = QUICK) -> Tensor:
        """Scores of every token of the vocabulary, [T, V]. Pass only the rows that are needed: V is large."""
        if self.lm_head is None:
            return self.embed_tokens.logits(hidden_TD, arithmetic)
        return self.lm_head(hidden_TD, arithmetic)


class Embedding(nn.Embedding):
    def reset_parameters(self) -> None:
        _draw(self.weight, std=1.0)

    def forward(  # type: ignore[override]
        self, ids_T: Tensor, arithmetic: Arithmetic, dtype: torch.dtype
    ) -> Tensor:
        return arithmetic.embed(ids_T, self.weight, dtype)

    def logits(self, hidden_TD: Tensor, arithmetic: Arithmetic) -> Tensor:
        """The scores of every token where the embedding serves as the head, too."""
        return arithmetic.linear(hidden_TD, self.weight)


class DecoderLayer(nn.Module):
    def __init__(self, config: ModelConfig, layer: int, **factory: Any):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, **factory)
        self.self_attn = Attention(config, layer, **factory)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, **factory)
        self.mlp = MoE(config, **factory) if config.is_sparse(layer) else MLP(config, **factory)

    def forward(
        self,
        x_TD: Tensor,
        rope: Rope,
        attend: Attend,
        run_experts: RunExperts,
        arithmetic: Arithmetic,
    ) -> Tensor:
        x_TD = x_TD + self.self_attn(self.input_layernorm(x_TD, arithmetic), rope, attend, arithmetic)
        return x_TD + self.mlp(self.post_attention_layernorm(x_TD, arithmetic), run_experts, arithmetic)


class Attention(nn.Module):
    def __init__(self, config: ModelConfig, layer: int, **factory: Any):
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        width, bias = config.hidden_size, config.attention_bias
        self.q_proj = Linear(width, config.num_heads * config.head_dim, bias=bias, **factory)
        self.k_proj = Linear(width, config.num_kv_heads * config.head_dim, bias=bias, **factory)
        self.v_proj = Linear(width, config.num_kv_heads * config.head_dim, bias=bias, **factory)
        self.o_proj = Linear(config.num_heads * config.head_dim, width, bias=False, **factory)
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps, **factory) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps, **factory) if config.qk_norm else None

    def forward(self, x_TD: Tensor, rope: Rope, attend: Attend, arithmetic: Arithmetic) -> Tensor:
        heads = (-1, self.head_dim)
        q_THd = self.q_proj(x_TD, arithmetic).unflatten(-1, heads)
        k_TKd = self.k_proj(x_TD, arithmetic).unflatten(-1, heads)
        v_TKd = self.v_proj(x_TD, arithmetic).unflatten(-1, heads)
        if self.q_norm is not None and self.k_norm is not None:
            q_THd, k_TKd = self.q_norm(q_THd, arithmetic), self.k_norm(k_TKd, arithmetic)
        out_THd = attend(self.layer, arithmetic.rotate(q_THd, rope), arithmetic.rotate(k_TKd, rope), v_TKd)
        return self.o_proj(out_THd.flatten(-2), arithmetic)


class MLP(nn.Module):
    """SwiGLU (Shazeer 2020)."""

    def __init__(self, config: ModelConfig, **factory: Any):
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size, bias=False, **factory)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, bias=False, **factory)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, bias=False, **factory)

    def forward(self, x_TD: Tensor, run_experts: RunExperts, arithmetic: Arithmetic) -> Tensor:
        inner_TI = arithmetic.swiglu(self.gate_proj(x_TD, arithmetic), self.up_proj(x_TD, arithmetic))
        return self.down_proj(inner_TI, arithmetic)


class MoE(nn.Module):
    """Every token goes to its k best experts of E; no shared expert."""

    def __init__(self, config: ModelConfig, **factory: Any):
        super().__init__()
        self.num_experts_per_tok = config.num_experts_per_tok
        self.norm_topk_prob = config.norm_topk_prob
        self.gate = Linear(config.hidden_size, config.num_experts, bias=False, **factory)
        self.experts = Experts(config, **factory)

    def forward(self, x_TD: Tensor, run_experts: RunExperts, arithmetic: Arithmetic) -> Tensor:
        expert_ids_Tk, weights_Tk = self.route(x_TD, arithmetic)
        return run_experts(x_TD, self.experts.gate_up(), self.experts.down(), expert_ids_Tk, weights_Tk)

    def route(self, x_TD: Tensor, arithmetic: Arithmetic = QUICK) -> tuple[Tensor, Tensor]:
        """Expert ids and their weights, each [T, k], best first."""
        logits_TE = self.gate(x_TD, arithmetic)
        return arithmetic.route(logits_TE, self.num_experts_per_tok, self.norm_topk_prob)


class Experts(nn.Module):
    """The weights of a layer's experts; each expert is an MLP of its own."""

    def __init__(self, config: ModelConfig, **factory: Any):
        super().__init__()
        num_experts, width, inner = config.num_experts, config.hidden_size, config.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(num_experts, 2 * inner, width, **factory))
        self.down_proj = nn.Parameter(torch.empty(num_experts, width, inner, **factory))
        for stack in (self.gate_up_proj, self.down_proj):  # nn.Linear fills its own; this memory is arbitrary
            _draw(stack, std=0.02)

    def gate_up(self) -> Tensor:
        """[E, 2I, D]: the rows of gate, then the rows of up."""
        return self.gate_up_proj

    def down(self) -> Tensor:
        """[E, D, I]"""
        return self.down_proj


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis, summed in fp32 whatever x's dtype."""

    def __init__(self, width: int, eps: float, **factory: Any):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width, **factory))
        self.eps = eps

    def forward(self, x: Tensor, arithmetic: Arithmetic = QUICK) -> Tensor:
        return arithmetic.norm(x, self.weight, self.eps)


def _draw(weight: Tensor, std: float) -> None:
    """Fills a new weight with random numbers. A meta tensor holds none, and drawing them all the same makes
    PyTorch import its compiler, which takes longer than loading a small model."""
    if not weight.is_meta:
        nn.init.normal_(weight, std=std)
