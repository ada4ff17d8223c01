import pytest
import torch
import torch.nn.functional as F

from lathe.model.linear import gains, linear


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 7, 8, 9, 40])
@pytest.mark.parametrize("with_bias", [False, True])
def test_any_number_of_rows_is_as_good_as_float64(rows, with_bias):
    x, weight = torch.randn(rows, 96), torch.randn(700, 96)  # large enough for the detour
    bias = torch.randn(700) if with_bias else None
    assert gains(x, weight)
    with torch.inference_mode():
        out = linear(x, weight, bias)
    wanted = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    assert (out - wanted).abs().max() < 1e-4
    assert out.shape == (rows, 700)


def test_a_row_does_not_depend_on_the_others():
    x, weight = torch.randn(8, 576), torch.randn(1536, 576)
    with torch.inference_mode():
        together = linear(x, weight)
        assert all(torch.equal(linear(x[i : i + 1], weight)[0], together[i]) for i in range(8))
        assert torch.equal(linear(x[2:7], weight), together[2:7])


def test_it_can_be_trained():
    x, weight = torch.randn(3, 96), torch.randn(700, 96)
    assert gains(x, weight)
    gradients = []
    for product, dtype in ((linear, torch.float32), (F.linear, torch.float64)):
        inputs = [tensor.to(dtype, copy=True).requires_grad_() for tensor in (x, weight)]
        product(*inputs).square().sum().backward()
        gradients.append([tensor.grad for tensor in inputs])
    for ours, exact in zip(*gradients, strict=True):
        assert (ours - exact).abs().max() < 1e-5 * exact.abs().max()
