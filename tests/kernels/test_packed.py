import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lathe.kernels.cpu import library
from lathe.kernels.cpu.memory import HUGE_PAGE, aligned_empty
from lathe.kernels.cpu.packed import (
    KINDS,
    PackedMatrix,
    empty_packed,
    linear_reference,
    pack_blocks,
    packed_bytes,
    quantize,
    unpack_blocks,
)

kinds = pytest.mark.parametrize("kind", KINDS)


def random_bytes(num_bytes: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (num_bytes,), dtype=torch.uint8, generator=generator)


def random_blocks(kind: str, rows: int, columns: int, experts: int = 1, seed: int = 0) -> torch.Tensor:
    """Any quants, with scales and minima that are ordinary numbers."""
    blocks = random_bytes(experts * rows * columns // 32 * KINDS[kind].block_bytes, seed)
    blocks = blocks.view(-1, KINDS[kind].block_bytes)
    halves = torch.randn(len(blocks), KINDS[kind].num_halves, generator=torch.Generator().manual_seed(seed))
    blocks[:, : 2 * KINDS[kind].num_halves] = halves.half().view(torch.uint8)
    return blocks.view(experts, rows, -1) if experts > 1 else blocks.view(rows, -1)


def weight_by_hand(packed: PackedMatrix, row: int, column: int) -> float:
    """One number, read from the tile as the layout says it lies there."""
    tile = packed.data[row // 16 * (packed.columns // 32) + column // 32].numpy().tobytes()
    h, r, column = row % 16 // 8, row % 8, column % 32
    d = struct.unpack_from("<e", tile, 2 * (row % 16))[0]
    if packed.kind == "q8_0":
        s, b = column // 4, column % 4
        return d * struct.unpack_from("<b", tile, 32 + 32 * (2 * s + h) + 4 * r + b)[0]
    s, high, b = column // 8, column % 8 // 4, column % 4
    vectors = 32 if packed.kind == "q4_0" else 64
    q = tile[vectors + 32 * (2 * s + h) + 4 * r + b] >> 4 * high & 15
    return (
        d * (q - 8)
        if packed.kind == "q4_0"
        else d * q + struct.unpack_from("<e", tile, 32 + 2 * (row % 16))[0]
    )


@kinds
def test_a_number_lies_where_the_layout_says(kind):
    packed = pack_blocks(kind, random_blocks(kind, 19, 96), 19, 96)
    by_hand = [[weight_by_hand(packed, row, column) for column in range(96)] for row in range(19)]
    assert torch.equal(packed.dequantize(torch.float64), torch.tensor(by_hand, dtype=torch.float64))


@given(
    kind=st.sampled_from(list(KINDS)),
    rows=st.integers(1, 70),
    groups=st.integers(1, 5),
    experts=st.integers(1, 4),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_packing_loses_no_byte(kind, rows, groups, experts, seed):
    columns = 32 * groups
    blocks = random_bytes(experts * rows * groups * KINDS[kind].block_bytes, seed)
    blocks = blocks.view(experts, rows, -1) if experts > 1 else blocks.view(rows, -1)
    packed = pack_blocks(kind, blocks, rows, columns)
    assert packed.shape == ((experts, rows, columns) if experts > 1 else (rows, columns))
    assert packed.num_bytes == packed_bytes(kind, rows, columns, experts)
    assert packed.data.is_contiguous() and packed.data.data_ptr() % 64 == 0
    assert torch.equal(unpack_blocks(packed), blocks)


@given(
    kind=st.sampled_from(list(KINDS)),
    rows=st.integers(1, 40),
    groups=st.integers(1, 4),
    experts=st.integers(1, 3),
)
@settings(max_examples=40, deadline=None)
def test_the_numbers_are_those_of_the_blocks(kind, rows, groups, experts):
    blocks = random_blocks(kind, rows, 32 * groups, experts)
    packed = pack_blocks(kind, blocks, rows, 32 * groups)
    expected = KINDS[kind].dequantize(blocks.view(-1, KINDS[kind].block_bytes)).view(packed.shape)
    assert torch.equal(packed.dequantize(), expected)
    assert torch.equal(packed.dequantize(torch.bfloat16), expected.bfloat16())
    for expert in range(experts if experts > 1 else 0):
        assert torch.equal(packed[expert].dequantize(), expected[expert])
        assert packed[expert].data.data_ptr() == packed.data[expert].data_ptr()


@kinds
@pytest.mark.parametrize("shape", [(1, 32), (48, 64), (37, 96), (3, 20, 64), (1100, 1024)], ids=str)
def test_quantizing_is_ggufs(kind, shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    expected = KINDS[kind].quantize(weight.view(-1, 32)).view(*shape[:-1], -1)
    assert torch.equal(unpack_blocks(quantize(kind, weight)), expected)
    assert torch.equal(
        unpack_blocks(quantize(kind, weight.bfloat16())),
        unpack_blocks(quantize(kind, weight.bfloat16().float())),
    )


@kinds
def test_matrices_of_many_chunks(kind):
    blocks = random_blocks(kind, 1003, 2080)
    packed = pack_blocks(kind, blocks, 1003, 2080)
    assert torch.equal(unpack_blocks(packed), blocks)
    assert packed.dequantize()[1002, 2079].item() == pytest.approx(
        weight_by_hand(packed, 1002, 2079), rel=1e-6
    )


@kinds
def test_rows_beyond_the_matrix_are_zero(kind):
    packed = pack_blocks(kind, torch.full((17, 2 * KINDS[kind].block_bytes), 255, dtype=torch.uint8), 17, 64)
    for tile in packed.data[2:]:
        halves = tile[: 32 * KINDS[kind].num_halves].view(torch.int16).view(-1, 16)
        assert (halves[:, 0] == -1).all() and not halves[:, 1:].any()


@kinds
@given(ids=st.lists(st.integers(0, 52), max_size=20))
@settings(max_examples=20, deadline=None)
def test_taking_rows_is_dequantizing_them_alone(kind, ids):
    packed = pack_blocks(kind, random_blocks(kind, 53, 96), 53, 96)
    taken = packed.take_rows(torch.tensor(ids, dtype=torch.long))
    assert torch.equal(taken, packed.dequantize()[ids])
    assert torch.equal(
        packed.take_rows(torch.tensor([[1, 2]]), torch.bfloat16)[0], packed.dequantize()[1:3].bfloat16()
    )


@kinds
def test_the_product_to_compare_with(kind):
    packed = pack_blocks(kind, random_blocks(kind, 21, 64), 21, 64)
    x = torch.randn(3, 64)
    out = linear_reference(x, packed)
    assert out.dtype == torch.float64
    by_hand = sum(x[2, column].double() * weight_by_hand(packed, 20, column) for column in range(64))
    torch.testing.assert_close(out[2, 20], by_hand, rtol=1e-12, atol=1e-12)


@kinds
def test_filling_a_part_of_a_stack(kind):
    stack = empty_packed(kind, 24, 64, experts=3)
    stack.data.zero_()
    blocks = random_blocks(kind, 24, 64)
    pack_blocks(kind, blocks, 24, 64, out=stack[1])
    assert torch.equal(unpack_blocks(stack)[1], blocks)
    assert not stack.data[0].any() and not stack.data[2].any()


def test_what_is_no_packed_matrix():
    with pytest.raises(ValueError, match="33 columns are no whole groups of 32"):
        empty_packed("q4_0", 16, 33)
    with pytest.raises(ValueError, match=r"17 bytes are no blocks of q4_0 \[1, 32\]"):
        pack_blocks("q4_0", torch.zeros(17, dtype=torch.uint8), 1, 32)
    with pytest.raises(ValueError, match=r"q8_0 \[16, 32\] is uint8 \[1, 544\], not torch.uint8 \[1, 288\]"):
        PackedMatrix("q8_0", 16, 32, torch.zeros(1, 288, dtype=torch.uint8))


@pytest.mark.parametrize("num_bytes", [0, 1, HUGE_PAGE - 1, HUGE_PAGE, 3 * HUGE_PAGE + 12345])
def test_memory_is_aligned_and_writable(num_bytes):
    memory = aligned_empty(num_bytes)
    assert (
        memory.shape == (num_bytes,) and memory.data_ptr() % (64 if num_bytes < HUGE_PAGE else HUGE_PAGE) == 0
    )
    memory.fill_(7)
    again = aligned_empty(num_bytes)
    again.fill_(8)
    assert (memory == 7).all()


@kinds
@pytest.mark.parametrize("rows, experts", [(1, 1), (16, 1), (53, 1), (21, 3)])
def test_the_compiled_kernels_pack_the_same_bytes(kind, rows, experts, monkeypatch):
    if library.load() is None:
        pytest.skip("no compiled kernels here")
    blocks = random_blocks(kind, rows, 96, experts)
    packed = pack_blocks(kind, blocks, rows, 96).data
    monkeypatch.setattr(library, "load", lambda: None)
    assert torch.equal(packed, pack_blocks(kind, blocks, rows, 96).data)
