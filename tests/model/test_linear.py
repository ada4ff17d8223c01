import pytest
import torch
import torch.nn.functional as F

from lathe.model.linear import linear


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 7, 8, 9, 40])
@pytest.mark.parametrize("with_bias", [False, True])
def test_any_number_of_rows_is_as_good_as_float64(rows, with_bias):
    x, weight = torch.randn(rows, 96), torch.randn(130, 96)
    bias = torch.randn(130) if with_bias else None
    with torch.inference_mode():
        out = linear(x, weight, bias)
    wanted = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    assert (out - wanted).abs().max() < 1e-4
    assert out.shape == (rows, 130)


def test_a_row_does_not_depend_on_the_others():
    x, weight = torch.randn(8, 576), torch.randn(1536, 576)
    with torch.inference_mode():
        together = linear(x, weight)
        assert all(torch.equal(linear(x[i : i + 1], weight)[0], together[i]) for i in range(8))
        assert torch.equal(linear(x[2:7], weight), together[2:7])


def test_it_can_be_trained():
    x, weight = (torch.randn(3, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda x, w: linear(x, w), (x, weight))
