"""The trainer's forward in compiled kernels: PyTorch's numbers within rounding, and PyTorch's gradients."""

import pytest
import torch
from tiny_models import random_model, tiny_config

from lathe.kernels.attention import causal_attention
from lathe.kernels.cpu.exact import Exact
from lathe.kernels.cpu.library import load
from lathe.kernels.experts import grouped_experts
from lathe.model.linear import QUICK

pytestmark = pytest.mark.skipif(load() is None, reason="no compiled kernels here")

SHAPES = {
    "qwen3": {},
    "moe": dict(architecture="qwen3_moe", num_experts=8, num_experts_per_tok=3, moe_intermediate_size=32),
    "tied, biased": dict(
        architecture="qwen2", qk_norm=False, attention_bias=True, tie_word_embeddings=True, hidden_size=50
    ),
}
LENGTHS = [5, 17, 2]


def losses(model, attend, run_experts, arithmetic, logprobs) -> torch.Tensor:
    """Each packed token's log-probability of the next id."""
    ids = torch.arange(sum(LENGTHS) + 1) * 7 % model.config.vocab_size
    positions = torch.tensor([place for length in LENGTHS for place in range(length)])
    hidden = model(ids[:-1], positions, attend, run_experts, arithmetic)
    return logprobs(model.logits(hidden, arithmetic), ids[1:])


def plain_logprobs(logits_TV: torch.Tensor, ids_T: torch.Tensor) -> torch.Tensor:
    return logits_TV.log_softmax(-1).gather(-1, ids_T[:, None])[:, 0]


@pytest.mark.parametrize("shape", list(SHAPES))
def test_values_and_gradients_are_pytorchs(shape):
    model = random_model(tiny_config(**SHAPES[shape]))
    exact = Exact(load())
    found = losses(model, exact.attend(LENGTHS), exact.run_experts, exact, exact.logprobs)
    wanted = losses(
        model, lambda _, q, k, v: causal_attention(q, k, v, LENGTHS), grouped_experts, QUICK, plain_logprobs
    )
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=2e-5)
    weights = dict(model.named_parameters())
    weighting = torch.linspace(-1, 1, len(found))
    grads = torch.autograd.grad(found @ weighting, list(weights.values()))
    expected = torch.autograd.grad(wanted @ weighting, list(weights.values()))
    for name, grad, right in zip(weights, grads, expected, strict=True):
        torch.testing.assert_close(
            grad, right, rtol=1e-3, atol=1e-4 * float(right.abs().max()) + 1e-7, msg=name
        )


def test_only_what_needs_a_gradient_gets_one():
    exact = Exact(load())
    x, weight = torch.randn(3, 40), torch.randn(5, 40, requires_grad=True)
    exact.linear(x, weight).sum().backward()
    torch.testing.assert_close(weight.grad, x.sum(0).expand(5, 40))
    assert x.grad is None
