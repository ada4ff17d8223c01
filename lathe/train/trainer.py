"""A step of training: samples in, weights moved, numbers out. The model's forward is the engine's.

In deterministic mode the log-probabilities are the engine's bit for bit, whatever the packing, and the same
samples give the same weights.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from lathe.errors import UserError
from lathe.model.routing import sparse_layers
from lathe.model.transformer import Transformer
from lathe.train import parallel
from lathe.train.batch import Batch, Sample, pack
from lathe.train.forward import Mode, Scores, exact, quick, recompute, score
from lathe.train.lora import Lora
from lathe.train.loss import balance_loss
from lathe.train.masters import Masters
from lathe.train.optim import Decay, make_optimizers, schedule
from lathe.train.parallel import ALONE, World
from lathe.train.replay import replaying, routed
from lathe.train.shards import whole

# (logprobs_N, batch) -> the loss, a sum over the batch, and sums of whatever else is worth knowing
Loss: TypeAlias = Callable[[Tensor, Batch], tuple[Tensor, Mapping[str, Tensor]]]


@dataclass(frozen=True)
class TrainConfig:
    """How weights are moved.

    `total_steps` is where the learning rate's `decay` ends; loops that know their length set it. `min_lr` is
    a share of `lr`. `clip_norm` bounds the norm of the whole gradient. `max_tokens` bounds a micro-batch: it
    decides over memory, and not over what is learned. `deterministic` computes in the engine's kernels.
    `balance_weight` times `loss.balance_loss` of each micro-batch is added, for its share of the tokens.
    `checkpoint_activations` keeps only the layers' inputs and computes the rest again in the backward pass.
    `dtype` "bfloat16": see masters.py.
    """

    lr: float = 1e-5
    optimizer: Literal["adamw", "muon"] = "adamw"
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    warmup_steps: int = 0
    decay: Decay = "constant"
    total_steps: int | None = None
    min_lr: float = 0.0
    clip_norm: float | None = 1.0
    balance_weight: float = 0.0
    max_tokens: int = 8192
    dtype: Literal["float32", "bfloat16"] = "float32"
    checkpoint_activations: bool = False
    deterministic: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.deterministic and self.dtype != "float32":
            raise UserError("deterministic training computes in float32: leave dtype as it is.")
        if self.lr < 0 or not 0 <= self.min_lr <= 1 or self.max_tokens < 1:
            raise UserError("lr is at least 0, min_lr a share of it from 0 to 1, max_tokens at least 1.")


class Moved(Protocol):
    """What the optimizers move in place of the model's weights, which follow: `Lora` or `Masters`."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...
    def merge(self) -> None: ...
    def state_dict(self) -> dict[str, Tensor]: ...
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...


class Trainer:
    """A model and what moves it. `step_number` counts the steps so far, those without an update, too.

    With `lora` only its adapters are trained. Either that or dtype "bfloat16" gives the model's weights new
    memory: make the trainer before an engine that shares them.

    In a `world` of many processes, of a model that `parallel.shard` has shared out: every process then calls
    every method, `step` with the same samples, of which each takes its share.
    """

    def __init__(
        self, model: Transformer, config: TrainConfig, lora: Lora | None = None, world: World = ALONE
    ):
        if config.decay != "constant" and config.total_steps is None:
            raise UserError(f"decay {config.decay!r} needs total_steps, the step where it ends.")
        self.model = model
        self.config = config
        self.world = world
        mode = exact() if config.deterministic else quick()
        self.mode: Mode = replace(mode, run_layer=recompute) if config.checkpoint_activations else mode
        self.moved: Moved | None = lora
        if config.dtype == "bfloat16" and world.size == 1:  # else `shard` has seen to it
            if lora is None:
                self.moved = Masters(model)
            else:
                lora.to_bfloat16(model)
        self.optimizers = make_optimizers(
            (self.moved or model).named_parameters(),
            optimizer=config.optimizer,
            lr=config.lr,
            betas=config.betas,
            weight_decay=config.weight_decay,
        )
        self.step_number = 0
        self.num_skipped = 0

    def score(self, batch: Batch) -> Scores:
        """The trained tokens' log-probabilities, with their gradients. A batch's `routing` is replayed."""
        return score(self.model, batch, replaying(self.mode, self.model.config, batch.routing))

    @torch.no_grad()
    def logprobs(self, batch: Batch) -> Tensor:
        """The trained tokens' log-probabilities under the model's own distribution, [N]."""
        logprobs_N = self.score(batch).logprobs_N
        if self.world.size > 1:
            self.model.reshard()  # type: ignore[operator]  # the head stays gathered for a backward pass
        return logprobs_N

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        config = self.config
        return config.lr * schedule(
            self.step_number,
            warmup_steps=config.warmup_steps,
            total_steps=config.total_steps,
            decay=config.decay,
            floor=config.min_lr,
        )

    def step(self, samples: Iterable[Sample], loss: Loss) -> dict[str, float]:
        """One update by the gradient of the loss over all samples.

        A gradient that is not finite updates nothing: `skipped` is then 1. Returns loss, grad_norm (before
        clipping), lr, num_tokens, num_trained, seconds, tokens_per_s; as means over the trained tokens,
        entropy and what the loss reports; and `largest_mismatch`, the largest difference between a
        log-probability that came with a sample and the trainer's own.
        """
        started, lr = time.perf_counter(), self.lr
        self._forget_gradient()
        sums = dict.fromkeys(("loss", "entropy", "num_tokens", "num_trained"), 0.0)
        largest_mismatch = 0.0
        samples = tuple(samples)
        step_tokens = sum(len(sample.token_ids) for sample in samples)
        for group, counts in parallel.share(samples, self.config.max_tokens, self.world):
            found, mismatch = self._add_gradient(pack(group), loss, counts, step_tokens)
            if counts:
                largest_mismatch = max(largest_mismatch, mismatch)
                for name, value in found.items():
                    sums[name] = sums.get(name, 0.0) + value
        sums = parallel.add_up(sums, self.world)
        grad_norm = self._update(lr) if sums["num_trained"] else 0.0
        self.step_number += 1
        seconds = time.perf_counter() - started
        num_trained = sums.pop("num_trained")
        kept = {name: sums.pop(name) for name in ("loss", "num_tokens")}
        return {
            **kept,
            **{name: value / max(num_trained, 1.0) for name, value in sums.items()},
            "num_trained": num_trained,
            "largest_mismatch": parallel.largest(largest_mismatch, self.world),
            "grad_norm": grad_norm,
            "skipped": float(not math.isfinite(grad_norm)),
            "lr": lr,
            "seconds": seconds,
            "tokens_per_s": kept["num_tokens"] / seconds,
        }

    def _add_gradient(
        self, batch: Batch, loss: Loss, counts: bool, step_tokens: int
    ) -> tuple[dict[str, float], float]:
        """A micro-batch's part of the gradient; none unless it counts. Sums of what it reports, and the
        largest mismatch."""
        mode, routing = replaying(self.mode, self.model.config, batch.routing), None
        if self.config.balance_weight and sparse_layers(self.model.config):
            mode, routing = routed(self.mode, self.model.config, batch.routing)
        logprobs_N, entropy_N = score(self.model, batch, mode)
        value, reported = loss(logprobs_N, batch)
        if routing is not None:
            balance = balance_loss(routing.logits_LTE, routing.ids_TLk.transpose(0, 1))
            value = value + self.config.balance_weight * len(batch.token_ids_T) / step_tokens * balance
            reported = {**reported, "balance": balance.detach() * len(batch.rows_N)}
        (value if counts else value * 0.0).backward()
        was_sampled = bool(batch.logprobs_N.any())
        mismatch = float((logprobs_N.detach() - batch.logprobs_N).abs().max()) if was_sampled else 0.0
        return {
            **{name: float(each) for name, each in reported.items()},
            "loss": float(value.detach()),
            "entropy": float(entropy_N.sum()),
            "num_tokens": float(len(batch.token_ids_T)),
            "num_trained": float(len(batch.rows_N)),
        }, mismatch

    def _update(self, lr: float) -> float:
        """Moves the weights by the gradient that was added up. Returns its norm, not finite if it was not
        used."""
        weights = [weight for weight in self._parameters() if weight.grad is not None]
        parallel.add_gradients(weights, self.world)
        norm = torch.nn.utils.get_total_norm([weight.grad for weight in weights if weight.grad is not None])
        norm = whole(norm)
        if not bool(torch.isfinite(norm)):
            self.num_skipped += 1
            return float(norm)
        if self.config.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(weights, self.config.clip_norm, norm)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
        if self.moved is not None:
            self.moved.merge()
        self._forget_gradient()
        return float(norm)

    def _parameters(self) -> Iterator[nn.Parameter]:
        return (weight for _, weight in (self.moved or self.model).named_parameters())

    def _forget_gradient(self) -> None:
        for weight in self._parameters():
            weight.grad = None

    def whole_model(self) -> Transformer | None:
        """The model for an export: itself, or of many processes a copy with all weights on the first of them,
        and None on the others."""
        return parallel.whole_model(self.model, self.world, self.config.dtype)

    def state_dict(self) -> dict[str, Any]:
        """All that the next steps depend on; with LoRA, of the model only the adapters. Each of many
        processes gets all of it."""
        return {
            "model": parallel.gather((self.moved or self.model).state_dict()),
            "optimizers": [parallel.gather(optimizer.state_dict()) for optimizer in self.optimizers],
            "step_number": self.step_number,
            "num_skipped": self.num_skipped,
            "random": torch.get_rng_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict` as if nothing had been between. Weights are changed in place."""
        parallel.load_weights(self.moved or self.model, state["model"])
        for optimizer, its_state in zip(self.optimizers, state["optimizers"], strict=True):
            parallel.load_optimizer(optimizer, its_state)
        self.step_number, self.num_skipped = state["step_number"], state["num_skipped"]
        torch.set_rng_state(state["random"])
