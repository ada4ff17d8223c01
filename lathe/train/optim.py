"""What moves the weights: AdamW, Muon, and the learning rate's course."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from lathe.train.shards import cut_like, is_sharded, whole

Decay: TypeAlias = Literal["constant", "linear", "cosine", "wsd"]

WSD_SHARE = 0.2  # of a run's steps, over which "wsd" (warm-up, stable, decay) goes down at the end


def schedule(step: int, *, warmup_steps: int, total_steps: int | None, decay: Decay, floor: float) -> float:
    """What the peak learning rate is multiplied by in step 0, 1, 2 …

    It rises linearly over `warmup_steps`, and then falls to `floor` at the last of `total_steps`: not at all,
    linearly, as a cosine, or linearly over the last fifth alone ("wsd", Hu et al. 2024, MiniCPM).
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if decay == "constant" or total_steps is None:
        return 1.0
    first = warmup_steps if decay != "wsd" else max(warmup_steps, round(total_steps * (1 - WSD_SHARE)))
    done = min(max((step - first) / max(total_steps - 1 - first, 1), 0.0), 1.0)
    left = (1 + math.cos(math.pi * done)) / 2 if decay == "cosine" else 1 - done
    return floor + (1 - floor) * left


def decays(name: str, weight: Tensor) -> bool:
    """Whether weight decay pulls on it: on matrices, the embedding among them; not on norms and biases."""
    return weight.dim() >= 2


def is_hidden_matrix(name: str, weight: Tensor) -> bool:
    """What Muon is for: the matrices between embedding and head. A layer's experts are a stack of them."""
    return weight.dim() >= 2 and not name.startswith(("embed_tokens", "lm_head"))


def make_optimizers(
    named: Iterable[tuple[str, nn.Parameter]],
    *,
    optimizer: Literal["adamw", "muon"],
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
) -> list[torch.optim.Optimizer]:
    """AdamW for all weights; or Muon for the hidden matrices, and AdamW for the others."""
    weights = {name: weight for name, weight in named if weight.requires_grad}
    to_muon = {
        name: weight
        for name, weight in weights.items()
        if optimizer == "muon" and is_hidden_matrix(name, weight)
    }
    groups = [
        {
            "params": [
                w for name, w in weights.items() if name not in to_muon and decays(name, w) == decayed
            ],
            "weight_decay": weight_decay if decayed else 0.0,
        }
        for decayed in (True, False)
    ]
    made: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=lr, betas=betas, eps=1e-8)]
    if to_muon:
        made.append(Muon(list(to_muon.values()), lr=lr, weight_decay=weight_decay))
    return made


class Muon(torch.optim.Optimizer):
    """Momentum, made orthogonal (Jordan et al. 2024, "Muon: an optimizer for hidden layers").

    The update of a matrix is U V^T of its momentum U S V^T, times 0.2 sqrt(larger side): then its entries are
    as large as AdamW's, and one learning rate serves both (Moonlight, arXiv 2502.16982). A stack of matrices
    [E, rows, columns] is E of them. Weight decay is AdamW's. Of weights that many processes share (FSDP2),
    each process makes the whole matrix orthogonal; a stack's matrices stay where they are.
    """

    def __init__(
        self,
        weights: Iterable[Tensor],
        *,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ):
        super().__init__(weights, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                state["momentum"].mul_(momentum).add_(weight.grad)
                ahead = weight.grad + momentum * state["momentum"]  # Nesterov's look ahead
                if is_sharded(ahead) and ahead.dim() == 2:
                    update = cut_like(orthogonal(whole(ahead)), ahead)
                else:
                    update = orthogonal(ahead)
                weight.mul_(1 - lr * group["weight_decay"])
                weight.add_(update, alpha=-lr * 0.2 * max(weight.shape[-2:]) ** 0.5)


def orthogonal(matrices: Tensor, num_rounds: int = 5) -> Tensor:
    """About U V^T of each matrix U S V^T: every singular value but the smallest comes to lie near 1.

    Newton-Schulz with the quintic of Jordan et al., which does not converge, but is quick: values between
    0.7 and 1.2.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if is_tall else matrices
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    for _ in range(num_rounds):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if is_tall else x
