"""Which experts each token goes to, written down on its way through the model; or told to it.

Shapes: T tokens, L sparse layers, E experts, k experts of a token.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lathe.model.config import ModelConfig
from lathe.model.linear import Arithmetic
from lathe.model.transformer import Attend


def sparse_layers(config: ModelConfig) -> tuple[int, ...]:
    """The numbers of the layers with experts."""
    return tuple(layer for layer in range(config.num_layers) if config.is_sparse(layer))


class Routing:
    """An arithmetic that notes what the routers said in one forward pass, for `layers`, the sparse ones.

    With `replay_TLk` tokens go where that says, but for those whose ids are -1. Their weights are the softmax
    over the router's own logits at the replayed experts, so the router keeps its gradient (arXiv 2510.11370).
    Where the router would choose the same experts in the same order, no bit changes.

    The forward pass must be given `attend` of this: a layer's attention runs before its router and knows its
    number, also when a backward pass computes the layer again.
    """

    def __init__(self, inner: Arithmetic, layers: Sequence[int], replay_TLk: Tensor | None = None):
        self.inner = inner
        self.places = {layer: place for place, layer in enumerate(layers)}
        self.replay_TLk = replay_TLk
        self.logits: dict[int, Tensor] = {}  # by place; [T, E]
        self.ids: dict[int, Tensor] = {}  # by place; [T, k]
        self._layer = -1
        self.embed, self.rope, self.rotate = inner.embed, inner.rope, inner.rotate
        self.norm, self.linear, self.swiglu = inner.norm, inner.linear, inner.swiglu

    def attend(self, attend: Attend) -> Attend:
        """The same attention, which tells where the forward pass is."""

        def attend_in_layer(layer: int, q_THd: Tensor, k_TKd: Tensor, v_TKd: Tensor) -> Tensor:
            self._layer = layer
            return attend(layer, q_THd, k_TKd, v_TKd)

        return attend_in_layer

    def route(self, logits_TE: Tensor, num_chosen: int, normalized: bool) -> tuple[Tensor, Tensor]:
        ids_Tk, weights_Tk = self.inner.route(logits_TE, num_chosen, normalized)
        place = self.places[self._layer]
        if self.replay_TLk is not None:
            told_Tk = self.replay_TLk[:, place].to(ids_Tk)
            ids_Tk, weights_Tk = replayed(logits_TE, ids_Tk, weights_Tk, told_Tk, normalized)
        if place not in self.ids:  # computed again, a layer says the same, and its graph must not be kept
            self.logits[place], self.ids[place] = logits_TE, ids_Tk
        return ids_Tk, weights_Tk

    @property
    def ids_TLk(self) -> Tensor:
        """Where the tokens went, best expert first; int16, for they are many."""
        return torch.stack([self.ids[place] for place in sorted(self.ids)], 1).short()

    @property
    def logits_LTE(self) -> Tensor:
        """The routers' scores, with their gradients: what a balance loss needs."""
        return torch.stack([self.logits[place] for place in sorted(self.logits)])


def replayed(
    logits_TE: Tensor, ids_Tk: Tensor, weights_Tk: Tensor, told_Tk: Tensor, normalized: bool
) -> tuple[Tensor, Tensor]:
    """The told experts and their weights; a router's own (`ids_Tk`, `weights_Tk`) where told the same, or
    nothing (-1)."""
    chosen_Tk = torch.where(told_Tk >= 0, told_Tk, ids_Tk)
    own_T1 = (chosen_Tk == ids_Tk).all(-1, keepdim=True)
    told_weights_Tk = logits_TE.softmax(-1, dtype=torch.float32).gather(-1, chosen_Tk.long())
    if normalized:
        told_weights_Tk = told_weights_Tk / told_weights_Tk.sum(-1, keepdim=True)
    return chosen_Tk, torch.where(own_T1, weights_Tk, told_weights_Tk.to(weights_Tk.dtype))
