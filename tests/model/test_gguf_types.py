"""Rounding: bit for bit ggml's where its rule is fixed, no worse than llama.cpp's search where it is not."""

import ctypes
from pathlib import Path

import gguf as package
import numpy as np
import pytest
import torch
import xllamacpp

from lathe.model.gguf_types import TYPES, GgufType, dequantize_into, quantize_chunks, type_of_id

# random bytes hold infinite scales as well
pytestmark = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")

BLOCKS_OF_32 = ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
SEARCHED = ("q6_k", "q4_k")


def numbers(kind: str) -> torch.Tensor:
    """[64, 512] of the kinds that weights have, and of the kinds that break quantizers."""
    generator = torch.Generator().manual_seed(0)
    gaussian = torch.randn(64, 512, generator=generator)
    kinds = {
        "gaussian": gaussian * 0.02,
        "bf16": (gaussian * 0.02).bfloat16().float(),  # many ties: +max and -max in one block
        "heavy tails": gaussian * torch.randn(64, 512, generator=generator).abs().pow(3),
        "positive": gaussian.abs() + 1,
        "zeros": torch.zeros(64, 512),
        "constant": torch.full((64, 512), 0.3),
        "one number a row": torch.where(torch.arange(512) == 7, gaussian, 0.0),
        "below float16": gaussian * 1e-12,
    }
    return kinds[kind]


KINDS = (
    "gaussian",
    "bf16",
    "heavy tails",
    "positive",
    "zeros",
    "constant",
    "one number a row",
    "below float16",
)


def quantized(values: torch.Tensor, type: GgufType) -> torch.Tensor:
    return torch.cat([raw for _, raw in quantize_chunks(values, type)])


def dequantized(raw: torch.Tensor, type: GgufType, dtype=torch.float32) -> torch.Tensor:
    out = torch.empty(64, 512, dtype=dtype)
    dequantize_into(raw, type, out)
    return out


def of_the_package(type: GgufType) -> package.GGMLQuantizationType:
    return package.GGMLQuantizationType(type.id)


def of_llama_cpp(values: torch.Tensor, type: GgufType) -> torch.Tensor:
    """What ggml_quantize_chunk makes of it, in the llama.cpp inside the xllamacpp wheel."""
    (library,) = Path(xllamacpp.__file__).parent.glob("*.so")
    quantize = ctypes.CDLL(str(library)).ggml_quantize_chunk
    quantize.restype = ctypes.c_size_t
    quantize.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    values = values.contiguous()
    raw = torch.zeros(type.num_bytes(values.shape), dtype=torch.uint8)
    written = quantize(type.id, values.data_ptr(), raw.data_ptr(), 0, *values.shape, None)
    assert written == raw.numel()
    return raw.view(-1, type.block_bytes)


@pytest.mark.parametrize("name", TYPES)
def test_sizes_are_the_packages(name):
    type = TYPES[name]
    assert package.GGML_QUANT_SIZES[of_the_package(type)] == (type.block_size, type.block_bytes)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["f32", "f16", "bf16", *BLOCKS_OF_32])
def test_rounding_is_the_packages_bit_for_bit(name, kind):
    type, values = TYPES[name], numbers(kind)
    theirs = package.quantize(values.numpy(), of_the_package(type))
    assert quantized(values, type).numpy().tobytes() == theirs.tobytes()


@pytest.mark.parametrize("name", BLOCKS_OF_32)
def test_rounding_is_llama_cpps_bit_for_bit(name):
    for kind in KINDS:
        ours, theirs = quantized(numbers(kind), TYPES[name]), of_llama_cpp(numbers(kind), TYPES[name])
        assert torch.equal(ours, theirs), kind


@pytest.mark.parametrize("name", TYPES)
def test_reading_is_the_packages_bit_for_bit(name):
    """Random bytes: every pattern of scales and bits, not only those that a quantizer makes."""
    type = TYPES[name]
    raw = torch.randint(256, (64 * 512 // type.block_size, type.block_bytes), dtype=torch.uint8)
    theirs = package.dequantize(raw.numpy(), of_the_package(type)).reshape(64, 512)
    assert np.array_equal(dequantized(raw, type).numpy(), theirs, equal_nan=True)


@pytest.mark.parametrize("name", ["Q2_K", "Q3_K", "IQ4_XS", "MXFP4"])
def test_other_types_are_read_by_the_package(name):
    theirs = package.GGMLQuantizationType[name]
    type = type_of_id(int(theirs))
    raw = torch.randint(128, (64 * 512 // type.block_size, type.block_bytes), dtype=torch.uint8)
    expected = package.dequantize(raw.numpy(), theirs).reshape(64, 512)
    assert np.array_equal(dequantized(raw, type).numpy(), expected, equal_nan=True)
    assert type_of_id(10_000) is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_destination_of_another_dtype_gets_the_rounded_numbers(dtype):
    raw = quantized(numbers("gaussian"), TYPES["q8_0"])
    expected = dequantized(raw, TYPES["q8_0"]).to(dtype)
    assert torch.equal(dequantized(raw, TYPES["q8_0"], dtype), expected)


def relative_error(
    values: torch.Tensor, raw: torch.Tensor, type: GgufType, *, weighted: bool = False
) -> float:
    weights = values.abs() if weighted else torch.ones_like(values)
    error = (weights * (dequantized(raw, type) - values).square()).sum()
    return float((error / (weights * values.square()).sum()).sqrt())


@pytest.mark.parametrize("kind", ["gaussian", "bf16", "heavy tails", "positive"])
@pytest.mark.parametrize("name", SEARCHED)
def test_searched_types_are_as_good_as_llama_cpps(name, kind):
    type, values = TYPES[name], numbers(kind)
    for weighted in (False, True):
        ours = relative_error(values, quantized(values, type), type, weighted=weighted)
        theirs = relative_error(values, of_llama_cpp(values, type), type, weighted=weighted)
        assert ours < 1.01 * theirs


@pytest.mark.parametrize(
    ("name", "error"), [("q4_k", 0.072), ("q6_k", 0.0178), ("q4_1", 0.079), ("q8_0", 0.0054)]
)
def test_errors_on_gaussian_weights(name, error):
    values = numbers("gaussian")
    assert 0.97 * error < relative_error(values, quantized(values, TYPES[name]), TYPES[name]) < error


@pytest.mark.parametrize("kind", ["zeros", "constant", "one number a row", "below float16"])
@pytest.mark.parametrize("name", SEARCHED)
def test_searched_types_take_blocks_without_a_scale(name, kind):
    values, type = numbers(kind), TYPES[name]
    read = dequantized(quantized(values, type), type)
    # a float16 scale keeps 11 significant bits, and none below 6e-8; 15 of them and a minimum make a zero
    largest = values.abs().amax(1, keepdim=True)
    assert ((read - values).abs() <= largest * 2**-9 + 1e-7).all()


def test_chunks_are_the_whole(monkeypatch):
    values = numbers("gaussian")
    whole = quantized(values, TYPES["q4_k"])
    monkeypatch.setattr("lathe.model.gguf_types.CHUNK", 1024)
    chunks = list(quantize_chunks(values, TYPES["q4_k"]))
    assert len(chunks) == 32
    assert torch.equal(torch.cat([raw for _, raw in chunks]), whole)
    assert torch.equal(torch.cat([exact for exact, _ in chunks]).view(64, 512), values)
