"""The settings of a reinforcement run, as a tree of dataclasses: see recipes/code_rl_tiny.toml."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lathe.errors import UserError
from lathe.train.advantage import CreditConfig
from lathe.train.loss import LossConfig
from lathe.train.reward import RewardConfig
from lathe.train.trainer import TrainConfig


@dataclass(frozen=True)
class TasksConfig:
    """What is reinforced, and what it is evaluated on: files of tasks, or a family that is made here. Planted
    bugs are micro-Python programs with one mistake, to be found and mended.

    `num_train` and `num_eval` are how many tasks are taken, None all of a file. `max_steps` and `misled` are
    the micro-Python family's (see `families/micro_python.py`).
    """

    family: Literal["micro_python", "planted_bugs"] | None = None
    train: Path | None = None
    eval: Path | None = None
    num_train: int | None = None
    num_eval: int | None = None
    max_steps: int = 3
    misled: float = 0.35

    def __post_init__(self) -> None:
        if (self.family is None) == (self.train is None):
            raise UserError("tasks need either a family or a file (train).")
        if self.family is not None and not (self.num_train and self.num_eval):
            raise UserError("a family has no end: set num_train and num_eval.")


@dataclass(frozen=True)
class ShapeConfig:
    """A small Qwen3-MoE. Its vocabulary is made of the family's own texts."""

    vocab_size: int = 512
    hidden_size: int = 128
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 32
    num_experts: int = 8
    num_experts_per_tok: int = 2
    moe_intermediate_size: int = 128
    max_context: int = 256


@dataclass(frozen=True)
class WarmConfig:
    """Imitation of `num_samples` texts, `epochs` times, `batch_size` an update. The learning rate falls as a
    cosine to `min_lr` of `lr`."""

    num_samples: int
    epochs: int = 1
    batch_size: int = 24
    lr: float = 2e-3
    min_lr: float = 0.1
    warmup_steps: int = 20


@dataclass(frozen=True)
class StartConfig:
    """The policy that is reinforced: a checkpoint (a name, a folder), or a small model that is made here,
    pretrained and fine-tuned on noisy demonstrations of the family."""

    model: str | None = None
    shape: ShapeConfig = field(default_factory=ShapeConfig)
    pretrain: WarmConfig = field(default_factory=lambda: WarmConfig(3000))
    sft: WarmConfig = field(default_factory=lambda: WarmConfig(1500, epochs=3, batch_size=16))


@dataclass(frozen=True)
class SampleConfig:
    """How attempts are made. `tools` are names of the agent's (bash, edit, …): with them it works in a
    sandbox, up to `max_turns` replies; without, it is one question and one answer. `max_tokens` bounds an
    attempt. `system` None is the agent's own prompt. `concurrency` attempts are made at once."""

    max_tokens: int = 256
    temperature: float = 1.0
    tools: tuple[str, ...] = ()
    max_turns: int | None = None
    max_time_s: float | None = None
    system: str | None = None
    max_context: int | None = None
    max_num_seqs: int = 64
    kv_memory_bytes: int | None = None
    concurrency: int = 256


@dataclass(frozen=True)
class LoopConfig:
    """A step: `groups` of `group_size` attempts at one task each, and `minibatches` updates by them.

    Groups that teach nothing are skipped, and others are sampled in their place, `max_groups` in all.
    `ahead` 0: sampling and updates take turns, on one copy of the weights. 1: the attempts of the next step
    are made while this one's update runs, and go on with the new weights in the middle of a reply; more:
    of so many steps. `eval_every` steps the evaluation's tasks are attempted, `eval_attempts` times each.
    `verdicts` is how many sandboxes judge at once.
    """

    steps: int = 50
    groups: int = 16
    group_size: int = 8
    max_groups: int | None = None
    minibatches: int = 4
    ahead: int = 0
    eval_every: int = 5
    eval_attempts: int = 1
    eval_greedy: bool = False
    checkpoint_every: int = 1
    keep_rollouts: bool = True
    verdicts: int = 4
    share_verdicts: bool = True

    def __post_init__(self) -> None:
        if self.group_size < 2:
            raise UserError(f"group_size is {self.group_size}; a baseline needs at least 2 attempts.")
        if min(self.groups, self.minibatches, self.verdicts, self.eval_every) < 1 or self.ahead < 0:
            raise UserError("groups, minibatches, verdicts and eval_every are at least 1, ahead at least 0.")

    @property
    def most_groups(self) -> int:
        return max(self.groups, self.max_groups or 2 * self.groups)


@dataclass(frozen=True)
class ExperimentConfig:
    """Faults on purpose, to see what they do. A share `fault_rate` of the verdicts meets a machine that
    fails. `faults` "excluded" is how Lathe treats them; "as_zero" takes them for wrong answers instead."""

    fault_rate: float = 0.0
    faults: Literal["excluded", "as_zero"] = "excluded"


@dataclass(frozen=True)
class RLRecipe:
    """All of a run, which leaves its folder at `run`. `num_threads` None: as many as there are cores."""

    tasks: TasksConfig
    run: Path = Path("../runs/rl")
    seed: int = 0
    num_threads: int | None = None
    start: StartConfig = field(default_factory=StartConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    credit: CreditConfig = field(default_factory=CreditConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    experiment: ExperimentConfig = field(default_factory=ExperimentConfig)
