"""The trainer: its log-probabilities are the engine's, and a step is the same step however it is cut."""

import queue

import pytest
import torch
from tiny_models import random_model, tiny_config

from lathe.engine.engine import Engine, EngineConfig
from lathe.engine.kv_cache import bytes_per_token
from lathe.kernels.cpu.library import load
from lathe.train.batch import Batch, Sample, pack
from lathe.train.trainer import TrainConfig, Trainer
from lathe.types import SamplingParams

MOE = dict(architecture="qwen3_moe", num_experts=8, num_experts_per_tok=3, moe_intermediate_size=32)
SHAPES = {"dense": {}, "moe": MOE}
needs_kernels = pytest.mark.skipif(load() is None, reason="no compiled kernels here")


def nll(logprobs_N, batch: Batch):
    return -(batch.weights_N * logprobs_N).sum(), {"nll": -logprobs_N.detach().sum()}


def sampled(engine: Engine, prompt: tuple[int, ...], seed: int) -> Sample:
    """A reply of the engine, as a sample."""
    reports: queue.SimpleQueue = queue.SimpleQueue()
    sampling = SamplingParams(
        max_tokens=9 + seed % 7, seed=seed, deterministic=True, temperature=0.7, logprobs=0
    )
    engine.submit(prompt, sampling, reports.put)
    tokens = []
    while True:
        report = reports.get(timeout=60)
        assert report.error is None, report.error
        tokens.append(report.token)
        if report.finish_reason:
            break
    none, count = len(prompt), len(tokens)
    return Sample(
        prompt + tuple(token.token_id for token in tokens),
        (False,) * none + (True,) * count,
        (0.0,) * none + tuple(token.logprob for token in tokens),
        (0.0,) * none + (1.0,) * count,
        (0.0,) * none + (0.01,) * count,
    )


def random_samples(count: int, seed: int = 0) -> list[Sample]:
    generator = torch.Generator().manual_seed(seed)
    samples = []
    for _ in range(count):
        length = int(torch.randint(3, 30, (), generator=generator))
        ids = torch.randint(0, 300, (length,), generator=generator).tolist()
        mask = (False, *(torch.rand(length - 1, generator=generator) < 0.7).tolist())
        samples.append(Sample(tuple(ids), mask, weights=tuple(0.01 * trained for trained in mask)))
    return samples


@needs_kernels
@pytest.mark.parametrize("shape", list(SHAPES))
def test_after_updates_the_trainers_logprobs_are_the_engines_bit_for_bit(shape):
    model = random_model(tiny_config(**SHAPES[shape]))
    trainer = Trainer(model, TrainConfig(lr=1e-2, deterministic=True, max_tokens=70))
    memory = bytes_per_token(model.config, torch.float32) * 4096
    engine = Engine(model, config=EngineConfig(kv_memory_bytes=memory))
    try:
        for update in range(3):
            before = model.norm.weight.clone()
            samples = [
                sampled(engine, tuple(range(5 + n, 9 + 3 * n)), seed=n + 10 * update) for n in range(5)
            ]
            packed = pack(samples)
            assert torch.equal(trainer.logprobs(packed), packed.logprobs_N)
            alone = [trainer.logprobs(pack([sample])) for sample in samples]
            assert torch.equal(torch.cat(alone), packed.logprobs_N)
            stats = trainer.step(samples, nll)
            assert stats["largest_mismatch"] == 0.0
            assert not torch.equal(before, model.norm.weight)
            engine.update_weights({})
    finally:
        engine.close()


@pytest.mark.parametrize("deterministic", [False, pytest.param(True, marks=needs_kernels)])
def test_a_step_is_the_same_however_it_is_cut(deterministic):
    seen = []
    for max_tokens in (10_000, 40):
        model = random_model(tiny_config(**MOE))
        # a plain step, so that a gradient near 0 is not blown up to the learning rate
        trainer = Trainer(
            model, TrainConfig(max_tokens=max_tokens, deterministic=deterministic, clip_norm=None)
        )
        trainer.optimizers = [torch.optim.SGD(model.parameters(), lr=1.0)]
        stats = trainer.step(random_samples(8), nll)
        seen.append((stats, model.state_dict()))
    (stats, weights), (other_stats, other_weights) = seen
    for name in ("loss", "entropy", "grad_norm", "nll", "num_trained", "num_tokens"):
        assert stats[name] == pytest.approx(other_stats[name], rel=1e-4), name
    for name, weight in weights.items():
        torch.testing.assert_close(weight, other_weights[name], rtol=1e-4, atol=1e-6, msg=name)


@needs_kernels
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("num_threads", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_same_samples_give_the_same_weights_bit_for_bit(optimizer, num_threads):
    """Two threads could add up in any order. (On a busy machine they wait for one another: minutes.)"""
    threads = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        weights = []
        for _ in range(2):
            model = random_model(tiny_config(**MOE))
            config = TrainConfig(lr=1e-2, optimizer=optimizer, deterministic=True, max_tokens=64)
            trainer = Trainer(model, config)
            for step in range(3):
                trainer.step(random_samples(8, seed=step), nll)
            weights.append(model.state_dict())
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())


def test_a_gradient_that_is_not_finite_updates_nothing():
    model = random_model(tiny_config())
    trainer = Trainer(model, TrainConfig(lr=1e-2))
    before = {name: weight.clone() for name, weight in model.state_dict().items()}

    def broken(logprobs_N, batch):
        return logprobs_N.sum() * float("inf"), {}

    stats = trainer.step(random_samples(3), broken)
    assert stats["skipped"] == 1.0
    assert trainer.num_skipped == 1
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert trainer.step(random_samples(3), nll)["skipped"] == 0.0


def test_large_vocabularies_go_through_the_head_in_pieces(monkeypatch):
    found = []
    for most in (1 << 25, 1000):
        monkeypatch.setattr("lathe.train.forward.MOST_LOGITS", most)
        model = random_model(tiny_config())
        trainer = Trainer(model, TrainConfig())
        scores = trainer.score(pack(random_samples(4)))
        scores.logprobs_N.sum().backward()
        found.append((*scores, *(weight.grad for weight in model.parameters())))
    for whole, pieces in zip(*found, strict=True):
        torch.testing.assert_close(whole, pieces)
