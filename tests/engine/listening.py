"""An engine's replies, collected by id, and what they should be."""

import queue
import random

import torch

from lathe.engine.engine import EngineConfig
from lathe.engine.kv_cache import bytes_per_token
from lathe.kernels.attention import causal_attention
from lathe.kernels.experts import grouped_experts
from lathe.types import SamplingParams

GREEDY = SamplingParams(temperature=0.0, max_tokens=24)


def config(model, *, tokens=4096, **options) -> EngineConfig:
    memory = bytes_per_token(model.config, torch.float32) * tokens
    return EngineConfig(kv_memory_bytes=memory, **options)


class Listener:
    """Collects what the engine reports of one reply."""

    def __init__(self, engine, prompt, sampling=GREEDY):
        self.reports: queue.SimpleQueue = queue.SimpleQueue()
        self.sequence = engine.submit(tuple(prompt), sampling, self.reports.put)
        self.token_ids: list[int] = []
        self.logprobs: list[float] = []
        self.versions: list[int] = []
        self.first = None
        self.finish_reason = None

    def wait(self) -> list[int]:
        while self.finish_reason is None:
            report = self.reports.get(timeout=30)
            if report.error is not None:
                raise report.error
            if report.token is not None:
                self.token_ids.append(report.token.token_id)
                self.logprobs.append(report.token.logprob)
                self.versions.append(report.weights_version)
            self.first = self.first or report
            self.finish_reason = report.finish_reason
        return self.token_ids


@torch.inference_mode()
def greedy_reference(model, prompt, count) -> list[int]:
    """No cache, no batch: the whole text through the model for every token."""
    ids = list(prompt)
    for _ in range(count):
        hidden = model(
            torch.tensor(ids),
            torch.arange(len(ids)),
            lambda layer, q, k, v: causal_attention(q, k, v, [len(q)]),
            grouped_experts,
        )
        ids.append(int(model.logits(hidden[-1:]).argmax()))
    return ids[len(prompt) :]


def prompts(count, seed=0, longest=90) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(300) for _ in range(rng.randint(1, longest))] for _ in range(count)]
