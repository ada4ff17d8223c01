"""A step's kernel calls, recorded once from the model's own forward pass and replayed by one native call.

`Recorder` is an arithmetic (see model/linear.py) whose numbers are `Value`s: places that a step's numbers
will be at. Running the model's forward with it writes down a table of calls; `Program.run` replays the table
for a step of any size up to `capacity` tokens, as a CUDA graph would be replayed on a GPU. So the model is
described in one file, and a token costs one call from Python.

Three things are put together on the way, each of which saves a wait for all threads: a sum with the product
that it waits for, the quantized form of activations with what computes them, and the norms and rotations of
heads with attention.
"""

# T tokens of a step, D hidden size, H query heads, K key-value heads, d head dimension, E experts, k experts
# of a token, I inner size, R rows of which logits are wanted, V vocabulary

from __future__ import annotations

import ctypes
from array import array
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lathe.kernels.attention import Span
from lathe.kernels.cpu.library import Library
from lathe.kernels.cpu.memory import aligned_empty
from lathe.kernels.cpu.table import PAGE_SIZE, Code, Kind, Matrix, Op, Step
from lathe.kernels.cpu.weights import Unsupported, matrix

NARROW_BYTES, WIDE_BYTES = 48, 72  # 32 quantized activations: Narrow and Wide in native/tiles.h
MOST_HEAD_DIM = 256


class Room:
    """Memory of the table's calls, which goes back to the recorder when the last value in it is gone."""

    def __init__(self, recorder: Recorder, data: Tensor):
        self.recorder = recorder
        self.data = data

    def __del__(self) -> None:
        self.recorder.free[self.data.numel()].append((len(self.recorder.calls), self.data))

    @property
    def pointer(self) -> int:
        return self.data.data_ptr()


@dataclass
class Call:
    """A row of the table in the making. What it reads and writes decides where threads wait."""

    code: Code
    index: int
    a: list[int]
    f: tuple[float, ...] = ()
    reads: set[int] = field(default_factory=set)
    writes: set[int] = field(default_factory=set)

    @property
    def meets(self) -> bool:
        """Whether all threads meet inside it."""
        return self.code in (Code.ATTEND, Code.EXPERTS)


class Rope(NamedTuple):
    cos: Room  # [T, d/2]
    sin: Room


@dataclass(eq=False)
class Value:
    """Numbers of each token: `width` of them, perhaps as heads. `call` computes them.

    `norm` (weight and epsilon) and `rope` are still to be applied to each head; attention does.
    """

    recorder: Recorder
    room: Room
    width: int
    call: Call | None = None
    rows_only: bool = False
    head_dim: int | None = None
    norm: tuple[Tensor, float] | None = None
    rope: Rope | None = None
    narrow: Room | None = None
    wide: Room | None = None

    def unflatten(self, _: int, sizes: Sequence[int]) -> Value:
        """[T, H d] as [T, H, d]."""
        return Value(self.recorder, self.room, self.width, self.call, head_dim=sizes[-1])

    def flatten(self, _: int) -> Value:
        self.head_dim = None
        return self

    def __add__(self, other: Value) -> Value:
        return self.recorder.add(self, other)


class Recorder:
    """An arithmetic that writes down what is asked of it, for steps of up to `capacity` tokens."""

    def __init__(self, capacity: int, key_cache_LSKd: Tensor, value_cache_LSKd: Tensor):
        self.capacity = capacity
        self.keys, self.values = key_cache_LSKd, value_cache_LSKd
        self.calls: list[Call] = []
        self.keep: list[Any] = []  # what the table points to
        self.free: dict[int, list[tuple[int, Tensor]]] = defaultdict(list)  # by size; since which call

    def inputs(self) -> tuple[None, None]:
        """In place of token ids and positions, which every step brings."""
        return None, None

    def room(self, num_bytes: int, first: Call | None = None) -> Room:
        """Memory that no call touches from `first` on (None: the next one). Calls before it may; `finish`
        sees to it that they are over."""
        since = len(self.calls) if first is None else first.index
        for place, (freed, data) in enumerate(self.free[num_bytes]):
            if freed <= since:
                del self.free[num_bytes][place]
                return Room(self, data)
        return Room(self, aligned_empty(num_bytes))

    def floats(self, width: int) -> Room:
        return self.room(self.capacity * width * 4)

    def embed(self, _: None, table: Any, __: Any = None) -> Value:
        pointer, made = self._matrix(table)
        if made.kind == Kind.FP8:
            raise Unsupported("an embedding in FP8")
        out = self.floats(made.columns)
        return Value(self, out, made.columns, self._call(Code.EMBED, [pointer, out.pointer], writes=[out]))

    def rope(self, frequencies: Tensor, scale: float, _: None) -> Rope:
        """Cosines and sines of the step's positions, for each frequency; `scale` is YaRN's."""
        frequencies = self._kept(frequencies)
        half = len(frequencies)
        rope = Rope(self.floats(half), self.floats(half))
        a = [frequencies.data_ptr(), half, rope.cos.pointer, rope.sin.pointer]
        self._call(Code.ROPE_TABLE, a, (scale,), writes=rope)
        return rope

    def rotate(self, x: Value, rope: Rope) -> Value:
        x.rope = rope
        return x

    def norm(self, x: Value, weight: Tensor, eps: float) -> Value:
        weight = self._kept(weight)
        if x.head_dim is not None:
            x.norm = (weight, eps)
            return x
        out = self.floats(x.width)
        a = [x.room.pointer, x.width, weight.data_ptr(), out.pointer, 0, 0, int(x.rows_only)]
        call = self._call(Code.NORM, a, (eps,), reads=[x.room], writes=[out])
        return Value(self, out, x.width, call, x.rows_only)

    def linear(self, x: Value, weight: Any, bias: Tensor | None = None) -> Value:
        pointer, made = self._matrix(weight, bias)
        forms = self._forms(x, made)
        out = None if x.rows_only else self.floats(made.rows)  # logits go to the step's own memory
        a = [pointer, *forms, 0 if out is None else out.pointer, 0, int(x.rows_only)]
        call = self._call(Code.LINEAR, a, reads=self._rooms(x), writes=[out] if out else [])
        return Value(self, out or x.room, made.rows, call)

    def swiglu(self, gate: Value, up: Value) -> Value:
        out = self.floats(gate.width)
        a = [gate.room.pointer, up.room.pointer, gate.width, out.pointer, 0, 0]
        call = self._call(Code.SWIGLU, a, reads=[gate.room, up.room], writes=[out])
        return Value(self, out, gate.width, call)

    def add(self, x: Value, y: Value) -> Value:
        """x + y, by the call that computes y where it can."""
        places = {Code.LINEAR: 5, Code.EXPERTS: 16}
        last = self.calls[-1]
        place = places.get(last.code)
        if y.call is last and place is not None and not last.a[place]:
            last.a[place] = x.room.pointer
            last.reads.add(x.room.pointer)
            return y
        out = self.floats(x.width)
        a = [x.room.pointer, y.room.pointer, out.pointer, x.width]
        call = self._call(Code.ADD, a, reads=[x.room, y.room], writes=[out])
        return Value(self, out, x.width, call)

    def attend(self, layer: int, q: Value, k: Value, v: Value) -> Value:
        d = q.head_dim
        if (
            d is None
            or d > MOST_HEAD_DIM
            or d % 8
            or q.rope is None
            or k.rope is None
            or q.rope is not k.rope
        ):
            raise Unsupported(f"attention with heads of {d}")
        out = self.floats(q.width)
        eps = q.norm[1] if q.norm else 0.0
        rooms = [q.room, k.room, v.room, out]
        a = [room.pointer for room in rooms]
        a += [self.keys[layer].data_ptr(), self.values[layer].data_ptr()]
        a += [q.width // d, k.width // d, d, q.rope.cos.pointer, q.rope.sin.pointer]
        a += [side.norm[0].data_ptr() if side.norm else 0 for side in (q, k)]
        a += [0, 0, int(self.keys.dtype == torch.float16)]
        reads = [q.room, k.room, v.room, *q.rope]
        call = self._call(Code.ATTEND, a, (eps, d**-0.5), reads=reads, writes=[q.room, out])
        return Value(self, out, q.width, call, head_dim=d)

    def route(self, logits: Value, num_chosen: int, normalized: bool) -> tuple[Value, Value]:
        ids, weights = self.floats(num_chosen), self.floats(num_chosen)
        a = [logits.room.pointer, logits.width, num_chosen, ids.pointer, weights.pointer, int(normalized)]
        call = self._call(Code.ROUTE, a, reads=[logits.room], writes=[ids, weights])
        return Value(self, ids, num_chosen, call), Value(self, weights, num_chosen, call)

    def run_experts(self, x: Value, gate_up: Any, down: Any, ids: Value, weights: Value) -> Value:
        gate_pointer, gate = self._matrix(gate_up, part=0, parts=2)
        up_pointer, _ = self._matrix(gate_up, part=1, parts=2)
        down_pointer, last = self._matrix(down)
        forms = self._forms(x, gate)
        num_chosen, num_experts = (
            ids.width,
            len(gate_up[0]) if isinstance(gate_up, tuple) else gate_up.shape[0],
        )
        order, begins = self.floats(2 * num_chosen), self.room(4 * (2 * num_experts + 1))
        inner = self.floats(2 * num_chosen * gate.rows)
        activated = self.room(self.capacity * num_chosen * (gate.rows // 32 + 1) * WIDE_BYTES)
        outs, out = self.floats(num_chosen * last.rows), self.floats(last.rows)
        a = [gate_pointer, up_pointer, down_pointer, *forms, ids.room.pointer, weights.room.pointer]
        a += [num_chosen, num_experts]
        a += [room.pointer for room in (order, begins, inner, activated, outs, out)] + [0]
        call = self._call(
            Code.EXPERTS,
            a,
            reads=[*self._rooms(x), ids.room, weights.room],
            writes=[order, begins, inner, activated, outs, out],
        )
        return Value(self, out, last.rows, call)

    def gather(self, x: Value) -> Value:
        """Only the rows whose logits are wanted."""
        out = self.floats(x.width)
        call = self._call(
            Code.GATHER, [x.room.pointer, x.width, out.pointer, 0, 0], reads=[x.room], writes=[out]
        )
        return Value(self, out, x.width, call, rows_only=True)

    def finish(self, library: Library) -> Program:
        """The table. A call waits for all threads where it touches what was written, or writes what was read,
        since they last met."""
        written: set[int] = set()
        read: set[int] = set()
        table = (Op * len(self.calls))()
        for op, call in zip(table, self.calls, strict=True):
            op.waits = int(bool(written & (call.reads | call.writes) or read & call.writes))
            if op.waits or call.meets:
                written, read = set(), set()
            written |= call.writes
            read |= call.reads
            op.code = call.code
            op.a[: len(call.a)] = call.a
            op.f[: len(call.f)] = call.f
        return Program(library, table, self.capacity, [*self.keep, self.free, self.keys, self.values])

    def _call(
        self,
        code: Code,
        a: list[int],
        f: tuple[float, ...] = (),
        *,
        reads: Sequence[Room] = (),
        writes: Sequence[Room] = (),
    ) -> Call:
        call = Call(
            code, len(self.calls), a, f, {room.pointer for room in reads}, {room.pointer for room in writes}
        )
        self.calls.append(call)
        return call

    def _kept(self, vector: Tensor) -> Tensor:
        vector = vector.detach().float().contiguous()
        self.keep.append(vector)
        return vector

    def _matrix(
        self, weight: Any, bias: Tensor | None = None, *, part: int = 0, parts: int = 1
    ) -> tuple[int, Matrix]:
        made, keep = matrix(weight, bias, part=part, parts=parts)
        self.keep += [made, *keep]
        return ctypes.addressof(made), made

    def _forms(self, x: Value, made: Matrix) -> list[int]:
        """Pointers to the activations as fp32, narrow and wide; what the matrix needs is there."""
        kind = Kind(made.kind)
        if kind.is_packed:
            name, num_bytes = ("wide", WIDE_BYTES) if kind == Kind.Q8_0 else ("narrow", NARROW_BYTES)
            if getattr(x, name) is None:
                setattr(x, name, self._quantized(x, name, self.capacity * x.width // 32 * num_bytes))
        narrow, wide = (0 if room is None else room.pointer for room in (x.narrow, x.wide))
        return [x.room.pointer, narrow, wide]

    def _quantized(self, x: Value, name: str, num_bytes: int) -> Room:
        """Room for a quantized form, which what computes x fills as well, where it can."""
        places = {Code.NORM: 4, Code.SWIGLU: 4, Code.GATHER: 3, Code.ATTEND: 13}
        call = x.call
        # The heads of one group are quantized by whoever computed them, so they must be whole groups of 32.
        if call is not None and call.code in places and (call.code != Code.ATTEND or call.a[8] % 32 == 0):
            room = self.room(num_bytes, first=call)
            call.a[places[call.code] + (name == "wide")] = room.pointer
            call.writes.add(room.pointer)
            return room
        room = self.room(num_bytes)
        a = [x.room.pointer, x.width, 0, 0]
        a[2 + (name == "wide")] = room.pointer
        self._call(Code.QUANTIZE, a, reads=[x.room], writes=[room])
        return room

    @staticmethod
    def _rooms(x: Value) -> list[Room]:
        return [room for room in (x.room, x.narrow, x.wide) if room is not None]


class Program:
    """A recorded step, for up to `capacity` tokens."""

    def __init__(self, library: Library, table: ctypes.Array[Op], capacity: int, keep: list[Any]):
        self.library = library
        self.table = table
        self.capacity = capacity
        self._keep = keep

    def run(
        self,
        token_ids: Sequence[int],
        positions: Sequence[int],
        slots: Sequence[int],
        spans: Sequence[Span],
        rows: Sequence[int],
        vocab_size: int,
        out_RV: Tensor | None = None,
    ) -> Tensor:
        """Reads these tokens into the cache. Returns logits [R, V] of the tokens that `rows` names: in
        `out_RV` where that is given, which is contiguous float32."""
        if max(len(token_ids), len(rows)) > self.capacity:
            raise ValueError(f"{len(token_ids)} tokens, {len(rows)} rows; there is room for {self.capacity}")
        logits_RV = torch.empty(len(rows), vocab_size) if out_RV is None else out_RV
        native_spans, pages = _native_spans(spans)
        # One array for all: between two steps of a small model each object that is made would show.
        numbers = array("i", [*token_ids, *positions, *slots, *rows, *native_spans, *pages])
        start, num_tokens, num_rows = numbers.buffer_info()[0], len(token_ids), len(rows)
        spans_at = start + 4 * (3 * num_tokens + num_rows)
        step = Step(
            num_tokens,
            num_rows,
            len(spans),
            0,
            start,
            start + 4 * num_tokens,
            start + 8 * num_tokens,
            start + 12 * num_tokens,
            spans_at,
            spans_at + 4 * len(native_spans),
            logits_RV.data_ptr(),
        )
        self.library.native.lathe_run(self.table, len(self.table), ctypes.byref(step))
        return logits_RV


def _native_spans(spans: Sequence[Span]) -> tuple[list[int], list[int]]:
    """Of each span start, queries, keys and first page, one after the other; and all their pages."""
    rows: list[int] = []
    pages: list[int] = []
    for span in spans:
        num_keys = sum(last - first for first, last in span.slots)
        rows += (span.start, span.num_queries, num_keys, len(pages))
        for first, last in span.slots:
            pages += range(first // PAGE_SIZE, -(-last // PAGE_SIZE))
    return rows, pages
