"""A step's calls as the compiled kernels read them: the C structures of native/interface.h."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, c_double, c_float, c_int32, c_int64, c_void_p
from enum import IntEnum

PAGE_SIZE = 16  # tokens of a page of the key-value cache, whoever computes


class Kind(IntEnum):
    """How a matrix's numbers are stored."""

    F32 = 0
    BF16 = 1
    FP8 = 2
    Q8_0 = 3
    Q4_0 = 4
    Q4_1 = 5

    @property
    def is_packed(self) -> bool:
        return self >= Kind.Q8_0


class Code(IntEnum):
    """Which kernel a call runs. What its arguments mean stands above each kernel in native/ops.h."""

    EMBED = 0
    ROPE_TABLE = 1
    NORM = 2
    LINEAR = 3
    SWIGLU = 4
    ATTEND = 5
    ROUTE = 6
    EXPERTS = 7
    GATHER = 8
    ADD = 9
    QUANTIZE = 10


class Matrix(Structure):
    _fields_ = [
        ("kind", c_int32),
        ("rows", c_int32),
        ("columns", c_int32),
        ("reserved", c_int32),
        ("data", c_void_p),
        ("expert_bytes", c_int64),
        ("scales", c_void_p),
        ("expert_scales", c_int64),
        ("bias", c_void_p),
    ]


class Op(Structure):
    _fields_ = [("code", c_int32), ("waits", c_int32), ("a", c_int64 * 18), ("f", c_float * 4)]


class Step(Structure):
    _fields_ = [
        ("num_tokens", c_int32),
        ("num_rows", c_int32),
        ("num_spans", c_int32),
        ("reserved", c_int32),
        ("token_ids", c_void_p),
        ("positions", c_void_p),
        ("slots", c_void_p),
        ("rows", c_void_p),
        ("spans", c_void_p),
        ("pages", c_void_p),
        ("logits", c_void_p),
    ]


class Draw(Structure):
    _fields_ = [
        ("temperature", c_float),
        ("top_p", c_float),
        ("min_p", c_float),
        ("repetition", c_float),
        ("presence", c_float),
        ("frequency", c_float),
        ("top_k", c_int32),
        ("row", c_int32),
        ("uniform", c_double),
        ("seen", c_void_p),
        ("counts", c_void_p),
    ]


class Drawn(Structure):
    _fields_ = [("token_id", c_int32), ("logprob", c_float), ("normalizer", c_float)]


def declare(native: ctypes.CDLL) -> None:
    """Tells ctypes what the functions of native/lathe.h take and give."""
    native.lathe_run.argtypes = [POINTER(Op), ctypes.c_int, POINTER(Step)]
    native.lathe_run.restype = None
    native.lathe_normalizer.argtypes = [c_void_p, ctypes.c_int]
    native.lathe_normalizer.restype = c_float
    native.lathe_draw.argtypes = [c_void_p, ctypes.c_int, POINTER(Draw), ctypes.c_int, POINTER(Drawn)]
    native.lathe_draw.restype = None
    native.lathe_pack.argtypes = [ctypes.c_int, c_void_p, ctypes.c_int, ctypes.c_int, c_void_p]
    native.lathe_pack.restype = None
