import math

import pytest
import torch

from lathe.model.presets import preset
from lathe.model.rope import inverse_frequencies, rope_tables, rotate, yarn_ramp

CONFIG = preset("qwen3-coder-30b-a3b-instruct")


def test_a_pair_turns_by_position_times_frequency():
    """Against complex multiplication in double precision."""
    x_THd = torch.randn(5, 2, 128)
    positions = torch.tensor([0, 1, 7, 100, 1000])
    half = CONFIG.head_dim // 2
    frequencies = CONFIG.rope_theta ** (-torch.arange(half, dtype=torch.float64) / half)
    turn = torch.polar(torch.ones(5, half, dtype=torch.float64), positions[:, None] * frequencies)
    expected = torch.complex(x_THd[..., :half].double(), x_THd[..., half:].double()) * turn[:, None]
    out = rotate(x_THd, *rope_tables(CONFIG, positions))
    torch.testing.assert_close(out.double(), torch.cat((expected.real, expected.imag), -1), atol=3e-4, rtol=0)


@pytest.mark.parametrize("config", [CONFIG, CONFIG.with_yarn(4)], ids=["plain", "yarn"])
def test_only_the_distance_matters(config):
    q, k = torch.randn(2, 1, 1, 128, dtype=torch.float32)

    def score(query_position, key_position):
        tables = rope_tables(config, torch.tensor([query_position, key_position]))
        q_rotated, k_rotated = rotate(torch.cat((q, k)), *tables)
        return float((q_rotated * k_rotated).sum())

    assert score(1003, 1000) == pytest.approx(score(3, 0), abs=2e-3)
    assert score(3, 0) != pytest.approx(score(4, 0), abs=2e-2)


def test_lengths_stay_without_yarn_and_grow_by_its_factor_with_it():
    x = torch.randn(3, 2, 128)
    positions = torch.tensor([0, 5, 200_000])
    plain = rotate(x, *rope_tables(CONFIG, positions))
    torch.testing.assert_close(plain.norm(dim=-1), x.norm(dim=-1), rtol=1e-5, atol=0)
    stretched = rotate(x, *rope_tables(CONFIG.with_yarn(4), positions))
    scale = 0.1 * math.log(4) + 1
    torch.testing.assert_close(stretched.norm(dim=-1), x.norm(dim=-1) * scale, rtol=1e-5, atol=0)


def test_yarn_keeps_fast_pairs_and_stretches_slow_ones():
    plain, stretched = inverse_frequencies(CONFIG), inverse_frequencies(CONFIG.with_yarn(4))
    turns = plain * 262_144 / (2 * math.pi)  # within the original length
    assert torch.equal(stretched[turns > 64], plain[turns > 64])
    torch.testing.assert_close(stretched[turns < 0.5], plain[turns < 0.5] / 4)
    ramp = yarn_ramp(CONFIG.with_yarn(4).yarn, 128, CONFIG.rope_theta)
    assert (ramp.diff() <= 0).all() and 0 < ramp[(turns < 16) & (turns > 2)].min() < 1


def test_bf16_is_rotated_in_fp32():
    x = torch.randn(4, 2, 128).bfloat16()
    tables = rope_tables(CONFIG, torch.tensor([1, 300, 70_000, 262_143]))
    out = rotate(x, *tables)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, rotate(x.float(), *tables).bfloat16())


def test_neighbours_a_million_tokens_away_differ():
    cos, _ = rope_tables(CONFIG.with_yarn(4), torch.tensor([1_048_574, 1_048_575]))
    assert (cos[0] - cos[1]).abs().max() > 0.1
