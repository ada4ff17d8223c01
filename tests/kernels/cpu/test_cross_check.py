"""Every instruction set computes what the plain kernels compute, on this processor and an emulated ARM."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from lathe.kernels.cpu import build, library

PROGRAM = Path(__file__).with_name("cross_check.cpp")
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
