"""Replayed routing: the same bits where nothing changes, a continuous ratio where experts would flip."""

import queue
from dataclasses import replace

import pytest
import torch
from tiny_models import random_model, tiny_config
from torch.utils.checkpoint import checkpoint

from lathe.engine.engine import Engine, EngineConfig
from lathe.engine.kv_cache import bytes_per_token
from lathe.errors import UserError
from lathe.kernels.cpu.library import load
from lathe.model.routing import Routing, replayed, sparse_layers
from lathe.train.batch import Sample, pack
from lathe.train.forward import exact, quick, score
from lathe.train.loss import LossConfig, balance_loss, policy_loss
from lathe.train.replay import EngineRouting, replaying, routed, with_old_policy
from lathe.train.trainer import TrainConfig, Trainer
from lathe.types import SamplingParams

MOE = dict(architecture="qwen3_moe", num_experts=8, num_experts_per_tok=3, moe_intermediate_size=32)
CONFIG = tiny_config(num_layers=3, mlp_only_layers=(1,), **MOE)
MODES = ["quick", pytest.param("exact", marks=pytest.mark.skipif(load() is None, reason="no kernels here"))]


def mode_of(name):
    return exact() if name == "exact" else quick()


def samples(*lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    made = []
    for length in lengths:
        ids = tuple(torch.randint(0, 300, (length,), generator=generator).tolist())
        mask = (False, False, *[True] * (length - 2))
        values = torch.randn(length, generator=generator).tolist()
        made.append(Sample(ids, mask, advantages=tuple(values), weights=(0.1,) * length))
    return made


def logprobs(model, batch, mode, routing=None):
    return score(model, batch, replaying(mode, model.config, routing)).logprobs_N


def moved(model, by, seed=1):
    """The same model with its routers a step further in one direction."""
    other, generator = random_model(model.config), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in other.named_parameters():
            if name.endswith("mlp.gate.weight"):
                weight += by * torch.randn(weight.shape, generator=generator)
    return other


def test_only_sparse_layers_have_routers():
    assert sparse_layers(CONFIG) == (0, 2)
    batch = pack(samples(5, 7))
    mode, routing = routed(quick(), CONFIG)
    score(random_model(CONFIG), batch, mode)
    assert routing.ids_TLk.shape == (12, 2, 3) and routing.ids_TLk.dtype == torch.int16
    assert routing.logits_LTE.shape == (2, 12, 8)
    best_LTk = routing.logits_LTE.topk(3, -1).indices
    assert torch.equal(routing.ids_TLk.long(), best_LTk.transpose(0, 1))


@pytest.mark.parametrize("name", MODES)
def test_replaying_the_policys_own_routing_changes_no_bit(name):
    model, mode = random_model(CONFIG), mode_of(name)
    own = with_old_policy(samples(9, 4, 13), model, mode, max_tokens=14, routing=True)
    batch = pack(own)
    plain, again = logprobs(model, batch, mode), logprobs(model, batch, mode, batch.routing)
    assert torch.equal(plain, again)
    if name == "exact":  # whatever they were packed with
        assert torch.equal(batch.old_N, plain)
    weights = list(model.parameters())
    for one, other in zip(
        torch.autograd.grad(plain.sum(), weights), torch.autograd.grad(again.sum(), weights), strict=True
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", MODES)
def test_replayed_experts_are_weighted_by_the_routers_own_scores(name):
    arithmetic = mode_of(name).arithmetic
    logits = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    ids, weights = arithmetic.route(logits, 3, True)
    told = torch.tensor([[7, 0, 3], [1, 2, 3], [-1, -1, -1], ids[3].tolist(), [4, 5, 6], [0, 1, 2]])
    chosen, given = replayed(logits, ids, weights, told.to(ids), True)
    wanted = torch.where(told < 0, ids, told)
    assert torch.equal(chosen.long(), wanted.long())
    expected = logits.double().softmax(-1).gather(-1, wanted.long())
    torch.testing.assert_close(
        given.double(), expected / expected.sum(-1, keepdim=True), atol=1e-6, rtol=1e-5
    )
    assert torch.equal(given[2:4], weights[2:4])  # nothing told, and told the same: to the bit


def flip(model, batch, mode):
    """Two steps of the routers, a millionth apart, between which a token changes its expert."""

    def where(by):
        watching, routing = routed(mode, CONFIG)
        score(moved(model, by), batch, watching)
        return routing.ids_TLk.sort(-1).values  # the set counts, not its order

    low, high = 0.0, 0.1
    before = where(low)
    assert not torch.equal(before, where(high))
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if torch.equal(where(middle), before) else (low, middle)
    return low, high


@pytest.mark.parametrize("name", MODES)
def test_where_experts_flip_a_replayed_ratio_goes_on_continuously(name):
    model, mode = random_model(CONFIG), mode_of(name)
    old = pack(with_old_policy(samples(9, 4, 13), model, mode, max_tokens=99, routing=True))
    low, high = flip(model, old, mode)

    def ratios(by, routing):
        with torch.no_grad():
            return (logprobs(moved(model, by), old, mode, routing) - old.old_N).exp()

    jump = (ratios(high, None) - ratios(low, None)).abs().max()
    replayed_jump = (ratios(high, old.routing) - ratios(low, old.routing)).abs().max()
    assert jump > 1e-3  # a step of a millionth, and a token's ratio jumps
    assert replayed_jump < 2e-5
    # and further on it is as smooth: halving the step halves the change
    whole, half = (ratios(by, old.routing) - 1 for by in (0.002, 0.001))
    assert (whole - 2 * half).abs().max() < 0.1 * whole.abs().max()


@pytest.mark.parametrize("name", MODES)
def test_the_router_keeps_its_gradient(name):
    """Against central differences along a random direction, experts held."""
    model, mode = random_model(CONFIG), mode_of(name)
    old = pack(with_old_policy(samples(9, 4, 13), moved(model, 0.3), mode, max_tokens=99, routing=True))
    weighting = torch.linspace(-1, 1, len(old.rows_N))
    gates = {name: weight for name, weight in model.named_parameters() if name.endswith("mlp.gate.weight")}
    grads = torch.autograd.grad(logprobs(model, old, mode, old.routing) @ weighting, list(gates.values()))
    generator = torch.Generator().manual_seed(1)  # as `moved` draws
    slope = sum((grad * torch.randn(grad.shape, generator=generator)).sum() for grad in grads)
    step = 1e-2

    def value(by):
        with torch.no_grad():
            return float(logprobs(moved(model, by), old, mode, old.routing).double() @ weighting.double())

    measured = (value(step) - value(-step)) / (2 * step)
    assert float(slope) == pytest.approx(measured, rel=2e-2) and abs(measured) > 0.1


def test_layers_that_are_computed_again_replay_their_own_routing():
    """Activation checkpointing runs layers backwards a second time."""
    model = random_model(CONFIG)
    batch = pack(with_old_policy(samples(9, 4), moved(model, 0.3), quick(), max_tokens=99, routing=True))

    def gradients(wrap):
        mode, routing = routed(quick(), CONFIG, batch.routing)
        forwards = [layer.forward for layer in model.layers]
        if wrap:
            for layer, forward in zip(model.layers, forwards, strict=True):
                layer.forward = lambda *a, forward=forward: checkpoint(forward, *a, use_reentrant=False)
        try:
            found = score(model, batch, mode).logprobs_N.sum() + balance_loss(
                routing.logits_LTE, routing.ids_TLk.transpose(0, 1)
            )
            return torch.autograd.grad(found, list(model.parameters()))
        finally:
            for layer, forward in zip(model.layers, forwards, strict=True):
                layer.forward = forward

    for one, other in zip(gradients(False), gradients(True), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("routing", [False, True])
def test_samples_get_their_old_logprobs_however_they_are_cut(routing):
    model, given = random_model(CONFIG), samples(9, 4, 13, 6)
    whole = with_old_policy(given, model, quick(), max_tokens=99, routing=routing)
    cut = with_old_policy(given, model, quick(), max_tokens=13, routing=routing)
    for one, other, before in zip(whole, cut, given, strict=True):
        assert one.old_logprobs == pytest.approx(other.old_logprobs, abs=1e-4)
        assert [each != 0.0 for each in one.old_logprobs] == list(before.loss_mask)
        assert (one.routing is not None) == routing
        assert replace(one, old_logprobs=(), routing=None) == before
        if routing:
            assert torch.equal(one.routing, other.routing) and one.routing.shape == (
                len(before.token_ids),
                2,
                3,
            )
    dense = random_model(tiny_config())
    assert all(each.routing is None for each in with_old_policy(given, dense, quick(), 99, routing=routing))


def test_the_trainer_replays_what_a_batch_brings():
    """The second of two updates sees the ratios of held experts."""
    model = random_model(CONFIG)
    trainer = Trainer(model, TrainConfig(lr=3e-2))
    old = with_old_policy(samples(9, 4, 13), model, trainer.mode, max_tokens=99, routing=True)
    config = LossConfig("grpo")
    trainer.step(old, lambda logprobs_N, batch: policy_loss(logprobs_N, batch.old_N, batch, config))
    batch = pack(old)
    held = logprobs(model, batch, quick(), batch.routing)
    assert torch.equal(trainer.logprobs(batch), held)
    assert not torch.equal(logprobs(model, batch, quick()), held)  # by now, some tokens would go elsewhere


def test_a_router_without_its_layers_attention_is_an_error():
    routing = Routing(quick().arithmetic, (0, 2))
    with pytest.raises(KeyError):
        routing.route(torch.zeros(1, 8), 3, True)


# R3: the engine's routing


@pytest.fixture
def serve():
    """An engine of a model, in PyTorch unless told otherwise, and a function that samples from it."""
    engines = []

    def start(model, **settings):
        memory = bytes_per_token(model.config, torch.float32) * 4096
        config = EngineConfig(kv_memory_bytes=memory, **(dict(compiled=False) | settings))
        engines.append(Engine(model, config=config))
        return engines[-1]

    yield start
    for engine in engines:
        engine.close()


def reply(engine, prompt, **sampling):
    reports: queue.SimpleQueue = queue.SimpleQueue()
    engine.submit(tuple(prompt), SamplingParams(**(dict(max_tokens=12, logprobs=0) | sampling)), reports.put)
    tokens, is_done = [], False
    while not is_done:
        report = reports.get(timeout=60)
        assert report.error is None, report.error
        tokens.append(report.token)
        is_done = report.finish_reason is not None
    ids = (*prompt, *(token.token_id for token in tokens))
    none = len(prompt)
    logprobs = (0.0,) * none + tuple(token.logprob for token in tokens)
    return Sample(ids, tuple(place >= none for place in range(len(ids))), logprobs)


def own_routing(model, sample):
    (own,) = with_old_policy([replace(sample, routing=None)], model, quick(), 999, routing=True)
    return own.routing


def test_the_engines_routing_is_found_for_every_token_it_has_read(serve):
    """Prompts in pieces, beginnings from the cache, guessed words that were wrong: all but the last token."""
    model = random_model(CONFIG)
    engine = serve(model, prefill_chunk=8)
    seen = EngineRouting(engine)
    prompt = [5, 6, 7, 8] * 12
    first = reply(engine, prompt, seed=1)
    second = reply(engine, [*first.token_ids, 9, 9, 4], seed=2)
    greedy = reply(engine, [*prompt, *prompt], temperature=0.0, max_tokens=30)
    found, share = seen.find([first, second, greedy])
    for sample in found:
        assert torch.equal(sample.routing[:-1], own_routing(model, sample)[:-1])
    # the first reply's last token was read as part of the second prompt
    assert (found[0].routing >= 0).all() and (found[1].routing[-1] == -1).all()
    assert share == 1 - 2 / sum(len(sample.token_ids) for sample in found)
    seen.forget()
    assert seen.find([first])[0][0].routing is None


def test_a_trainer_of_other_numbers_follows_the_engines_routing(serve):
    """An engine in bf16: some tokens go elsewhere than in fp32, until its routing is replayed."""
    model = random_model(CONFIG, seed=3)
    engine = serve(random_model(CONFIG, seed=3).bfloat16())
    seen = EngineRouting(engine)
    replies = [reply(engine, range(5 + seed, 60 + seed), seed=seed, max_tokens=40) for seed in range(4)]
    found, _ = seen.find(replies)
    differs = [
        (own_routing(model, sample) != sample.routing).flatten(1).any(1)[:-1].sum().item() for sample in found
    ]
    assert sum(differs) > 0
    batch = pack(found)
    mode, routing = routed(quick(), CONFIG, batch.routing)
    replayed_N = score(model, batch, mode).logprobs_N
    told = batch.routing >= 0
    assert torch.equal(routing.ids_TLk[told], batch.routing[told])
    plain_N = logprobs(model, batch, quick())
    mismatch, before = ((each - batch.logprobs_N).square().mean() for each in (replayed_N, plain_N))
    assert mismatch < before / 4


@pytest.mark.skipif(load() is None, reason="no compiled kernels here")
def test_with_the_compiled_kernels_the_trainer_routes_as_the_engine_did(serve):
    """R3 would change nothing: the probabilities are the engine's to the bit, replayed or not."""
    model = random_model(CONFIG)
    engine = serve(model, compiled=True)
    replies = [reply(engine, range(5 + seed, 30 + seed), seed=seed, deterministic=True) for seed in range(3)]
    own = with_old_policy(replies, model, exact(), max_tokens=50, routing=True)
    batch = pack(own)
    assert torch.equal(batch.old_N, batch.logprobs_N)
    assert torch.equal(logprobs(model, batch, exact(), batch.routing), batch.logprobs_N)
    with pytest.raises(UserError, match="R3 is not needed with the compiled kernels"):
        EngineRouting(engine)
