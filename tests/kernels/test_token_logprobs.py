"""Log-probabilities of tokens and entropies, held against PyTorch's distributions."""

import torch

from lathe.kernels.token_logprobs import token_logprobs


def test_they_are_those_of_the_distribution():
    logits_NV = torch.randn(7, 50) * 4
    ids_N = torch.randint(0, 50, (7,))
    logprobs_N, entropy_N = token_logprobs(logits_NV, ids_N)
    right = torch.distributions.Categorical(logits=logits_NV)
    torch.testing.assert_close(logprobs_N, right.log_prob(ids_N))
    torch.testing.assert_close(entropy_N, right.entropy())


def test_gradients_are_those_of_log_softmax():
    logits_NV, ids_N, grad_N = torch.randn(5, 9), torch.randint(0, 9, (5,)), torch.randn(5)
    found, right = (logits_NV.clone().requires_grad_() for _ in range(2))
    token_logprobs(found, ids_N).logprobs_N.backward(grad_N)
    right.log_softmax(-1).gather(-1, ids_N[:, None])[:, 0].backward(grad_N)
    torch.testing.assert_close(found.grad, right.grad)
