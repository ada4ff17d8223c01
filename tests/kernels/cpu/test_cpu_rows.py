"""What is computed of one token's numbers: embeddings, norms, SwiGLU, rotations, quantized activations."""

# T tokens, R rows of which logits are wanted, K columns

import ctypes

import numpy as np
import pytest
import torch
from one_call import (
    PACKED,
    STEPS,
    UNIT,
    OneCall,
    assert_within,
    instruction_sets,
    kernels,
    random,
    sum_bound,
    weight_of,
)

from lathe.kernels.cpu import build
from lathe.kernels.cpu.table import Code

ISAS = ["plain", None]
WIDTHS = [1, 7, 8, 16, 41, 64, 100, 1000]


@pytest.mark.parametrize("kind", ["f32", "bf16", *PACKED])
def test_an_embedding_is_read_exactly(kind):
    weight, wide_NK = weight_of(kind, 37, 96)
    ids = [0, 36, 15, 16, 17, 36, 5]
    for isa in ISAS:
        made = OneCall(len(ids))
        out_TK = made.empty(len(ids), 96)
        made.call(Code.EMBED, made.matrix(weight), out_TK)
        made.run(kernels(isa), token_ids=ids)
        expected_TK = weight.take_rows(torch.tensor(ids)) if kind in PACKED else wide_NK[ids].float()
        assert torch.equal(out_TK, expected_TK)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("rows_only", [False, True])
def test_a_norm_is_as_exact_as_its_roundings(isa, rows_only):
    for width in WIDTHS:
        x_TK, weight_K = random(9, width) * torch.logspace(-4, 4, 9)[:, None], random(width, seed=1)
        num = 4 if rows_only else 9
        made = OneCall(9)
        out_TK = made.empty(9, width)
        made.call(Code.NORM, x_TK, width, weight_K, out_TK, 0, 0, int(rows_only), f=(1e-6,))
        made.run(kernels(isa), rows=[0] * 4)
        eps = float(torch.tensor(1e-6))
        wide_TK = x_TK.double()
        exact_TK = wide_TK / (wide_TK.square().mean(-1, keepdim=True) + eps).sqrt() * weight_K.double()
        # half the error of the mean, then root, quotient and two products
        bound_TK = sum_bound(-(-width // 16) + 8, exact_TK.abs())
        assert_within(out_TK[:num], exact_TK[:num], bound_TK[:num])
        assert out_TK[num:].isnan().all()


@pytest.mark.parametrize("isa", ISAS)
def test_swiglu_is_as_exact_as_its_roundings(isa):
    for width in [*WIDTHS, 256, 257, 700]:
        gate_TK, up_TK = random(5, width, scale=4), random(5, width, seed=1)
        made = OneCall(5)
        out_TK = made.empty(5, width)
        made.call(Code.SWIGLU, gate_TK, up_TK, width, out_TK, 0, 0)
        made.run(kernels(isa))
        wide_TK = gate_TK.double()
        exact_TK = wide_TK / (1 + (-wide_TK).exp()) * up_TK.double()
        assert_within(out_TK, exact_TK, 7 * UNIT * exact_TK.abs())  # 2 units of exp are 4, then three more


@pytest.mark.parametrize("isa", ISAS)
def test_silu_of_large_numbers(isa):
    """Far below zero it is nothing, and above it the number itself."""
    gate = torch.tensor(
        [[-1e30, -1e10, -1e4, -200.0, -88.0, -87.0, -50.0, -0.0, 0.0, 50.0, 88.0, 200.0, 1e30]]
    )
    made = OneCall(1)
    out = made.empty(*gate.shape)
    made.call(Code.SWIGLU, gate, torch.ones_like(gate), gate.shape[1], out, 0, 0)
    made.run(kernels(isa))
    wide = gate.double()
    exact = torch.where(wide < 0, wide * wide.exp() / (1 + wide.exp()), wide / (1 + (-wide).exp()))
    # e^x ends at x = 88
    assert_within(out, exact, 7 * UNIT * exact.abs() + (wide < -87) * 1.1 * wide.abs() * np.exp(-88.0))


@pytest.mark.parametrize("isa", ISAS)
def test_rotations_of_every_position_that_models_are_trained_on(isa):
    positions = [0, 1, 2, 1000, 40_959, 131_071, 262_143]
    frequencies = 1.0 / 1e7 ** (torch.arange(0, 128, 2) / 128)
    scale = float(torch.tensor(1.2079441))  # YaRN's for four times the length
    made = OneCall(len(positions))
    cos, sin = made.empty(len(positions), 64), made.empty(len(positions), 64)
    made.call(Code.ROPE_TABLE, frequencies, 64, cos, sin, f=(scale,))
    made.run(kernels(isa), positions=positions)
    # in fp32, as the models were trained (model/rope.py)
    angles = (torch.tensor(positions, dtype=torch.float32)[:, None] * frequencies).double()
    for got, exact in ((cos, angles.cos() * scale), (sin, angles.sin() * scale)):
        assert_within(got, exact, 3 * UNIT * exact.abs() + 1e-30)


def test_chosen_rows_and_sums():
    x_TK, y_TK = random(9, 41), random(9, 41, seed=1)
    made = OneCall(9)
    gathered_RK, sum_TK = made.empty(9, 41), made.empty(9, 41)
    made.call(Code.GATHER, x_TK, 41, gathered_RK, 0, 0)
    made.call(Code.ADD, x_TK, y_TK, sum_TK, 41)
    made.run(rows=[8, 0, 3])
    assert torch.equal(gathered_RK[:3], x_TK[[8, 0, 3]])
    assert gathered_RK[3:].isnan().all()
    assert torch.equal(sum_TK, x_TK + y_TK)


def unpacked(form: torch.Tensor, kind: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A quantized form's whole numbers [groups, 32], their scales, and the bytes after the scales."""
    num_bytes = 72 if kind == "q8_0" else 48
    bytes_ = form.view(-1, num_bytes)
    if kind == "q8_0":
        q = bytes_[:, :64].contiguous().view(torch.int16).view(-1, 8, 2, 2).transpose(2, 3).reshape(-1, 32)
        return q, bytes_[:, 64:68].contiguous().view(torch.float32)[:, 0], bytes_[:, 68:]
    q = bytes_[:, :32].contiguous().view(torch.int8)
    return q, bytes_[:, 32:36].contiguous().view(torch.float32)[:, 0], bytes_[:, 36:44].contiguous()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", ["q4_0", "q8_0"])
def test_activations_are_off_by_half_a_step(kind, isa):
    """A step is a group's largest number over 127 (for 4-bit weights) or 32,767. The scale and the factor are
    rounded as well, each by a unit of fp32 at most."""
    x_TK = random(20, 96) * torch.logspace(-30, 30, 20)[:, None]
    x_TK[3] = 0
    x_TK[4, 32:64] = 0
    x_TK[5] = 1e-40  # so small that its reciprocal is infinite
    x_TK[6, 5] = -3e38
    made = OneCall(len(x_TK))
    form = made.quantized(x_TK, kind)
    made.run(kernels(isa))
    q, scale, rest = unpacked(form, kind)
    groups = x_TK.view(-1, 32).double()
    step = groups.abs().amax(-1, keepdim=True) / STEPS[kind]
    got = q.double() * scale.double()[:, None]
    # below 1e-30 a group is all zeros
    assert_within(got, groups, (0.5 + 4 * STEPS[kind] * UNIT) * step + 1e-30)
    assert int(q.int().abs().max()) == STEPS[kind]
    if kind == "q4_0":  # what takes Q4_0's bias of 8 off, and what Q4_1's minima are multiplied by
        pairs = q.int().view(-1, 8, 2, 2).sum((1, 3))
        assert torch.equal(rest[:, :4].contiguous().view(torch.int16).int(), -8 * pairs)
        total = rest[:, 4:].contiguous().view(torch.float32)[:, 0]
        assert torch.equal(total, scale * q.int().sum(1).float())


@pytest.mark.parametrize("kind", ["q4_0", "q8_0"])
def test_whoever_computes_activations_quantizes_them_alike(kind):
    """The norm, SwiGLU and the choice of rows write the bytes that a call of its own would."""
    x_TK, y_TK, width = random(5, 320), random(5, 320, seed=1), 320
    for code in (Code.NORM, Code.SWIGLU, Code.GATHER):
        made = OneCall(5)
        out_TK = torch.zeros(5, width)
        form = torch.zeros(5 * width // 32 * (72 if kind == "q8_0" else 48), dtype=torch.uint8)
        forms = (None, form) if kind == "q8_0" else (form, None)
        if code == Code.NORM:
            made.call(code, x_TK, width, torch.ones(width), out_TK, *forms, 0, f=(1e-6,))
        elif code == Code.SWIGLU:
            made.call(code, x_TK, y_TK, width, out_TK, *forms)
        else:
            made.call(code, x_TK, width, out_TK, *forms)
        expected = made.quantized(out_TK, kind)
        made.run(rows=[4, 3, 2, 1, 0])
        assert form.any()
        assert torch.equal(form, expected), code.name


EXPOSED = """
    #include "simd.h"
    extern "C" __attribute__((visibility("default"))) void exp_of(const float* x, float* out, long count) {
        for (long i = 0; i + 8 <= count; i += 8)
            lathe::LATHE_ISA::store(out + i, lathe::LATHE_ISA::exp(lathe::LATHE_ISA::load(x + i)));
    }
"""


@pytest.fixture(scope="module")
def exponentials(tmp_path_factory):
    """simd.h's exp of each instruction set that runs here."""
    compiler, folder = build.find_compiler(), tmp_path_factory.mktemp("exp")
    source = folder / "exp.cpp"
    source.write_text(EXPOSED)
    found = {}
    for isa in instruction_sets():
        made = folder / f"{isa}.so"
        flags = [
            *build.FLAGS,
            "-O2",
            *compiler.instruction_sets[isa],
            f"-DLATHE_ISA={isa}",
            f"-I{build.SOURCES}",
        ]
        build.run([*compiler.command, *flags, "-shared", str(source), "-o", str(made)])
        native = ctypes.CDLL(str(made))
        native.exp_of.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_long]
        found[isa] = native.exp_of
    return found


def units_off(exp_of, x: np.ndarray) -> float:
    """The largest error, in units of the exact result's last place."""
    out = np.empty_like(x)
    exp_of(x.ctypes.data, out.ctypes.data, len(x))
    exact = np.exp(x.astype(np.float64))
    _, exponents = np.frexp(exact)
    return float((np.abs(out - exact) / np.ldexp(1.0, exponents - 24)).max())


def test_exp_is_within_two_units_in_the_last_place(exponentials):
    generator = np.random.default_rng(0)
    x = generator.uniform(-87, 88, 1 << 19).astype(np.float32)
    small = generator.uniform(-1, 1, 1 << 17).astype(np.float32) * np.float32(2.0) ** -generator.integers(
        0, 30, 1 << 17
    )
    halves = (np.arange(-125, 126).repeat(8) + 0.5).astype(np.float32) * np.float32(np.log(2))
    for isa, exp_of in exponentials.items():
        for numbers in (x, small.astype(np.float32), halves):
            assert units_off(exp_of, numbers) <= 2, isa


@pytest.mark.slow
def test_exp_of_every_number(exponentials):
    """Of which e^x is a normal number, by the million."""
    for exp_of in exponentials.values():
        for top in (np.float32(88), np.float32(-87)):
            last = int(np.abs(top).view(np.uint32))
            sign = np.uint32(0x80000000 if top < 0 else 0)
            for first in range(0x30000000, last, 1 << 22):
                bits = np.arange(first, min(first + (1 << 22), last + 1), dtype=np.uint32)
                x = (bits[: len(bits) // 8 * 8] | sign).view(np.float32)
                assert units_off(exp_of, x) <= 2


def test_exp_ends_where_floats_end(exponentials):
    x = np.array([-np.inf, -1e30, -100, -87.5, 88.5, 100, 1e30, np.inf], dtype=np.float32)
    for exp_of in exponentials.values():
        out = np.empty_like(x)
        exp_of(x.ctypes.data, out.ctypes.data, 8)
        np.testing.assert_allclose(out, np.exp(np.clip(x.astype(np.float64), -87, 88)), rtol=3e-7)
