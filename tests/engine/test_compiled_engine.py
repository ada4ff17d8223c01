"""The engine with compiled kernels, where they compute, and without them."""

import pytest
import torch
from listening import GREEDY, Listener, config, greedy_reference
from tiny_models import random_model, tiny_config

from lathe.engine import engine as engine_module
from lathe.engine.compiled import CompiledRunner, can_run
from lathe.engine.engine import Engine
from lathe.engine.runner import Runner
from lathe.kernels.cpu import library
from lathe.types import SamplingParams

needs_kernels = pytest.mark.skipif(library.load() is None, reason=str(library.why_not()))
MOE = dict(architecture="qwen3_moe", num_experts=8, num_experts_per_tok=3, moe_intermediate_size=32)
PROMPT = [1, 2, 3, 250, 7]


def reply(model, **options) -> tuple[type, list[int]]:
    """Which runner the engine took, and what it says."""
    engine = Engine(model, config=config(model, **options))
    try:
        return type(engine.runner), Listener(engine, PROMPT).wait()
    finally:
        engine.close()


@needs_kernels
@pytest.mark.parametrize("changes", [{}, MOE], ids=["dense", "moe"])
def test_compiled_or_not_the_reply_is_the_models(changes):
    model = random_model(tiny_config(**changes))
    expected = greedy_reference(model, PROMPT, GREEDY.max_tokens)
    assert reply(model) == (CompiledRunner, expected)
    assert reply(model, compiled=False) == (Runner, expected)


@pytest.mark.parametrize(
    ("changes", "dtype"),
    [({}, torch.float16), ({}, torch.float64), (dict(head_dim=12), torch.float32)],
    ids=["float16", "float64", "heads of 12"],
)
def test_what_the_kernels_do_not_compute_goes_through_pytorch(changes, dtype):
    model = random_model(tiny_config(**changes)).to(dtype)
    assert not can_run(model)
    for compiled in (True, False):
        runner, said = reply(model, compiled=compiled)
        assert runner is Runner
        assert said == greedy_reference(model, PROMPT, GREEDY.max_tokens)


def test_without_kernels_pytorch_computes(monkeypatch):
    monkeypatch.setattr(engine_module, "cpu_kernels", lambda: None)
    model = random_model(tiny_config())
    assert reply(model) == (Runner, greedy_reference(model, PROMPT, GREEDY.max_tokens))


@needs_kernels
def test_a_bf16_model_speaks_with_new_weights():
    """Its norms are held in float32 beside it, and its matrices where they lie: both are taken anew."""
    model = random_model(tiny_config()).bfloat16()
    other = random_model(tiny_config(), seed=1).bfloat16()
    with torch.no_grad():
        for name, weight in other.named_parameters():
            if "norm" in name:
                weight.mul_(1.5)
    expected = reply(other)[1]
    engine = Engine(model, config=config(model))
    try:
        assert isinstance(engine.runner, CompiledRunner)
        assert Listener(engine, PROMPT).wait() != expected
        assert engine.update_weights(other.state_dict()) == 1
        assert Listener(engine, PROMPT).wait() == expected
    finally:
        engine.close()


@needs_kernels
def test_a_step_larger_than_all_before_is_recorded_anew():
    """In the middle of a reply, whose keys and values stay."""
    model = random_model(tiny_config())
    engine = Engine(model, config=config(model))
    try:
        sampling = SamplingParams(temperature=0.0, max_tokens=200)
        first = Listener(engine, PROMPT, sampling)
        first.reports.get(timeout=30)
        long_prompt = [(7 * i) % 300 for i in range(300)]
        second = Listener(engine, long_prompt)
        assert first.wait() == greedy_reference(model, PROMPT, 200)[1:]
        assert second.wait() == greedy_reference(model, long_prompt, GREEDY.max_tokens)
    finally:
        engine.close()
