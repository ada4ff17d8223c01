"""Finds and loads the compiled kernels. Where there are none, `why_not()` says so and what would help."""

from __future__ import annotations

import ctypes
import functools
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from lathe.errors import LatheError, UserError
from lathe.kernels.cpu import build
from lathe.kernels.cpu.table import declare

# Raised together with lathe_abi_version in native/ when a function or a table's layout changes.
ABI_VERSION = 4


class NoLibrary(LatheError):
    """The compiled kernels can't be used here. The message says why, and what would help."""


@dataclass(frozen=True)
class Library:
    """The compiled kernels, their threads started. `isa` is the instruction set in use, as "avx2"."""

    native: ctypes.CDLL
    path: Path
    isa: str
    num_threads: int


def load() -> Library | None:
    """This process's kernels, or None where there are none: then plain PyTorch computes.

    LATHE_CPU_ISA=plain (avx2, avx512, neon) takes that instruction set instead of the processor's best;
    LATHE_CPU_LIBRARY names another library, as one with sanitizers. As many threads as PyTorch has now.
    """
    found = _found()
    return found if isinstance(found, Library) else None


def why_not() -> str | None:
    """What a user reads where `load()` gives None: "no compiled kernels: … ; run `lathe kernels build`"."""
    found = _found()
    return None if isinstance(found, Library) else f"no compiled kernels: {found}"


@functools.cache
def _found() -> Library | NoLibrary:
    path = Path(os.environ.get("LATHE_CPU_LIBRARY") or build.LIBRARY)
    try:
        return open_library(path, os.environ.get("LATHE_CPU_ISA") or None, torch.get_num_threads())
    except NoLibrary as error:
        return error


def describe() -> str:
    """One line for people: the instruction set and threads in use, or why there are no kernels."""
    found = _found()
    if isinstance(found, NoLibrary):
        return f"none: {found}"
    return f"{found.isa}, {found.num_threads} threads, {found.path}"


def open_library(path: Path, isa: str | None = None, num_threads: int = 1) -> Library:
    """The library at `path` with the kernels of `isa` (None: the processor's best).

    Raises NoLibrary, and UserError where that `isa` can't be had."""
    if not path.exists():
        raise NoLibrary(f"{path} is not there; {how_to_build()}")
    try:
        native = ctypes.CDLL(str(path))
        native.lathe_isa.restype = ctypes.c_char_p
        native.lathe_init.argtypes = [ctypes.c_char_p, ctypes.c_int]
        version = native.lathe_abi_version()
        if version == ABI_VERSION:
            declare(native)
    except (OSError, AttributeError) as error:
        raise NoLibrary(f"{path} can't be loaded: {error}; {how_to_build()}") from error
    if version != ABI_VERSION:
        raise NoLibrary(
            f"{path} was compiled from other sources (version {version}, not {ABI_VERSION}); {how_to_build()}"
        )
    if native.lathe_init(None if isa is None else isa.encode(), num_threads):
        if isa is None:
            raise NoLibrary(f"{path} could not start its {num_threads} threads")
        raise UserError(f"LATHE_CPU_ISA={isa}: {path} has no such kernels, or this processor can't run them.")
    return Library(native, path, native.lathe_isa().decode(), num_threads)


def how_to_build() -> str:
    try:
        build.find_compiler()
    except build.BuildFailed as error:
        return f"{error}; install a C++ compiler and run `lathe kernels build`"
    return "run `lathe kernels build`"
