"""Supervised fine-tuning: rows in, cross entropy down, a model out. Goes on where it was killed."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lathe.errors import UserError
from lathe.log import RunLog, SilentLog
from lathe.train.batch import Batch, Sample, cut, pack, weighed
from lathe.train.checkpoint import last_state, load_state, save_state
from lathe.train.lora import Lora, LoraConfig
from lathe.train.lora_files import save_lora
from lathe.train.loss import Stats, sft_loss
from lathe.train.parallel import ALONE, World, shard
from lathe.train.parts import Parts, export, load_parts
from lathe.train.rows import RowConfig, read_rows
from lathe.train.trainer import TrainConfig, Trainer

Progress: TypeAlias = Callable[[int, int], None]
# how long reading takes, shown to somebody
Reading: TypeAlias = Callable[[], AbstractContextManager[Progress | None]]


@dataclass(frozen=True)
class SftRecipe:
    """What `lathe sft` reads.

    `data` are files of rows (rows.py), or folders of them. Held out for `eval_loss`: the rows of `eval_data`,
    or else `eval_share` of all samples, drawn by the seed. A step trains `batch_size` samples. The learning
    rate's decay ends with the last step. `run` is the folder of the log and the checkpoints; the trained
    model comes to lie in its `model`, merged where `lora` is given, whose adapters then lie in `adapter`.
    """

    model: str
    data: tuple[Path, ...]
    run: Path = Path("runs/sft")
    eval_data: tuple[Path, ...] = ()
    eval_share: float = 0.0
    rows: RowConfig = field(default_factory=RowConfig)
    epochs: int = 1
    batch_size: int = 16
    train: TrainConfig = field(default_factory=TrainConfig)
    lora: LoraConfig | None = None
    eval_every: int = 50
    save_every: int = 50
    keep: int = 2

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch_size, self.eval_every, self.save_every, self.keep) < 1:
            raise UserError("epochs, batch_size, eval_every, save_every and keep are at least 1.")
        if not 0 <= self.eval_share < 1:
            raise UserError(f"eval_share is {self.eval_share}; it is a share from 0 to below 1.")


def run_sft(
    recipe: SftRecipe,
    *,
    resume: bool = False,
    say: Callable[[str], None] | None = None,
    reading: Reading = nullcontext,
    world: World = ALONE,
) -> Path:
    """Trains, logs, saves, and exports. Returns the exported model's folder.

    Resumed, it goes on from the last state that was saved, with the same result as if it had not stopped;
    also in a `world` of another size, up to rounding.
    """
    parts = load_parts(recipe.model)
    shard(parts.model, world, recipe.train.dtype)
    with open_log(recipe, world, resume=resume, say=say) as log:
        train, held_out = read_data(recipe, parts, log.say, reading)
        steps = num_batches(len(train), recipe.batch_size) * recipe.epochs
        lora = Lora(parts.model, recipe.lora) if recipe.lora else None
        trainer = Trainer(parts.model, replace(recipe.train, total_steps=steps), lora, world)
        go_on(trainer, log)
        if trainer.step_number == 0 and held_out:
            log.step(0, eval_loss=eval_loss(trainer, held_out))
        done = trainer.step_number
        todo = batches(len(train), recipe.batch_size, recipe.epochs, recipe.train.seed, done)
        for step, numbers in enumerate(todo, done + 1):
            stats = trainer.step(weighed([train[number] for number in numbers]), loss)
            if held_out and (step % recipe.eval_every == 0 or step == steps):
                stats["eval_loss"] = eval_loss(trainer, held_out)
            log.step(step, **stats)
            if step % recipe.save_every == 0 or step == steps:
                save(trainer, log, recipe.keep)
        if lora is not None and world.is_first:
            save_lora(lora, recipe.run / "adapter", base_model=recipe.model)
        return export_trained(parts, trainer, recipe.run / "model")


def loss(logprobs_N: Tensor, batch: Batch) -> tuple[Tensor, Stats]:
    return sft_loss(logprobs_N, batch)


def read_data(
    recipe: SftRecipe, parts: Parts, say: Callable[[str], None], reading: Reading = nullcontext
) -> tuple[list[Sample], list[Sample]]:
    """The samples to train on, and those held out. Raises UserError where nothing is left to train on."""
    with reading() as progress:
        rows = read_rows(recipe.data, parts, recipe.rows, progress)
        held_out = read_rows(recipe.eval_data, parts, recipe.rows).samples
    say(rows.describe())
    samples = rows.samples
    if recipe.eval_share and not recipe.eval_data:
        order = shuffled(len(samples), recipe.train.seed, "eval")
        num_held = round(len(samples) * recipe.eval_share)
        held_out = [samples[place] for place in sorted(order[:num_held])]
        samples = [samples[place] for place in sorted(order[num_held:])]
    if not samples:
        raise UserError(f"No rows are left to train on: {rows.describe()}.")
    return samples, held_out


def open_log(
    recipe: Any, world: World, *, resume: bool, say: Callable[[str], None] | None
) -> RunLog | SilentLog:
    """The run's log; of many processes the first one keeps it."""
    return RunLog(recipe.run, recipe, resume=resume, say=say) if world.is_first else SilentLog(recipe.run)


def save(trainer: Trainer, log: RunLog | SilentLog, keep: int) -> None:
    """The state after the last step. Every process of the trainer's world must call it."""
    state = trainer.state_dict()
    if trainer.world.is_first:
        save_state(log.checkpoints_folder, trainer.step_number, state, {}, keep=keep)


def export_trained(parts: Parts, trainer: Trainer, folder: Path) -> Path:
    """Every process of the trainer's world must call it; the first one writes."""
    model = trainer.whole_model()
    return folder if model is None else export(replace(parts, model=model), folder)


def go_on(trainer: Trainer, log: RunLog | SilentLog) -> dict[str, object]:
    """Brings trainer and log to the last state that was saved, if there is one. Returns the loop's own."""
    place = last_state(log.checkpoints_folder)
    if place is None:
        log.truncate_after(-1)
        return {}
    state, loop = load_state(place)
    trainer.load_state_dict(state)
    log.truncate_after(trainer.step_number)
    return loop


def shuffled(count: int, seed: int, turn: object) -> list[int]:
    """The numbers below `count`, in an order that seed and turn decide on any machine."""
    order = list(range(count))
    random.Random(f"{seed}, {turn}").shuffle(order)
    return order


def num_batches(count: int, batch_size: int) -> int:
    return math.ceil(count / batch_size)


def batches(count: int, batch_size: int, epochs: int, seed: int, done: int = 0) -> Iterator[list[int]]:
    """The numbers below `count`, some for each step; the first `done` steps are left out.

    An epoch shows each once, in an order of its own; its last batch is smaller where they come out uneven.
    """
    per_epoch = num_batches(count, batch_size)
    for epoch in range(done // per_epoch, epochs):
        order = shuffled(count, seed, epoch)
        for place in range(max(done - epoch * per_epoch, 0), per_epoch):
            yield order[place * batch_size :][:batch_size]


@torch.no_grad()
def eval_loss(trainer: Trainer, samples: Sequence[Sample]) -> float:
    """The mean negative log-likelihood of the trained tokens, in nats."""
    groups = cut(samples, trainer.config.max_tokens)
    logprobs = [trainer.logprobs(pack(group)) for group in groups]
    return -float(torch.cat(logprobs).double().mean())
