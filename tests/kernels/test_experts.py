import pytest
import torch
import torch.nn.functional as F

from lathe.kernels.experts import grouped_experts

E, D, I, K = 6, 16, 12, 3


def random_layer(num_tokens, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    expert_ids = torch.stack([torch.randperm(E, generator=generator)[:K] for _ in range(num_tokens)])
    weights = random(num_tokens, K).softmax(-1)
    return random(num_tokens, D), random(E, 2 * I, D), random(E, D, I), expert_ids, weights


def token_by_token(x_TD, gate_up_EFD, down_EDI, expert_ids_TK, weights_TK):
    out_TD = torch.zeros_like(x_TD)
    for token, x_D in enumerate(x_TD):
        for expert, weight in zip(expert_ids_TK[token].tolist(), weights_TK[token], strict=True):
            gate, up = gate_up_EFD[expert, :I] @ x_D, gate_up_EFD[expert, I:] @ x_D
            out_TD[token] += weight * (down_EDI[expert] @ (F.silu(gate) * up))
    return out_TD


@pytest.mark.parametrize("num_tokens", [1, 2, 50])
def test_it_is_the_plain_sum_over_chosen_experts(num_tokens):
    layer = random_layer(num_tokens)
    torch.testing.assert_close(grouped_experts(*layer), token_by_token(*layer), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("chosen", [[0], [5], [2, 4]], ids=str)
def test_experts_that_nobody_chose(chosen):
    x, gate_up, down, _, _ = random_layer(7)
    expert_ids = torch.tensor([chosen] * 7)
    weights = torch.full((7, len(chosen)), 1 / len(chosen), dtype=torch.float64)
    layer = (x, gate_up, down, expert_ids, weights)
    torch.testing.assert_close(grouped_experts(*layer), token_by_token(*layer), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("num_tokens", [1, 3, 20])
def test_few_rows_of_large_matrices(num_tokens):
    """On a CPU an expert with up to four rows multiplies the other way round."""
    x, gate_up, down = torch.randn(num_tokens, 256), torch.randn(4, 640, 256), torch.randn(4, 256, 320)
    expert_ids = torch.arange(2 * num_tokens).view(-1, 2) % 4
    layer = (x, gate_up, down, expert_ids, torch.rand(num_tokens, 2))
    exact = grouped_experts(*(part.double() if part.is_floating_point() else part for part in layer))
    assert (grouped_experts(*layer) - exact).abs().max() < 1e-5 * exact.abs().max()


def test_no_tokens():
    x, gate_up, down, expert_ids, weights = random_layer(1)
    assert grouped_experts(x[:0], gate_up, down, expert_ids[:0], weights[:0]).shape == (0, D)


def test_gradients_of_everything():
    x, gate_up, down, expert_ids, weights = random_layer(5)
    inputs = [tensor.requires_grad_() for tensor in (x, gate_up, down, weights)]

    def run(x, gate_up, down, weights):
        return grouped_experts(x, gate_up, down, expert_ids, weights)

    # Fast: along random directions instead of all 3,400.
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)


def test_an_expert_that_nobody_chose_has_a_gradient_of_zeros():
    x, gate_up, down, _, weights = random_layer(3)
    gate_up.requires_grad_()
    grouped_experts(x, gate_up, down, torch.tensor([[0, 1, 2]] * 3), weights).sum().backward()
    assert gate_up.grad[:3].abs().min() > 0 and not gate_up.grad[3:].any()


def test_the_same_bits_every_time_and_in_any_order_of_the_tokens():
    layer = random_layer(40, torch.float32)
    x, gate_up, down, expert_ids, weights = layer
    once = grouped_experts(*layer)
    assert torch.equal(once, grouped_experts(*layer))
    shuffle = torch.randperm(40)
    shuffled = grouped_experts(x[shuffle], gate_up, down, expert_ids[shuffle], weights[shuffle])
    torch.testing.assert_close(shuffled, once[shuffle], atol=1e-5, rtol=0)


def test_only_chosen_experts_are_asked_for_and_once():
    x, gate_up, down, _, weights = random_layer(9)
    asked = []

    class Lazy:
        def __getitem__(self, expert):
            asked.append(expert)
            return gate_up[expert]

    expert_ids = torch.tensor([[4, 1, 2], [2, 1, 4], [1, 4, 2]] * 3)
    out = grouped_experts(x, Lazy(), down, expert_ids, weights)
    assert asked == [1, 2, 4]
    torch.testing.assert_close(out, grouped_experts(x, gate_up, down, expert_ids, weights), atol=0, rtol=0)


def test_bf16_stays_close_to_float64():
    layer = random_layer(20)
    rounded = [tensor.bfloat16() if tensor.is_floating_point() else tensor for tensor in layer]
    exact = grouped_experts(
        *[tensor.double() if tensor.is_floating_point() else tensor for tensor in rounded]
    )
    out = grouped_experts(*rounded)
    assert out.dtype == torch.bfloat16
    assert (out.double() - exact).abs().max() < 0.02 * exact.abs().max()
