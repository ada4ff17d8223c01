"""A whole model through the recorded kernels beside the same numbers in PyTorch's float64."""

import pytest
import torch
from one_call import instruction_sets, kernels
from tiny_steps import SHAPES, Steps, in_float64, reference_logits, tiny

PROMPT = [(7 * i * i + 3 * i) % 300 for i in range(150)]


def distance(got, expected) -> float:
    """The largest difference, as a share of the largest logit."""
    return float((got.double() - expected.double()).abs().max() / expected.double().abs().max())


@pytest.mark.parametrize("shape", list(SHAPES))
@pytest.mark.parametrize("kind", ["f32", "bf16", "fp8"])
def test_logits_are_those_of_float64(shape, kind):
    model = tiny(shape, kind)
    expected = reference_logits(in_float64(model), PROMPT)
    for cuts in ([150], [1, 63, 2, 84]):
        (got,) = Steps(model, kernels()).read([PROMPT], [cuts])
        assert distance(got, expected) < 1e-5


ROUNDED = [("qwen3", "q4_0", 0.1), ("biased", "q4_1", 0.1), *((shape, "q8_0", 1e-2) for shape in SHAPES)]


@pytest.mark.parametrize(("shape", "kind", "largest"), ROUNDED)
def test_logits_with_rounded_activations(shape, kind, largest):
    """How much rounding costs is each kernel's test; here nothing else may go wrong. Keys and values
    are in fp16. With 8 bits some tokens go to other experts."""
    model = tiny(shape, kind)
    (got,) = Steps(model, kernels()).read([PROMPT])
    assert distance(got, reference_logits(in_float64(model), PROMPT)) < largest


@pytest.mark.parametrize("shape", list(SHAPES))
@pytest.mark.parametrize("kind", ["f32", "bf16", "fp8", "q8_0"])
def test_every_instruction_set_computes_the_same(shape, kind):
    model = tiny(shape, kind)
    (plain,) = Steps(model, kernels("plain")).read([PROMPT])
    for isa in instruction_sets():
        (got,) = Steps(model, kernels(isa)).read([PROMPT])
        # a key that differs in its last bit may be rounded to the next number of fp16
        assert distance(got, plain) < (1e-2 if kind == "q8_0" else 1e-5), isa


def test_yarn_and_far_positions():
    model = tiny("qwen3", "f32")
    model.config = model.config.with_yarn(4.0)
    (got,) = Steps(model, kernels()).read([PROMPT])
    exact = in_float64(model)
    assert distance(got, reference_logits(exact, PROMPT)) < 1e-5


@torch.no_grad()
def test_weights_that_change_in_place_are_seen():
    model, other = tiny("moe", "f32"), tiny("moe", "f32", seed=1)
    steps = Steps(model, kernels())
    (before,) = steps.read([PROMPT])
    for weight, new in zip(model.parameters(), other.parameters(), strict=True):
        weight.copy_(new)
    (after,) = steps.read([PROMPT])
    (expected,) = Steps(other, kernels()).read([PROMPT])
    assert torch.equal(after, expected) and not torch.equal(after, before)
