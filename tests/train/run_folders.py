"""Runs for tests of what draws them: made by the real RunLog, with attempts of a real tokenizer's ids."""

from dataclasses import dataclass, field
from pathlib import Path

from lathe.log import RunLog
from lathe.testing import tiny_tokenizer
from lathe.types import Completion, Message, Rollout, SamplingParams, TokenLogprob, Trajectory, Verdict

TOKENIZER = tiny_tokenizer()
HOSTILE = "</script><img src=x onerror=document.title='owned'> \u202egnp.exe \x1b[2J 日本 🙂\n"


@dataclass(frozen=True)
class Train:
    lr: float = 3e-4


@dataclass(frozen=True)
class Recipe:
    seed: int = 0
    loss: str = "gspo"
    train: Train = field(default_factory=Train)


def attempt(reply: str = "Done.\n", reward: float | None = 1.0, task: str = "t", **fields) -> Rollout:
    prompt = tuple(TOKENIZER.encode("<|im_start|>user\nDo it.<|im_end|>\n", allow_special=True))
    ids = tuple(TOKENIZER.encode(reply))
    logprobs = tuple(TokenLogprob(token_id, -0.01 * number) for number, token_id in enumerate(ids))
    start = Trajectory((Message("user", "Do it."),))
    said = Completion(Message("assistant", reply), prompt, ids, logprobs, "stop")
    verdict = Verdict(reason="it ran out of memory") if reward is None else Verdict(reward, {"passed": 3})
    given = {"stop_reason": "stop", "verdict": verdict, "task": task, "model": "tiny"} | fields
    return Rollout((start.extend(said, SamplingParams()),), **given)


def make_run(folder: Path, recipe: Recipe = Recipe(), num_steps: int = 12, attempts=(), **metrics) -> Path:
    """A run whose reward rises from 0 to 1. `metrics` are functions of the step."""
    with RunLog(folder, recipe, say=lambda line: None) as log:
        for step in range(num_steps):
            reward = step / max(num_steps - 1, 1)
            log.step(step, reward=reward, seconds=2.0, **{name: of(step) for name, of in metrics.items()})
        if attempts:
            log.rollouts(num_steps - 1, attempts)
    return folder
