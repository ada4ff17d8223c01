"""What each call of a finished table reads and writes, from its arguments alone, and where calls race.

Written from the comments above the kernels in native/, knowing nothing of how the recorder lays out memory.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from typing import NamedTuple

from lathe.kernels.cpu.table import Code, Kind, Matrix, Op


class Touched(NamedTuple):
    """Addresses, as (first, last + 1), that all threads read and write between two meetings."""

    reads: list[tuple[int, int]]
    writes: list[tuple[int, int]]


def touched(op: Op, num_tokens: int) -> list[Touched]:
    """One for each part of the call; within a call, all threads meet between its parts."""
    a, T = list(op.a), num_tokens

    def floats(place: int, width: int, rows: int = T) -> list[tuple[int, int]]:
        return [(a[place], a[place] + 4 * width * rows)] if a[place] else []

    def quantized(place: int, width: int, rows: int = T) -> list[tuple[int, int]]:
        """The narrow form at this place and the wide one behind it."""
        sizes = (width // 32 * rows * num_bytes for num_bytes in (48, 72))
        return [(a[p], a[p] + n) for p, n in zip((place, place + 1), sizes, strict=True) if a[p]]

    def activations(matrix: Matrix) -> list[tuple[int, int]]:
        """x in the form that the matrix takes: for LINEAR at 1, 2, 3, for EXPERTS at 3, 4, 5."""
        first = 1 if op.code == Code.LINEAR else 3
        if not Kind(matrix.kind).is_packed:
            return floats(first, matrix.columns)
        place, num_bytes = (first + 2, 72) if matrix.kind == Kind.Q8_0 else (first + 1, 48)
        return [(a[place], a[place] + matrix.columns // 32 * num_bytes * T)]

    match op.code:
        case Code.EMBED:
            return [Touched([], floats(1, matrix_at(a[0]).columns))]
        case Code.ROPE_TABLE:
            return [Touched([], floats(2, a[1]) + floats(3, a[1]))]
        case Code.NORM:
            return [Touched(floats(0, a[1]), floats(3, a[1]) + quantized(4, a[1]))]
        case Code.LINEAR:
            matrix = matrix_at(a[0])
            return [Touched(activations(matrix) + floats(5, matrix.rows), floats(4, matrix.rows))]
        case Code.SWIGLU:
            return [Touched(floats(0, a[2]) + floats(1, a[2]), floats(3, a[2]) + quantized(4, a[2]))]
        case Code.GATHER:
            return [Touched(floats(0, a[1]), floats(2, a[1]) + quantized(3, a[1]))]
        case Code.ADD:
            return [Touched(floats(0, a[3]) + floats(1, a[3]), floats(2, a[3]))]
        case Code.QUANTIZE:
            return [Touched(floats(0, a[1]), quantized(2, a[1]))]
        case Code.ROUTE:
            return [Touched(floats(0, a[1]), floats(3, a[2]) + floats(4, a[2]))]
        case Code.ATTEND:
            H, K, d = a[6:9]
            q, tables = floats(0, H * d), floats(9, d // 2) + floats(10, d // 2)
            return [
                Touched(q + floats(1, K * d) + floats(2, K * d) + tables, q),
                Touched(q, floats(3, H * d) + quantized(13, H * d)),
            ]
        case Code.EXPERTS:
            gate, _, down = (matrix_at(a[place]) for place in range(3))
            k, E = a[8:10]
            ids, weights, order = floats(6, k), floats(7, k), floats(10, 2 * k)
            begins, inner, outs = (
                floats(11, 2 * E + 1, 1),
                floats(12, 2 * k * gate.rows),
                floats(14, k * down.rows),
            )
            forms = [(a[13], a[13] + T * k * (gate.rows // 32) * 72)]
            return [
                Touched(ids, order + begins),
                Touched(activations(gate) + order + begins, inner),
                Touched(inner, inner + forms),
                Touched(inner + forms + begins, outs),
                Touched(outs + order + weights + floats(16, down.rows), floats(15, down.rows)),
            ]
    raise AssertionError(f"a call of code {op.code}")


def matrix_at(pointer: int) -> Matrix:
    return Matrix.from_address(pointer)


def overlap(some: Iterable[tuple[int, int]], others: Iterable[tuple[int, int]]) -> bool:
    others = list(others)
    return any(a < d and c < b for a, b in some for c, d in others)


def races(table: ctypes.Array[Op], num_tokens: int) -> list[int]:
    """Calls that read or write what another wrote, or write what another read, since all threads last met."""
    found = []
    since: list[Touched] = []
    for number, op in enumerate(table):
        if op.waits:
            since = []
        for part, now in enumerate(touched(op, num_tokens)):
            if part:
                since = []
            for before in since:
                if overlap(before.writes, now.reads + now.writes) or overlap(before.reads, now.writes):
                    found.append(number)
            since.append(now)
    return sorted(set(found))
