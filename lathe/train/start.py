"""The policy that reinforcement begins with: a checkpoint, or a small one made here by imitation.

What is made: a vocabulary of the family's own words, a Qwen3-MoE with random weights, pretrained on
commented programs and fine-tuned on requests with their noisy answers. The result is a folder that loads like
any other.
"""

from __future__ import annotations

import json
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tokenizers import Tokenizer as Trained
from tokenizers import decoders, models, pre_tokenizers, trainers

from lathe.model.config import ModelConfig
from lathe.model.transformer import Transformer
from lathe.text.chat_template import ChatTemplate
from lathe.text.tokenizer import Tokenizer
from lathe.train.batch import Sample, next_tokens, weighed
from lathe.train.families.micro_python import MicroPython, Problem
from lathe.train.loss import sft_loss
from lathe.train.parts import export, new_parts
from lathe.train.rl_recipe import ShapeConfig, StartConfig, WarmConfig
from lathe.train.trainer import TrainConfig, Trainer
from lathe.types import Message

MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
SAY_EVERY = 50  # updates

Say = Callable[[str], None]


def make_start(family: MicroPython, config: StartConfig, seed: int, folder: Path, say: Say) -> None:
    """Makes the folder, whole or not at all; one that is there is left as it is."""
    if folder.exists():
        return
    rng = random.Random(f"{seed} start")
    corpus = family.problems("pretrain", config.pretrain.num_samples)
    imitated = family.problems("sft", config.sft.num_samples)
    programs = [commented(problem, family.demonstration(problem, rng)) for problem in corpus]
    tokenizer = vocabulary_of(programs, config.shape.vocab_size)
    parts = new_parts(shape_of(config.shape, tokenizer), tokenizer, seed=seed)
    texts = [whole_text(program, tokenizer) for program in programs]
    answers = [
        answered(problem, family.demonstration(problem, rng), tokenizer, parts.template)
        for problem in imitated
    ]
    say(f"{sum(weight.numel() for weight in parts.model.parameters()) / 1e6:.1f}M parameters, random")
    imitate(parts.model, texts, config.pretrain, rng, say, "pretrain")
    imitate(parts.model, answers, config.sft, rng, say, "sft")
    made = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    try:
        export(parts, made)
        made.rename(folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def vocabulary_of(texts: Sequence[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE of these texts, with the chat format's marks behind it."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trained = Trained(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    size = vocab_size - len(MARKS)
    trained.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    )
    trained.add_special_tokens(list(MARKS))
    with tempfile.TemporaryDirectory() as folder:
        trained.save(str(Path(folder) / "tokenizer.json"))
        (Path(folder) / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
        return Tokenizer.from_folder(folder)


def shape_of(shape: ShapeConfig, tokenizer: Tokenizer) -> ModelConfig:
    return ModelConfig(
        architecture="qwen3_moe",
        vocab_size=tokenizer.vocab_size,
        hidden_size=shape.hidden_size,
        num_layers=shape.num_layers,
        num_heads=shape.num_heads,
        num_kv_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        intermediate_size=shape.moe_intermediate_size,
        max_position_embeddings=shape.max_context,
        num_experts=shape.num_experts,
        num_experts_per_tok=shape.num_experts_per_tok,
        moe_intermediate_size=shape.moe_intermediate_size,
        tie_word_embeddings=True,
        dtype="float32",
    )


def commented(problem: Problem, code: str) -> str:
    """A program whose lines say what they are for."""
    head, *lines = code.splitlines()
    pairs = [f"    # {step.ask}\n{line}" for step, line in zip(problem.steps, lines, strict=True)]
    return "\n".join([head, *pairs, ""])


def whole_text(text: str, tokenizer: Tokenizer) -> Sample:
    end = tokenizer.special_tokens["<|endoftext|>"]
    return next_tokens([end, *tokenizer.encode(text), end])


def answered(problem: Problem, code: str, tokenizer: Tokenizer, template: ChatTemplate) -> Sample:
    """A conversation of which the answer is trained."""
    prompt = template.encode(tokenizer, [Message("user", problem.prompt)])
    reply = [*tokenizer.encode(code), tokenizer.special_tokens["<|im_end|>"]]
    return Sample((*prompt, *reply), (*[False] * len(prompt), *[True] * len(reply)))


def imitate(
    model: Transformer, samples: Sequence[Sample], config: WarmConfig, rng: random.Random, say: Say, name: str
) -> None:
    """Cross entropy over all samples, in a new order each time."""
    batches = [batch for _ in range(config.epochs) for batch in shuffled(samples, config.batch_size, rng)]
    trainer = Trainer(
        model,
        TrainConfig(
            lr=config.lr,
            optimizer="muon",
            warmup_steps=config.warmup_steps,
            decay="cosine",
            total_steps=len(batches),
            min_lr=config.min_lr,
            weight_decay=0.01,
        ),
    )
    started, num_tokens, loss = time.monotonic(), 0.0, 0.0
    for number, batch in enumerate(batches, 1):
        stats = trainer.step(batch, sft_loss)
        num_tokens, loss = num_tokens + stats["num_tokens"], loss + stats["loss"]
        if number % SAY_EVERY == 0 or number == len(batches):
            seconds = time.monotonic() - started
            mean = loss / (number % SAY_EVERY or SAY_EVERY)
            say(
                f"{name} {number}/{len(batches)}  loss {mean:.4f}  {num_tokens / seconds / 1e3:.1f}k tok/s  "
                f"{seconds:.0f} s"
            )
            loss = 0.0


def shuffled(samples: Sequence[Sample], size: int, rng: random.Random) -> Iterator[list[Sample]]:
    """Whole batches, each token of which weighs the same."""
    order = rng.sample(samples, len(samples))
    for first in range(0, len(order) - size + 1, size):
        yield weighed(order[first : first + size])
