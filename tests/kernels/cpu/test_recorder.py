"""What the recorder writes down: no memory is used again too early, and threads wait wherever they must."""

import pytest
import torch
from one_call import PACKED, kernels, own_copy, random, weight_of
from races import races, touched
from tiny_steps import SHAPES, Steps, tiny

from lathe.engine import compiled
from lathe.kernels.attention import Span
from lathe.kernels.cpu.library import open_library
from lathe.kernels.cpu.memory import aligned_empty
from lathe.kernels.cpu.packed import PackedMatrix
from lathe.kernels.cpu.program import Recorder, Room
from lathe.kernels.cpu.table import Op
from lathe.kernels.cpu.weights import Unsupported, matrix
from lathe.kernels.fp8 import Fp8Matrix

KINDS = ["f32", "bf16", "fp8", *PACKED]
PROMPT = [(7 * i * i + 3 * i) % 300 for i in range(100)]
GUARD = 64  # bytes, on both sides


class Spacious(Recorder):
    """Gives every value room of its own, full of NaN, between guards that no call may touch."""

    def room(self, num_bytes, first=None):
        whole = aligned_empty(num_bytes + 2 * GUARD).fill_(0xFF)
        self.keep.append(whole)
        self.wholes = [*getattr(self, "wholes", []), whole]
        return Room(self, whole[GUARD : GUARD + num_bytes])

    def finish(self, library):
        program = super().finish(library)
        program.wholes = self.wholes
        return program


class Hasty(Recorder):
    """Has three rooms of each size and uses them in turn, though a call may still need what is in one."""

    def room(self, num_bytes, first=None):
        rooms = self.rooms = getattr(self, "rooms", {})
        used = rooms.setdefault(num_bytes, [])
        used.append(used[-3] if len(used) >= 3 else super().room(num_bytes, first))
        return used[-1]


def steps_of(shape, kind, monkeypatch, recorder):
    monkeypatch.setattr(compiled, "Recorder", recorder)
    return Steps(tiny(shape, kind), kernels(), capacity=128)


@pytest.mark.parametrize("shape", list(SHAPES))
@pytest.mark.parametrize("kind", KINDS)
def test_memory_used_again_changes_nothing(shape, kind, monkeypatch):
    """Beside a table in which every value has memory of its own. NaN in, no NaN out: nothing is read that was
    not written, and the guards say that nothing is written outside."""
    shared = steps_of(shape, kind, monkeypatch, Recorder)
    spacious = steps_of(shape, kind, monkeypatch, Spacious)
    cuts = [[60, 1, 39]]
    (got,) = shared.read([PROMPT], cuts)
    (expected,) = spacious.read([PROMPT], cuts)
    assert expected.isfinite().all()
    assert torch.equal(got, expected)
    for whole in spacious.program.wholes:
        assert bool((whole[:GUARD] == 0xFF).all() and (whole[-GUARD:] == 0xFF).all())


def test_memory_used_again_too_early_would_be_seen(monkeypatch):
    hasty = steps_of("qwen3", "q4_0", monkeypatch, Hasty)
    spacious = steps_of("qwen3", "q4_0", monkeypatch, Spacious)
    assert not torch.equal(hasty.read([PROMPT])[0], spacious.read([PROMPT])[0])


@pytest.mark.parametrize("shape", list(SHAPES))
@pytest.mark.parametrize("kind", KINDS)
def test_threads_wait_wherever_they_must(shape, kind, monkeypatch):
    program = steps_of(shape, kind, monkeypatch, Recorder).program
    assert races(program.table, program.capacity) == []
    needless = []
    for number, op in enumerate(program.table):
        if op.waits:
            op.waits = 0
            if not races(program.table, program.capacity):
                needless.append(number)
            op.waits = 1
    assert needless == []  # and a wait that is missing would be seen


@pytest.mark.parametrize(("kind", "most"), [("f32", 10), ("q4_0", 11)])
def test_threads_meet_seldom(kind, most, monkeypatch):
    """In a layer. Every meeting costs microseconds, of the milliseconds that a token takes. Heads of 16 are
    no whole groups of 32, so what attention puts out is quantized by a call of its own."""
    program = steps_of("qwen3", kind, monkeypatch, Recorder).program
    meetings = [op.waits + len(touched(op, 1)) - 1 for op in program.table]
    assert sum(meetings) <= most * 2 + 1


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.zeros(4, 8, dtype=torch.float16), "Tensor torch.float16"),
        (torch.zeros(4, 8, dtype=torch.float64), "Tensor torch.float64"),
        (torch.zeros(8, 4).T, "Tensor torch.float32"),
        (Fp8Matrix(torch.zeros(4, 8).to(torch.float8_e5m2), torch.ones(1, 1)), "float8_e5m2"),
    ],
)
def test_weights_that_kernels_do_not_know(weight, message):
    with pytest.raises(Unsupported, match=message):
        matrix(weight)


def test_parts_that_share_tiles_or_blocks():
    packed, _ = weight_of("q4_0", 40, 32)
    with pytest.raises(Unsupported, match="2 packed matrices in common tiles"):
        matrix(packed, part=1, parts=2)
    one, _ = weight_of("fp8", 384, 32)
    with pytest.raises(Unsupported, match="2 FP8 matrices in the blocks of 1"):
        matrix(one, part=1, parts=2)
    two, _ = weight_of("fp8", 384, 32, parts=2)
    with pytest.raises(Unsupported, match="1 FP8 matrices in the blocks of 2"):
        matrix(two)
    matrix(weight_of("fp8", 512, 32)[0], part=1, parts=2)


def test_tiles_that_start_anywhere():
    packed, _ = weight_of("q8_0", 32, 64)
    shifted = torch.empty(packed.num_bytes + 65, dtype=torch.uint8)
    place = -shifted.data_ptr() % 64 + 1
    data = shifted[place : place + packed.num_bytes].view(packed.data.shape)
    with pytest.raises(Unsupported, match="does not start at a multiple of 32"):
        matrix(PackedMatrix("q8_0", 32, 64, data))
    matrix(packed.row_range(16, 32))


def recorder_of_ten_tokens() -> Recorder:
    return Recorder(10, torch.zeros(1, 16, 2, 16), torch.zeros(1, 16, 2, 16))


def test_an_embedding_in_fp8():
    with pytest.raises(Unsupported, match="an embedding in FP8"):
        recorder_of_ten_tokens().embed(None, weight_of("fp8", 8, 32)[0])


@pytest.mark.parametrize("head_dim", [4, 12, 264])
def test_heads_that_kernels_do_not_know(head_dim):
    recorder = recorder_of_ten_tokens()
    x = recorder.embed(None, random(8, head_dim))
    heads = [recorder.linear(x, random(head_dim, head_dim)).unflatten(-1, (-1, head_dim)) for _ in range(3)]
    rope = recorder.rope(torch.ones(head_dim // 2), 1.0, None)
    with pytest.raises(Unsupported, match=f"attention with heads of {head_dim}"):
        recorder.attend(0, recorder.rotate(heads[0], rope), recorder.rotate(heads[1], rope), heads[2])


def test_a_product_is_added_to_two_others():
    """The first sum is made by the product's own call, the second by one of its own."""
    library, recorder = kernels(), recorder_of_ten_tokens()
    table, weight = random(8, 32), random(32, 32, seed=1)
    x, y = recorder.embed(None, table), recorder.embed(None, table)
    total = x + (y + recorder.linear(x, weight))
    recorder.linear(recorder.gather(total), torch.eye(32))
    program = recorder.finish(library)
    got = program.run([1, 2, 3], [0, 0, 0], [0, 0, 0], [], [0, 1, 2], 32)
    x_TK = table[[1, 2, 3]]
    torch.testing.assert_close(got, x_TK + (x_TK + x_TK @ weight.T))


def test_more_tokens_than_there_is_room_for(monkeypatch):
    steps = steps_of("qwen3", "f32", monkeypatch, Recorder)
    with pytest.raises(ValueError, match="129 tokens, 129 rows; there is room for 128"):
        steps.read([[1] * 129])


def test_a_step_that_wants_no_logits(monkeypatch):
    steps = steps_of("qwen3", "f32", monkeypatch, Recorder)
    logits = steps.program.run([1, 2], [0, 1], [0, 1], [Span(0, 2, ((0, 2),))], [], 300)
    assert logits.shape == (0, 300)


def test_the_table_is_what_the_kernels_read():
    """Op has no padding that C would place elsewhere."""
    assert (Op.a.offset, Op.f.offset) == (8, 8 + 18 * 8)
    assert open_library(own_copy("best"), None, 1).native.lathe_abi_version() > 0
