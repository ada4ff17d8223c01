"""Matrix products beside float64, within the bounds that follow from their roundings."""

# T tokens, K columns, N rows of the matrix

import pytest
import torch
from one_call import (
    PACKED,
    ROWWISE,
    STEPS,
    UNIT,
    OneCall,
    assert_within,
    kernels,
    random,
    sum_bound,
    weight_of,
)

from lathe.kernels.cpu.packed import quantize
from lathe.kernels.cpu.table import Code
from lathe.kernels.fp8 import FP8, Fp8Matrix

ROWWISE_SHAPES = [(1, 1), (3, 7), (4, 8), (17, 41), (129, 300), (37, 520)]
PACKED_SHAPES = [(1, 32), (15, 64), (16, 96), (37, 544), (300, 160)]
TOKENS = [*range(1, 18), 100]


def linear(kind, weight, x_TK, bias_N, residual_TN, rows, library=None, **parts):
    made = OneCall(len(x_TK))
    out_TN = made.empty(len(x_TK), rows)
    forms = made.forms(x_TK, kind)
    made.call(Code.LINEAR, made.matrix(weight, bias_N, **parts), *forms, out_TN, residual_TN, 0)
    made.run(library)
    return out_TN


def activations(num_tokens, columns):
    """With a row of zeros, one number that is far larger than its group, and numbers of all sizes."""
    x_TK = random(num_tokens, columns, seed=1) * torch.logspace(-3, 3, num_tokens)[:, None]
    x_TK[num_tokens // 2, columns // 2] = 1e4
    if num_tokens > 2:
        x_TK[1] = 0
    return x_TK


def linear_bound(kind, x_TK, wide_NK, bias_N, residual_TN):
    """What rounding the activations may cost, and every rounding of the sums in fp32."""
    others = bias_N.double().abs() + residual_TN.double().abs()
    size_TK, size_NK = x_TK.double().abs(), wide_NK.abs()
    columns = x_TK.shape[-1]
    if kind in ROWWISE:  # eight lanes, then three sums of lanes; FP8's scale, the bias and the residual
        return sum_bound(-(-columns // 8) + 7, size_TK @ size_NK.T + others)
    step_TK = size_TK.unflatten(-1, (-1, 32)).amax(-1).repeat_interleave(32, -1) / STEPS[kind]
    rounding_TN = step_TK * (0.5 + 4 * STEPS[kind] * UNIT) @ size_NK.T
    if kind == "q4_1":  # d q and m are added up on their own, each up to thrice the group's largest weight
        size_NK = 3 * size_NK.unflatten(-1, (-1, 32)).amax(-1).repeat_interleave(32, -1)
    return rounding_TN + sum_bound(2 * columns // 32 + 8, (size_TK + step_TK) @ size_NK.T + others)


@pytest.mark.parametrize("isa", ["plain", None])
@pytest.mark.parametrize("kind", [*ROWWISE, *PACKED])
def test_a_product_is_as_exact_as_its_roundings(kind, isa):
    for rows, columns in ROWWISE_SHAPES if kind in ROWWISE else PACKED_SHAPES:
        weight, wide_NK = weight_of(kind, rows, columns)
        for num_tokens in TOKENS if isa is None else (1, 5):
            x_TK = activations(num_tokens, columns)
            bias_N, residual_TN = random(rows, seed=2), random(num_tokens, rows, seed=3)
            exact_TN = x_TK.double() @ wide_NK.T + bias_N.double() + residual_TN.double()
            bound_TN = linear_bound(kind, x_TK, wide_NK, bias_N, residual_TN)
            assert_within(
                linear(kind, weight, x_TK, bias_N, residual_TN, rows, kernels(isa)), exact_TN, bound_TN
            )


@pytest.mark.parametrize("kind", [*ROWWISE, *PACKED])
def test_without_bias_and_residual_nothing_is_added(kind):
    weight, wide_NK = weight_of(kind, 20, 64)
    x_TK, zero_N, zero_TN = random(3, 64), torch.zeros(20), torch.zeros(3, 20)
    got_TN = linear(kind, weight, x_TK, None, None, 20)
    assert torch.equal(got_TN, linear(kind, weight, x_TK, zero_N, zero_TN, 20))
    assert_within(got_TN, x_TK.double() @ wide_NK.T, linear_bound(kind, x_TK, wide_NK, zero_N, zero_TN))


@pytest.mark.parametrize("kind", [*ROWWISE, *PACKED])
def test_one_of_two_matrices_that_lie_one_above_the_other(kind):
    """Gate and up. In FP8 each has blocks of its own: 192 rows are a block and a half."""
    weight, wide_NK = weight_of(kind, 2 * 192, 160, parts=2)
    x_TK = random(5, 160)
    zero_N, zero_TN = torch.zeros(192), torch.zeros(5, 192)
    for part, half_NK in enumerate(wide_NK.chunk(2)):
        got_TN = linear(kind, weight, x_TK, None, None, 192, part=part, parts=2)
        assert_within(got_TN, x_TK.double() @ half_NK.T, linear_bound(kind, x_TK, half_NK, zero_N, zero_TN))


def test_every_fp8_number_is_read_exactly():
    """All but the two NaN, which have no place in a checkpoint."""
    every = torch.arange(256, dtype=torch.uint8).view(FP8)
    finite = every[~every.float().isnan()]
    weight = Fp8Matrix(finite[:, None].contiguous(), torch.full((2, 1), 0.75))
    for isa in ("plain", None):
        got_TN = linear("fp8", weight, torch.ones(1, 1), None, None, len(finite), kernels(isa))
        assert torch.equal(got_TN[0], finite.float() * 0.75)


@pytest.mark.parametrize("kind", PACKED)
def test_packed_products_hold_their_largest_numbers(kind):
    """Every product at its largest, all of one sign: sums of 4-bit weights are taken in 16 bits."""
    largest_NK = torch.full((16, 64), 2.0)
    largest_NK[1::2] = -2.0
    largest_NK[:, ::32] *= -1  # Q4_0 has -8 but no 8: the other sign is the larger
    weight = quantize(kind, largest_NK)
    wide_NK = weight.dequantize(torch.float64)
    for sign in (1, -1):
        x_TK = torch.full((1, 64), sign * 3.0)
        for isa in ("plain", None):
            got_TN = linear(kind, weight, x_TK, None, None, 16, kernels(isa))
            bound_TN = linear_bound(kind, x_TK, wide_NK, torch.zeros(16), torch.zeros(1, 16))
            assert_within(got_TN, x_TK.double() @ wide_NK.T, bound_TN)


@pytest.mark.parametrize("kind", PACKED)
def test_an_activation_that_is_no_number_is_not_hidden(kind):
    weight, _ = weight_of(kind, 16, 64)
    for bad in (torch.inf, -torch.inf, torch.nan):
        for place in (0, 13, 31, 40):
            x_TK = random(2, 64)
            x_TK[0, place] = bad
            for isa in ("plain", None):
                got_TN = linear(kind, weight, x_TK, None, None, 16, kernels(isa))
                assert not got_TN[0].isfinite().any(), f"{bad} at {place}"
                assert got_TN[1].isfinite().all()
