"""The optimizers: Muon against the singular value decomposition, which weights decay, the rate's course."""

import pytest
import torch
from tiny_models import random_model, tiny_config

from lathe.train.optim import Muon, make_optimizers, orthogonal, schedule

MOE = dict(architecture="qwen3_moe", num_experts=8, num_experts_per_tok=3, moe_intermediate_size=32)


@pytest.mark.parametrize("shape", [(24, 60), (60, 24), (40, 40), (3, 30, 12)], ids=str)
def test_newton_schulz_is_about_the_polar_factor(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    exact, found = u @ vh, orthogonal(matrices)
    # the same singular vectors; values near 1, and the smallest, which Jordan et al. let be, above 0.3
    values = (u.mT @ found @ vh.mT).diagonal(dim1=-2, dim2=-1)
    assert values.min() > 0.3 and values.max() < 1.25
    torch.testing.assert_close(u @ torch.diag_embed(values) @ vh, found, rtol=0, atol=2e-5)
    cosine = torch.nn.functional.cosine_similarity(exact.flatten(-2), found.flatten(-2), dim=-1)
    assert cosine.min() > 0.95


def test_a_stack_of_experts_is_that_many_matrices():
    stack = torch.randn(4, 10, 6) * torch.tensor([1e-3, 1.0, 50.0, 0.0])[:, None, None]
    found = orthogonal(stack)
    for matrix, alone in zip(found, map(orthogonal, stack), strict=True):
        torch.testing.assert_close(matrix, alone)
    assert not found[3].any()


def test_muon_moves_a_weight_by_the_rate_times_the_polar_factor():
    weight = torch.nn.Parameter(torch.randn(20, 50))
    before = weight.detach().clone()
    weight.grad = torch.randn(20, 50)
    Muon([weight], lr=0.1, weight_decay=0.5).step()
    # of the first step, momentum and gradient point the same way; an entry moves by about 0.2 x the rate
    u, _, vh = torch.linalg.svd(weight.grad, full_matrices=False)
    moved = weight.detach() - before * (1 - 0.1 * 0.5)
    cosine = torch.nn.functional.cosine_similarity(moved.flatten(), -(u @ vh).flatten(), dim=0)
    assert cosine > 0.95
    assert 0.015 < moved.square().mean().sqrt() < 0.025


def test_every_weight_has_one_optimizer():
    model = random_model(tiny_config(**MOE))
    names = {id(weight): name for name, weight in model.named_parameters()}
    for optimizer in ("adamw", "muon"):
        made = make_optimizers(
            model.named_parameters(), optimizer=optimizer, lr=1.0, betas=(0.9, 0.95), weight_decay=0.1
        )
        groups = [group for each in made for group in each.param_groups]
        held = [names[id(weight)] for group in groups for weight in group["params"]]
        assert sorted(held) == sorted(names.values())
        still = {names[id(w)] for group in groups if not group["weight_decay"] for w in group["params"]}
        assert still == {name for name in names.values() if "norm" in name}
        if optimizer == "muon":
            muons = {names[id(weight)] for weight in made[1].param_groups[0]["params"]}
            assert "layers.0.mlp.experts.down_proj" in muons
            assert not muons & {"embed_tokens.weight", "lm_head.weight", "norm.weight"}


def course(decay: str, steps: int = 10) -> list[float]:
    return [
        schedule(step, warmup_steps=2, total_steps=steps, decay=decay, floor=0.1) for step in range(steps + 3)
    ]


@pytest.mark.parametrize("decay", ["constant", "linear", "cosine", "wsd"])
def test_the_rate_rises_and_falls_to_its_floor(decay):
    values = course(decay)
    assert values[:2] == [0.5, 1.0]
    assert max(values) == 1.0
    assert values[2:] == sorted(values[2:], reverse=True)
    last = 1.0 if decay == "constant" else pytest.approx(0.1)
    assert values[9] == values[12] == last


def test_wsd_is_stable_until_the_last_fifth():
    assert course("wsd")[2:9] == [1.0] * 7
