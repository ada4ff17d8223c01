"""The objectives, to be read beside their papers. Each is a sum over trained tokens of `weight x something`:
how a step is averaged is the weights' business (see `advantage.weigh`), so micro-batches add up.

Shapes: N trained tokens of a batch, T tokens, S samples in it; L sparse layers, E experts, k of a token.

Three policies speak of a token: the engine's, which sampled it (`batch.logprobs_N`), the trainer's own before
the step (`old_N`), and the one that is trained (`logprobs_N`). rho is trained / old, w is old / engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from lathe.errors import UserError
from lathe.train.batch import Batch

Algorithm = Literal["grpo", "dr_grpo", "dapo", "cispo", "gspo", "gspo_token"]
# What happened in a loss, as sums over trained tokens: micro-batches', or processes', add up to the step's.
Stats: TypeAlias = dict[str, Tensor]

# The papers' own bounds: rho is held in [1 - low, 1 + high].
CLIPS: dict[str, tuple[float, float]] = {
    "grpo": (0.2, 0.2),  # PPO's (Schulman et al. 2017); DeepSeekMath (arXiv 2402.03300) names none
    "dr_grpo": (0.2, 0.2),  # arXiv 2503.20783
    "dapo": (0.2, 0.28),  # "clip higher", arXiv 2503.14476
    # no lower bound (arXiv 2506.13585, which keeps the upper one back); 5 as in 2510.13786
    "cispo": (1.0, 4.0),
    "gspo": (3e-4, 4e-4),  # arXiv 2507.18071, section 5.1
    "gspo_token": (3e-4, 4e-4),
}
LARGEST_LOG_RATIO = 20.0  # e^20: exp of more than 88 is infinite in fp32, and infinity x 0 is not a number


@dataclass(frozen=True)
class LossConfig:
    """Which objective, and how far one step may go.

    `clip_low`, `clip_high`: the bounds of rho are 1 - low and 1 + high; None means the paper's (`CLIPS`).
    `correction` is for an engine that computes other probabilities than the trainer: "tis" multiplies a token
    by min(w, `correction_high`), "icepop" by w, or by 0 where w is outside of [`correction_low`,
    `correction_high`]. None means their papers' bounds: 2, and 0.5 to 5.
    `sequence_mask` (low, high) drops a sample whose geometric mean of w is outside.
    `kl_weight` x KL(trained || reference) is added, by the estimator `kl`.
    Raises UserError for bounds that hold nothing.
    """

    algorithm: Algorithm = "gspo"
    clip_low: float | None = None
    clip_high: float | None = None
    correction: Literal["none", "tis", "icepop"] = "none"
    correction_low: float | None = None
    correction_high: float | None = None
    sequence_mask: tuple[float, float] | None = None
    kl_weight: float = 0.0
    kl: Literal["k1", "k2", "k3"] = "k3"

    def __post_init__(self) -> None:
        if self.algorithm not in CLIPS:
            raise UserError(f"loss.algorithm is {self.algorithm!r}; known are {', '.join(CLIPS)}.")
        for name in ("clip_low", "clip_high", "correction_low", "correction_high", "kl_weight"):
            value = getattr(self, name)
            if value is not None and not value >= 0.0:
                raise UserError(f"loss.{name} is {value}; it must be at least 0.")
        for name, (low, high) in {
            "correction_low and correction_high": self.correction_bounds,
            "sequence_mask": self.sequence_mask or (0.0, 1.0),
        }.items():
            if not 0.0 <= low < high:
                raise UserError(f"loss.{name} are {low} and {high}; the first must be the smaller one.")

    @property
    def clip(self) -> tuple[float, float]:
        """The least and the largest rho that counts."""
        low, high = CLIPS[self.algorithm]
        low = low if self.clip_low is None else self.clip_low
        high = high if self.clip_high is None else self.clip_high
        return 1.0 - low, 1.0 + high

    @property
    def correction_bounds(self) -> tuple[float, float]:
        usual_low, usual_high = (0.5, 5.0) if self.correction == "icepop" else (0.0, 2.0)
        return (
            usual_low if self.correction_low is None else self.correction_low,
            usual_high if self.correction_high is None else self.correction_high,
        )


def policy_loss(
    logprobs_N: Tensor,
    old_N: Tensor,
    batch: Batch,
    config: LossConfig,
    reference_N: Tensor | None = None,
) -> tuple[Tensor, Stats]:
    """The loss of a batch, to be minimized, and what happened. Gradients flow into `logprobs_N` alone.

    Raises ValueError where a KL term has no reference.
    """
    if config.kl_weight and reference_N is None:
        raise ValueError("loss.kl_weight is set, but there are no log-probabilities of a reference")
    log_rho_N = (logprobs_N - old_N).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
    if config.algorithm == "cispo":
        objective_N, clipped_N, ratio_N = cispo(logprobs_N, log_rho_N, batch.advantages_N, config)
    else:
        ratio_N = ratio(log_rho_N, batch, config.algorithm)
        objective_N, clipped_N = clipped_objective(ratio_N, batch.advantages_N, config)
    correction_N = correction(old_N.detach(), batch, config)
    loss_N = -correction_N * objective_N
    if reference_N is not None and config.kl_weight:
        loss_N = loss_N + config.kl_weight * kl(logprobs_N, reference_N, config.kl)
    loss = (batch.weights_N * loss_N).sum()
    with torch.no_grad():
        log_w_N = (old_N - batch.logprobs_N).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
        stats = {
            "clipped": clipped_N.sum(),
            "ratio": ratio_N.detach().sum(),
            "kl_old": kl(logprobs_N, old_N, "k3").sum(),
            "mismatch": log_w_N.abs().sum(),
            "mismatch_kl": kl(old_N, batch.logprobs_N, "k3").sum(),
            "masked": (correction_N == 0.0).sum(),
        }
        if reference_N is not None:
            stats["kl_reference"] = kl(logprobs_N, reference_N, "k3").sum()
    return loss, stats


# Objectives, to be maximized


def clipped_objective(ratio_N: Tensor, advantages_N: Tensor, config: LossConfig) -> tuple[Tensor, Tensor]:
    """min(rho A, clip(rho) A), and where the bound decides: there the gradient is 0.

    GRPO, Dr. GRPO and DAPO are this with the token's own rho; what tells them apart are the bounds, the
    advantages and the weights. GSPO is this with the sequence's.
    """
    low, high = config.clip
    free_N, held_N = ratio_N * advantages_N, ratio_N.clamp(low, high) * advantages_N
    return torch.minimum(free_N, held_N), (held_N < free_N).detach()


def cispo(
    logprobs_N: Tensor, log_rho_N: Tensor, advantages_N: Tensor, config: LossConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """sg[clip(rho)] A log pi (MiniMax-M1): the bound limits a token's weight, and no token loses
    its gradient. Also where the bound decides, and rho."""
    low, high = config.clip
    rho_N = log_rho_N.detach().exp()
    held_N = rho_N.clamp(low, high)
    return held_N * advantages_N * logprobs_N, held_N != rho_N, rho_N


def ratio(log_rho_N: Tensor, batch: Batch, algorithm: Algorithm) -> Tensor:
    """Each token's rho, or in its place GSPO's s_i = exp(1/|y_i| sum_t log rho_t) of its sample (equation 7).

    |y_i| counts the trained tokens of the sample: all turns of one trajectory, and nothing that a tool said.
    GSPO-token is sg[s_i] pi / sg[pi] (equation 14): s_i in value, while each token's gradient is its own.
    """
    if algorithm not in ("gspo", "gspo_token"):
        return log_rho_N.exp()
    s_N = sample_mean(log_rho_N, batch).exp()[batch.sample_N]
    return s_N if algorithm == "gspo" else s_N.detach() * (log_rho_N - log_rho_N.detach()).exp()


def sample_mean(x_N: Tensor, batch: Batch) -> Tensor:
    """The mean of each sample's trained tokens, [S]; 0 for a sample without any."""
    zeros_S = torch.zeros(batch.num_samples, dtype=x_N.dtype, device=x_N.device)
    counts_S = zeros_S.index_add(0, batch.sample_N, torch.ones_like(x_N))
    return zeros_S.index_add(0, batch.sample_N, x_N) / counts_S.clamp(min=1.0)


# An engine with other probabilities than the trainer's


def correction(old_N: Tensor, batch: Batch, config: LossConfig) -> Tensor:
    """What each token's objective is multiplied by; 0 takes the token out. No gradient.

    "tis" is truncated importance sampling (Yao et al. 2025, "Your efficient RL framework secretly brings you
    off-policy RL training"), "icepop" the mask with two sides of Ring-1T (arXiv 2510.18855). The sequence's
    mask follows Liu et al. 2025, "When speed kills stability".
    """
    log_w_N = (old_N - batch.logprobs_N).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
    w_N, (low, high) = log_w_N.exp(), config.correction_bounds
    factor_N = torch.ones_like(w_N)
    if config.correction == "tis":
        factor_N = w_N.clamp(low, high)
    elif config.correction == "icepop":
        factor_N = torch.where((w_N >= low) & (w_N <= high), w_N, 0.0)
    if config.sequence_mask is not None:
        low, high = config.sequence_mask
        mean_N = sample_mean(log_w_N, batch).exp()[batch.sample_N]
        factor_N = torch.where((mean_N >= low) & (mean_N <= high), factor_N, 0.0)
    return factor_N


def kl(logprobs_N: Tensor, reference_N: Tensor, estimator: Literal["k1", "k2", "k3"]) -> Tensor:
    """KL(pi || reference), estimated at tokens that pi sampled (Schulman 2020, "Approximating KL
    divergence"), with r = pi / reference.

    k1 = log r is unbiased, but as a loss its gradient is 0 in expectation: it moves nothing. k2 = (log r)^2/2
    has the gradient of this KL. k3 = 1/r - 1 + log r is unbiased and never negative; its gradient is that of
    the KL the other way round (Tang and Munos 2025, arXiv 2506.09477).
    """
    log_r_N = (logprobs_N - reference_N).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
    if estimator == "k1":
        return log_r_N
    if estimator == "k2":
        return log_r_N.square() / 2
    return (-log_r_N).expm1() + log_r_N


# Without rewards


def sft_loss(logprobs_N: Tensor, batch: Batch) -> tuple[Tensor, Stats]:
    """Cross entropy of the trained tokens."""
    return -(batch.weights_N * logprobs_N).sum(), {"nll": -logprobs_N.detach().sum()}


def balance_loss(logits_LTE: Tensor, ids_LTk: Tensor, shares_LE: Tensor | None = None) -> Tensor:
    """E sum_e f_e P_e, the mean over layers: 1 where experts are used alike, up to E / k where the same ones
    always are.

    f_e is the share of the tokens' choices that expert e got, P_e the mean of its probability over tokens
    (Switch Transformer, arXiv 2101.03961, equations 4 to 6, f over all k choices). Only P has a gradient.
    Over a micro-batch f is noisy and forces balance within each text; `shares_LE`, counted over the whole
    step, gives the global-batch loss of Qwen3 (arXiv 2501.11873). A step's loss is then the sum of its
    micro-batches', each times its share of the step's tokens.
    """
    num_experts = logits_LTE.shape[-1]
    if shares_LE is None:
        shares_LE = expert_shares(ids_LTk, num_experts)
    probs_LE = logits_LTE.softmax(-1, dtype=torch.float32).mean(1)
    return num_experts * (shares_LE * probs_LE).sum(-1).mean()


def expert_shares(ids_LTk: Tensor, num_experts: int) -> Tensor:
    """The share of each layer's choices that each expert got, [L, E]."""
    counts_LE = torch.zeros(len(ids_LTk), num_experts, device=ids_LTk.device)
    ids_LC = ids_LTk.flatten(1).long()
    counts_LE.scatter_add_(1, ids_LC, torch.ones_like(ids_LC, dtype=torch.float32))
    return counts_LE / max(ids_LC.shape[1], 1)
