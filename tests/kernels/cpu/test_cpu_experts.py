"""Routing and a layer of experts beside float64, whoever is chosen."""

# T tokens, D hidden size, I inner size, E experts, k experts of a token

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

from lathe.kernels.cpu.table import Code

KINDS = [*ROWWISE, *PACKED]


def route(logits_TE, num_chosen, normalized, library=None):
    num_tokens, num_experts = logits_TE.shape
    made = OneCall(num_tokens)
    ids = made.empty(num_tokens, num_chosen, dtype=torch.int32)
    weights = made.empty(num_tokens, num_chosen)
    made.call(Code.ROUTE, logits_TE, num_experts, num_chosen, ids, weights, int(normalized))
    made.run(library)
    return ids, weights


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("isa", ["plain", None])
def test_the_best_experts_are_chosen(isa, normalized):
    for num_experts, num_chosen in ((1, 1), (5, 2), (32, 4), (128, 8), (7, 7)):
        for scale in (1.0, 30.0, 1e4):  # with the last, all but one weigh nothing
            logits_TE = random(13, num_experts, scale=scale)
            ids, weights = route(logits_TE, num_chosen, normalized, kernels(isa))
            probs_TE = logits_TE.double().softmax(-1)
            exact = probs_TE.gather(1, ids.long())
            chosen = exact.sum(-1, keepdim=True)
            # equal to fp32 where both weigh nothing: which of them is chosen is then free
            best = probs_TE.topk(num_chosen).values
            assert_within(exact, best, 1e-6 * best + 1e-37)
            assert all(len(set(row)) == num_chosen for row in ids.tolist())
            if normalized:
                exact = exact / chosen
            # a logit less the largest is rounded; then e^x (one unit), two sums and two quotients
            off = (
                (2 * logits_TE.double().abs().amax(-1, keepdim=True) + num_experts + num_chosen + 8)
                * 2
                * UNIT
            )
            assert_within(weights, exact, off * exact + 1e-37)


def test_of_equals_the_first_are_chosen():
    ids, weights = route(torch.zeros(3, 9), 4, True)
    assert ids.tolist() == [[0, 1, 2, 3]] * 3
    assert torch.equal(weights, torch.full((3, 4), 0.25))
    ids, _ = route(torch.tensor([[1.0, 3.0, 2.0, 3.0, 2.0, 3.0]]), 4, False)
    assert ids.tolist() == [[1, 3, 5, 2]]


def run_experts(weights, x_TD, ids_Tk, weights_Tk, residual_TD, library=None):
    gate_up, down = weights
    num_tokens, width = x_TD.shape
    num_chosen, num_experts, inner = ids_Tk.shape[1], gate_up.shape[0], gate_up.shape[1] // 2
    made, num_rows = OneCall(num_tokens), num_tokens * num_chosen
    out_TD = made.empty(num_tokens, width)
    made.call(
        Code.EXPERTS,
        *(made.matrix(gate_up.weight, part=part, parts=2) for part in (0, 1)),
        made.matrix(down.weight),
        *made.forms(x_TD, gate_up.kind),
        ids_Tk.int().contiguous(),
        weights_Tk,
        num_chosen,
        num_experts,
        made.empty(2 * num_rows, dtype=torch.int32),
        made.empty(2 * num_experts + 1, dtype=torch.int32),
        made.empty(2 * num_rows, inner),
        torch.zeros(num_rows * (inner // 32 + 1) * 72, dtype=torch.uint8),
        made.empty(num_rows, width),
        out_TD,
        residual_TD,
    )
    made.run(library)
    return out_TD


class Stack:
    """Random experts of a kind, and their exact numbers."""

    def __init__(self, kind, *shape, seed, parts=1):
        self.kind, self.shape = kind, shape
        self.weight, self.wide = weight_of(kind, *shape, seed=seed, parts=parts)


def product(x_nK, x_off_nK, stack, wide_NK):
    """x W^T in float64, and how far a kernel may be from it when x itself is `x_off` from exact."""
    size_nK, size_NK = x_nK.abs() + x_off_nK, wide_NK.abs()
    columns = x_nK.shape[-1]
    off_nN = x_off_nK @ size_NK.T
    if stack.kind in ROWWISE:
        off_nN = off_nN + sum_bound(-(-columns // 8) + 7, size_nK @ size_NK.T)
    else:
        steps = STEPS[stack.kind]
        step_nK = size_nK.unflatten(-1, (-1, 32)).amax(-1).repeat_interleave(32, -1) / steps
        off_nN = off_nN + step_nK * (0.5 + 4 * steps * UNIT) @ size_NK.T
        if stack.kind == "q4_1":
            size_NK = 3 * size_NK.unflatten(-1, (-1, 32)).amax(-1).repeat_interleave(32, -1)
        off_nN = off_nN + sum_bound(2 * columns // 32 + 8, (size_nK + step_nK) @ size_NK.T)
    return x_nK @ wide_NK.T, off_nN


def exact_experts(gate_up, down, x_TD, ids_Tk, weights_Tk, residual_TD):
    """Float64, and the bound, carried through both products, SwiGLU and the weighted sum."""
    out = residual_TD.double().clone()
    bound = (ids_Tk.shape[1] + 1) * UNIT * residual_TD.double().abs()
    for t, (ids, weights) in enumerate(zip(ids_Tk.tolist(), weights_Tk.double(), strict=True)):
        for expert, weight in zip(ids, weights, strict=True):
            x = x_TD[t : t + 1].double()
            both, both_off = product(x, 0 * x, gate_up, gate_up.wide[expert])
            (gate, up), (gate_off, up_off) = both.chunk(2, -1), both_off.chunk(2, -1)
            activated = gate / (1 + (-gate).exp())
            silu_off = 1.1 * gate_off + 7 * UNIT * activated.abs()  # silu is nowhere steeper than 1.1
            off = silu_off * (up.abs() + up_off) + activated.abs() * up_off
            last, last_off = product(activated * up, off * (1 + 4 * UNIT), down, down.wide[expert])
            out[t] += weight * last[0]
            bound[t] += weight * (last_off[0] + (ids_Tk.shape[1] + 2) * UNIT * (last[0].abs() + last_off[0]))
    return out, bound + 1e-30


def choices(name, num_tokens, num_experts, num_chosen):
    generator = torch.Generator().manual_seed(7)
    if name == "some never":  # the first and the last expert, and every second
        some = torch.arange(1, num_experts - 1, 2)
        return torch.stack(
            [some[torch.randperm(len(some), generator=generator)[:num_chosen]] for _ in range(num_tokens)]
        )
    if name == "all the same":
        return torch.arange(num_chosen).flip(0).expand(num_tokens, -1) + num_experts - num_chosen
    return torch.stack(
        [torch.randperm(num_experts, generator=generator)[:num_chosen] for _ in range(num_tokens)]
    )


SHAPES = {  # tokens, D, I, E, k
    "one token": (1, 64, 32, 6, 2, "any"),
    "some never": (9, 96, 64, 9, 2, "some never"),
    "all the same": (23, 64, 96, 5, 1, "all the same"),
    "all of them": (4, 32, 64, 3, 3, "any"),
    "a hundred tokens": (100, 64, 32, 8, 2, "any"),
    "cut blocks": (6, 160, 192, 4, 2, "any"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", list(SHAPES))
def test_experts_are_as_exact_as_their_roundings(kind, shape):
    num_tokens, width, inner, num_experts, num_chosen, name = SHAPES[shape]
    gate_up = Stack(kind, num_experts, 2 * inner, width, seed=1, parts=2)
    down = Stack(kind, num_experts, width, inner, seed=5)
    x_TD, residual_TD = random(num_tokens, width, seed=2), random(num_tokens, width, seed=3)
    ids_Tk = choices(name, num_tokens, num_experts, num_chosen)
    weights_Tk = random(num_tokens, num_chosen, seed=4).softmax(-1)
    exact, bound = exact_experts(gate_up, down, x_TD, ids_Tk, weights_Tk, residual_TD)
    for isa in (None, "plain"):
        got = run_experts((gate_up, down), x_TD, ids_Tk, weights_Tk, residual_TD, kernels(isa))
        assert_within(got, exact, bound)


@pytest.mark.parametrize("kinds", [("f32", "q4_0"), ("q8_0", "bf16"), ("q4_1", "q8_0"), ("bf16", "fp8")])
def test_experts_of_two_kinds(kinds):
    gate_up, down = Stack(kinds[0], 5, 64, 64, seed=1, parts=2), Stack(kinds[1], 5, 64, 32, seed=5)
    x_TD, residual_TD = random(7, 64, seed=2), random(7, 64, seed=3)
    ids_Tk, weights_Tk = choices("any", 7, 5, 2), random(7, 2, seed=4).softmax(-1)
    got = run_experts((gate_up, down), x_TD, ids_Tk, weights_Tk, residual_TD)
    assert_within(got, *exact_experts(gate_up, down, x_TD, ids_Tk, weights_Tk, residual_TD))


@pytest.mark.parametrize("kind", ["f32", "bf16", "fp8"])
def test_widths_that_fill_no_vector(kind):
    gate_up, down = Stack(kind, 4, 2 * 13, 41, seed=1, parts=2), Stack(kind, 4, 41, 13, seed=5)
    x_TD, residual_TD = random(5, 41, seed=2), random(5, 41, seed=3)
    ids_Tk, weights_Tk = choices("any", 5, 4, 2), random(5, 2, seed=4).softmax(-1)
    got = run_experts((gate_up, down), x_TD, ids_Tk, weights_Tk, residual_TD)
    assert_within(got, *exact_experts(gate_up, down, x_TD, ids_Tk, weights_Tk, residual_TD))


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_residual_nothing_is_added(kind):
    gate_up, down = Stack(kind, 4, 64, 32, seed=1, parts=2), Stack(kind, 4, 32, 32, seed=5)
    x_TD, ids_Tk, weights_Tk = random(3, 32), choices("any", 3, 4, 2), torch.full((3, 2), 0.5)
    arguments = (gate_up, down), x_TD, ids_Tk, weights_Tk
    assert torch.equal(run_experts(*arguments, None), run_experts(*arguments, torch.zeros(3, 32)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_without_tokens(kind):
    gate_up, down = Stack(kind, 4, 64, 32, seed=1, parts=2), Stack(kind, 4, 32, 32, seed=5)
    nobody = torch.zeros(0, 2)
    assert run_experts((gate_up, down), torch.zeros(0, 32), nobody, nobody, None).shape == (0, 32)
