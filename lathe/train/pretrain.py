"""Pretraining: next token, and fill in the middle, over documents that don't see one another."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from lathe.engine.loading import load_template, load_tokenizer
from lathe.errors import RecordError, UserError
from lathe.model import hub
from lathe.model.checkpoint import open_checkpoint
from lathe.model.config import ModelConfig
from lathe.text import fim
from lathe.text.tokenizer import Tokenizer
from lathe.train.batch import Sample, next_tokens, weighed
from lathe.train.parallel import ALONE, World, first_goes_first, shard
from lathe.train.parts import Parts, load_parts, new_parts
from lathe.train.sft import (
    Progress,
    Reading,
    batches,
    eval_loss,
    export_trained,
    go_on,
    loss,
    num_batches,
    open_log,
    save,
    shuffled,
)
from lathe.train.token_shards import INDEX, TokenShards, write_token_shards
from lathe.train.trainer import TrainConfig, Trainer


@dataclass(frozen=True)
class PretrainRecipe:
    """What `lathe pretrain` reads.

    Either `model` is a checkpoint that goes on, or `shape` (ModelConfig's fields) a new one, which takes the
    tokenizer of the checkpoint `tokenizer`. `data` are folders of token shards (token_shards.py), or else
    text: .jsonl files with a "text" in each line, other files as one document each, and folders of them.

    A step trains `batch_size` windows of up to `window` tokens; a longer document is cut into several. The
    share `fim_rate` of them becomes a middle between its surroundings, cut anywhere (Bavarian et al. 2022,
    arXiv 2207.14255). `eval_share` of the windows is held out.
    """

    data: tuple[Path, ...]
    run: Path = Path("runs/pretrain")
    model: str | None = None
    shape: ModelConfig | None = None
    tokenizer: str | None = None
    window: int = 1024
    batch_size: int = 16
    epochs: int = 1
    fim_rate: float = 0.0
    eval_share: float = 0.0
    train: TrainConfig = field(default_factory=TrainConfig)
    eval_every: int = 100
    save_every: int = 100
    keep: int = 2

    def __post_init__(self) -> None:
        if (self.model is None) == (self.shape is None):
            raise UserError("name a model to go on with, or the shape of a new one: one of the two.")
        if self.shape is not None and self.tokenizer is None:
            raise UserError("a new model needs tokenizer, a checkpoint whose tokenizer it takes.")
        if self.window < 2 or min(self.batch_size, self.epochs, self.eval_every, self.save_every) < 1:
            raise UserError("window is at least 2; batch_size, epochs, eval_every and save_every at least 1.")


def run_pretrain(
    recipe: PretrainRecipe,
    *,
    resume: bool = False,
    say: Callable[[str], None] | None = None,
    reading: Reading = nullcontext,
    world: World = ALONE,
) -> Path:
    """Trains, logs, saves, and exports. Returns the exported model's folder. Resumes as `run_sft` does."""
    parts = open_parts(recipe)
    shard(parts.model, world, recipe.train.dtype)
    with open_log(recipe, world, resume=resume, say=say) as log:
        with reading() as progress, first_goes_first(world):
            shards = list(open_data(recipe, parts, progress))
        train, held_out = windows_of(recipe, shards)
        log.say(f"{sum(shard.num_tokens for shard in shards):,} tokens, {len(train):,} windows to train on")
        steps = num_batches(len(train), recipe.batch_size) * recipe.epochs
        trainer = Trainer(parts.model, replace(recipe.train, total_steps=steps), world=world)
        go_on(trainer, log)
        done = trainer.step_number
        todo = batches(len(train), recipe.batch_size, recipe.epochs, recipe.train.seed, done)
        held_samples = [next_tokens(window.read()) for window in held_out]
        for step, numbers in enumerate(todo, done + 1):
            rng = random.Random(f"{recipe.train.seed}, {step}")
            samples = [to_sample(train[number].read(), recipe, parts, rng) for number in numbers]
            stats = trainer.step(weighed(samples), loss)
            if held_samples and (step % recipe.eval_every == 0 or step == steps):
                stats["eval_loss"] = eval_loss(trainer, held_samples)
            log.step(step, **stats)
            if step % recipe.save_every == 0 or step == steps:
                save(trainer, log, recipe.keep)
        return export_trained(parts, trainer, recipe.run / "model")


def open_parts(recipe: PretrainRecipe) -> Parts:
    if recipe.model is not None:
        return load_parts(recipe.model)
    assert recipe.shape is not None and recipe.tokenizer is not None
    checkpoint = open_checkpoint(hub.resolve(recipe.tokenizer), weights=False)
    tokenizer = load_tokenizer(checkpoint)
    return new_parts(recipe.shape, tokenizer, load_template(checkpoint, tokenizer), seed=recipe.train.seed)


# Documents


def open_data(
    recipe: PretrainRecipe, parts: Parts, progress: Progress | None = None
) -> Iterator[TokenShards]:
    """The shards that are named; and those of the texts that are, which are written into the run's folder."""
    texts = [path for path in recipe.data if not (path / INDEX).exists()]
    for path in recipe.data:
        if path not in texts:
            yield (shards := TokenShards(path))
            if shards.vocab_size > parts.model.config.vocab_size:
                raise UserError(
                    f"{path} was made for {shards.vocab_size} tokens, and this model has "
                    f"{parts.model.config.vocab_size}: take the tokenizer that made it."
                )
    if not texts:
        return
    folder = recipe.run / "tokens"
    if (folder / INDEX).exists():
        yield TokenShards(folder)
        return
    documents = encoded(read_texts(texts, progress), parts)
    yield write_token_shards(folder, documents, vocab_size=parts.model.config.vocab_size)


def read_texts(paths: Iterable[Path], progress: Progress | None = None) -> Iterator[str]:
    """The documents of files. Raises RecordError, which names file and line."""
    files: list[Path] = []
    for path in paths:
        if not path.exists():
            raise RecordError(f"{path} does not exist: name a folder of token shards, or text.")
        found = sorted(path.rglob("*")) if path.is_dir() else [path]
        files += [file for file in found if file.is_file() and not file.name.startswith(".")]
    total, done = sum(file.stat().st_size for file in files), 0
    for file in files:
        if file.suffix == ".jsonl":
            yield from _texts_of_lines(file)
        else:
            try:
                yield file.read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                raise RecordError(f"{file} is no text in UTF-8: {error}. Leave it out.") from None
        done += file.stat().st_size
        if progress:
            progress(done, total)


def _texts_of_lines(file: Path) -> Iterator[str]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                text = json.loads(line)["text"]
                if not isinstance(text, str):
                    raise TypeError("its text is no text")
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise RecordError(f'{file}, line {number}: no JSON object with a "text": {error}') from None
            yield text


def encoded(texts: Iterable[str], parts: Parts) -> Iterator[list[int]]:
    """Each text's ids, and the token that ends a document."""
    end = end_of_text(parts.tokenizer, parts.eos_token_ids)
    for text in texts:
        if text:
            yield [*parts.tokenizer.encode(text), end]


def end_of_text(tokenizer: Tokenizer, eos_token_ids: Sequence[int]) -> int:
    return tokenizer.special_tokens.get("<|endoftext|>", eos_token_ids[0])


# What is trained of them


class Window(NamedTuple):
    """A piece of a document."""

    shards: TokenShards
    document: int
    start: int
    stop: int

    def read(self) -> list[int]:
        return self.shards.read(self.document, self.start, self.stop)


def windows_of(recipe: PretrainRecipe, shards: Iterable[TokenShards]) -> tuple[list[Window], list[Window]]:
    """The windows to train on, and those held out. Raises UserError where there are none."""
    windows = [Window(shard, *span) for shard in shards for span in spans(shard.lengths(), recipe.window)]
    order = shuffled(len(windows), recipe.train.seed, "eval")
    num_held = round(len(windows) * recipe.eval_share)
    if num_held == len(windows):
        raise UserError("There is nothing to train on: no document has two tokens.")
    held_out, train = sorted(order[:num_held]), sorted(order[num_held:])
    return [windows[number] for number in train], [windows[number] for number in held_out]


def spans(lengths: Iterable[int], window: int) -> Iterator[tuple[int, int, int]]:
    """Documents in windows (document, start, stop). The first token of a window is the last of the one
    before, so that every token but a document's first is predicted once."""
    for document, length in enumerate(map(int, lengths)):
        for start in range(0, max(length - 1, 0), window - 1):
            yield document, start, min(start + window, length)


def to_sample(ids: Sequence[int], recipe: PretrainRecipe, parts: Parts, rng: random.Random) -> Sample:
    """A window as it stands, or as a middle."""
    return middle(ids, parts, rng) if rng.random() < recipe.fim_rate else next_tokens(ids)


def middle(ids: Sequence[int], parts: Parts, rng: random.Random) -> Sample:
    """The same text in the order prefix, suffix, middle, cut at any two characters; all of it is trained."""
    end = end_of_text(parts.tokenizer, parts.eos_token_ids)
    text = parts.tokenizer.decode(ids[:-1] if ids[-1] == end else ids)
    first, last = sorted(rng.randint(0, len(text)) for _ in range(2))
    prompt = fim.encode(parts.tokenizer, fim.FimPrompt(text[:first], text[last:]))
    return next_tokens([*prompt, *parts.tokenizer.encode(text[first:last]), end])
