"""Experts that are trained: the plain function, and its gradients, in float64."""

import pytest
import torch
from torch.autograd import gradcheck

from lathe.kernels.expert_gradients import trained_experts
from lathe.kernels.experts import grouped_experts

E, D, I, K = 6, 10, 7, 3


def layer(num_tokens: int, num_chosen: int = K, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    ids = torch.rand(num_tokens, E, generator=generator).topk(num_chosen).indices
    return [random(num_tokens, D), random(E, 2 * I, D), random(E, D, I), ids, random(num_tokens, num_chosen)]


@pytest.mark.parametrize("num_tokens", [0, 1, 2, 40])
def test_it_is_the_plain_function(num_tokens):
    inputs = layer(num_tokens)
    torch.testing.assert_close(trained_experts(*inputs), grouped_experts(*inputs), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("num_chosen", [1, K], ids=["one of six", "three of six"])
def test_its_gradients_are_those_of_differences(num_chosen):
    assert gradcheck(trained_experts, layer(4, num_chosen), fast_mode=True)


def test_an_expert_that_nobody_chose_has_no_gradient():
    inputs = layer(2, 1)
    trained_experts(*inputs).sum().backward()
    unused = sorted(set(range(E)) - set(inputs[3].flatten().tolist()))
    assert len(unused) >= 4
    assert not inputs[1].grad[unused].any()
    assert not inputs[2].grad[unused].any()


def test_only_what_needs_a_gradient_gets_one():
    x, gate_up, down, ids, weights = layer(5)
    trained_experts(x, gate_up.detach(), down.detach(), ids, weights.detach()).sum().backward()
    assert x.grad.any()
    assert gate_up.grad is down.grad is weights.grad is None
