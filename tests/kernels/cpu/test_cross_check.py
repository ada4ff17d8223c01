"""Every instruction set computes what the plain kernels compute: on this processor, on an emulated ARM, and
AVX-512's instructions written out in AVX2."""

import dataclasses
import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from lathe.kernels.cpu import build, library

PROGRAM = Path(__file__).with_name("cross_check.cpp")
SIMDE = Path(__file__).with_name("simde.h")
CROSS_COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"


def compile_program(compiler: str, linked: list[str], into: Path) -> Path:
    command = [compiler, "-std=c++17", "-O1", "-pthread", f"-I{build.SOURCES}", str(PROGRAM), *linked]
    build.run([*command, "-o", str(into)])
    return into


@pytest.fixture(scope="module")
def native_check(tmp_path_factory) -> Path:
    loaded = library.load()
    if loaded is None:
        pytest.skip(str(library.why_not()))
    linked = [str(loaded.path), f"-Wl,-rpath,{loaded.path.parent}"]
    into = tmp_path_factory.mktemp("check") / "check"
    return compile_program(build.find_compiler().command[0], linked, into)


def test_instruction_sets_agree_on_this_processor(native_check):
    done = subprocess.run([native_check], capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "plain: 5 tokens: experts q4_1: 0.0e+00" in done.stdout
    loaded = library.load()
    assert loaded is not None and f"{loaded.isa}: 5 tokens: experts q4_1: " in done.stdout


@pytest.mark.slow
def test_neon_agrees_with_this_processor(native_check, tmp_path):
    """Compiled for aarch64, run by an emulator, held against what is computed here: on aarch64 the plain
    kernels are no reference, as NEON belongs to every such processor and they use it, too."""
    if not shutil.which(CROSS_COMPILER) or not shutil.which(EMULATOR):
        pytest.skip(f"needs {CROSS_COMPILER} and {EMULATOR} (Debian: g++-aarch64-linux-gnu and qemu-user)")
    compiler = build.find_compiler(os.environ | {"CXX": CROSS_COMPILER})
    assert "neon" in compiler.instruction_sets
    objects = build.compile_objects(compiler, build.SOURCES, tmp_path)
    linked = ["-static", *map(str, objects.values())]
    check = compile_program(CROSS_COMPILER, linked, tmp_path / "check")
    expected = tmp_path / "expected"
    subprocess.run([native_check, "write", expected], check=True, timeout=110)
    done = subprocess.run([EMULATOR, check, "read", expected], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "neon: 5 tokens: experts q4_1: " in done.stdout
    # Products of whole numbers are exact, and their sums run in one order.
    loaded = library.load()
    if loaded is not None and loaded.isa != "plain":
        assert done.stdout.count(" same bits") >= 2 * 3 * len(("q8_0", "q4_0", "q4_1"))


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="AVX-512 is written out in AVX2")
def test_avx512_has_the_bits_of_avx2(tmp_path):
    """As far as that can be seen without such a processor: SIMDe's functions are its instructions."""
    compiler = build.find_compiler()
    if build.refuses(compiler.command, ["-include", "simde/x86/avx512.h"]):
        pytest.skip("needs SIMDe (Debian: libsimde-dev)")
    spelled_out = {"avx512": (*build.AVX2, "-include", str(SIMDE)), "avx2": build.AVX2, "plain": ()}
    # No processor is asked: none of AVX-512's own instructions is left.
    command = (*compiler.command, "-D__builtin_cpu_supports(name)=true")
    spelled = dataclasses.replace(compiler, command=command, instruction_sets=spelled_out)
    objects = build.compile_objects(spelled, build.SOURCES, tmp_path)
    check = compile_program(compiler.command[0], ["-static", *map(str, objects.values())], tmp_path / "check")
    done = subprocess.run([check], capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "avx512: 5 tokens: experts q4_1: " in done.stdout
    assert done.stdout.count(" same bits") == done.stdout.count("avx512: ")
