"""Compiles native/*.cpp into the shared library that `library.py` loads.

Standard library only, and nothing of Lathe is imported: hatch_build.py runs this file where neither Lathe
nor PyTorch is installed yet. Afterwards `lathe kernels build` or `python -m lathe.kernels.cpu.build` runs it.

`kernels.cpp` is compiled once per instruction set that the compiler knows, all else once. Each file gets
    -DLATHE_ISA=avx2                                     (kernels.cpp only) the set that it is compiled for
    -D'LATHE_EACH_ISA(DO)=DO(avx512) DO(avx2) DO(plain)' all sets that there are, the best first
What the sets share must not be compiled with the flags of one: a function of a header that is not inlined is
kept once in the library, and a machine without AVX2 could get AVX2's copy. `shared_functions` finds such.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).with_name("native")
LIBRARY = Path(__file__).with_name("liblathe_cpu.dylib" if sys.platform == "darwin" else "liblathe_cpu.so")
COMPILERS = ("c++", "g++", "clang++")
# Without contraction a*b+c rounds twice wherever it is written so, on each instruction set and compiler.
FLAGS = ("-std=c++17", "-fPIC", "-pthread", "-fvisibility=hidden", "-ffp-contract=off", "-Wall", "-Wextra")
AVX2 = ("-mavx2", "-mfma", "-mf16c")
AVX512 = (*AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512vnni")
# By the compiler's target, the best first. Which one runs is decided where the library is loaded.
INSTRUCTION_SETS: dict[str, dict[str, tuple[str, ...]]] = {
    "x86_64": {"avx512": AVX512, "avx2": AVX2},
    "aarch64": {"neon": ("-march=armv8.2-a+dotprod+fp16",)},
    "arm64": {"neon": ("-march=armv8.2-a+dotprod+fp16",)},
}
# The library carries its C++ runtime: an environment's own (conda's) is often older than the compiler's.
OWN_RUNTIME = ("-static-libstdc++", "-static-libgcc", "-Wl,--exclude-libs,ALL")
JOBS = 2


class BuildFailed(Exception):
    """There is no compiler, or it refused the sources. The message is what a user reads."""


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler that works, and the instruction sets that it can compile for."""

    command: tuple[str, ...]
    target: str
    instruction_sets: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Built:
    """`compiled` is False where the library was newer than all sources and stayed as it was."""

    path: Path
    compiled: bool


def build(
    library: Path = LIBRARY,
    sources: Path = SOURCES,
    *,
    sanitize: str | None = None,
    force: bool = False,
    environ: Mapping[str, str] = os.environ,
) -> Built:
    """Make `library` from the C++ files in `sources`, unless it is newer than all of them.

    The compiler is $CXX, or the first of c++, g++ and clang++ that works. `sanitize` is a list as -fsanitize
    takes it. The library is replaced in one step, so that processes which have the old one open keep it.
    Raises BuildFailed.
    """
    if not force and is_fresh(library, sources):
        return Built(library, compiled=False)
    started = time.time_ns()
    compiler = find_compiler(environ)
    with tempfile.TemporaryDirectory(prefix="lathe-kernels-") as scratch:
        objects = compile_objects(compiler, sources, Path(scratch), sanitize)
        linked = link(compiler, objects, Path(scratch) / library.name, sanitize)
        os.utime(linked, ns=(started, started))  # a source that is saved meanwhile is newer
        install(linked, library)
    return Built(library, compiled=True)


def is_fresh(library: Path, sources: Path = SOURCES) -> bool:
    """Whether the library is there and newer than its sources and this file."""
    if not library.exists():
        return False
    made = library.stat().st_mtime_ns
    inputs = [each for each in sources.iterdir() if each.suffix in (".cpp", ".h")]
    return all(each.stat().st_mtime_ns <= made for each in (*inputs, Path(__file__)))


def find_compiler(environ: Mapping[str, str] = os.environ) -> Compiler:
    """$CXX, or the first of c++, g++ and clang++ that compiles a file. Raises BuildFailed."""
    if environ.get("CXX"):
        candidates = [tuple(shlex.split(environ["CXX"]))]
    else:
        candidates = [(name,) for name in COMPILERS]
    refusals = []
    for command in candidates:
        program = shutil.which(command[0], path=environ.get("PATH", ""))
        if program is None:
            continue
        command = (program, *command[1:])
        refusal = refuses(command, ())
        if not refusal:
            return examined(command)
        refusals.append(f"{shlex.join(command)} does not work: {refusal}")
    if refusals:
        raise BuildFailed("; ".join(refusals))
    if environ.get("CXX"):
        raise BuildFailed(f"CXX names a compiler that is not there: {environ['CXX']}")
    raise BuildFailed(f"no C++ compiler ({', '.join(COMPILERS)}) is in PATH")


def examined(command: tuple[str, ...]) -> Compiler:
    target = run([*command, "-dumpmachine"]).strip()
    known = INSTRUCTION_SETS.get(target.partition("-")[0], {})
    usable = {name: flags for name, flags in known.items() if not refuses(command, flags)}
    return Compiler(command, target, {**usable, "plain": ()})


def refuses(command: Sequence[str], flags: Sequence[str]) -> str:
    """Why this compiler doesn't compile a small file with these flags; empty where it does."""
    program = "#include <thread>\nint main() { return 0; }\n"
    arguments = [*command, *FLAGS, *flags, "-x", "c++", "-c", "-o", os.devnull, "-"]
    try:
        done = subprocess.run(arguments, input=program, capture_output=True, text=True, timeout=120)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return "" if done.returncode == 0 else (done.stderr.strip() or f"exit code {done.returncode}")


def compile_objects(
    compiler: Compiler, sources: Path, into: Path, sanitize: str | None = None
) -> dict[str, Path]:
    """Object files by name: `kernels.avx2`, `kernels.plain`, and one for each other source."""
    sets = " ".join(f"DO({name})" for name in compiler.instruction_sets)
    always = [*compiler.command, *FLAGS, *optimization(sanitize), f"-DLATHE_EACH_ISA(DO)={sets}"]
    jobs = {}
    for source in sorted(sources.glob("*.cpp")):
        if source.stem == "kernels":
            for name, flags in compiler.instruction_sets.items():
                jobs[f"kernels.{name}"] = [*always, *flags, f"-DLATHE_ISA={name}", "-c", str(source)]
        else:
            jobs[source.stem] = [*always, "-c", str(source)]
    if not jobs:
        raise BuildFailed(f"{sources} holds no C++ sources")
    objects = {name: into / f"{name}.o" for name in jobs}
    with ThreadPoolExecutor(JOBS) as pool:
        for _ in pool.map(lambda name: run([*jobs[name], "-o", str(objects[name])]), jobs):
            pass
    return objects


def optimization(sanitize: str | None) -> tuple[str, ...]:
    if sanitize is None:
        return ("-O3",)
    return ("-O1", "-g", "-fno-omit-frame-pointer", f"-fsanitize={sanitize}", "-fno-sanitize-recover=all")


def link(compiler: Compiler, objects: Mapping[str, Path], into: Path, sanitize: str | None = None) -> Path:
    command = [*compiler.command, "-shared", "-pthread", *map(str, objects.values()), "-o", str(into)]
    if sanitize is not None:
        run([*command, *optimization(sanitize)])
    elif "linux" not in compiler.target:
        run(command)
    else:
        try:
            run([*command, *OWN_RUNTIME])
        except BuildFailed:  # Fedora, for one, keeps the static runtime in a package of its own
            run(command)
    return into


def install(linked: Path, library: Path) -> None:
    """Put the library into its place, in one step."""
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        beside = library.with_name(f"{library.name}.{os.getpid()}")
        shutil.copy2(linked, beside)
        beside.replace(library)
    except OSError as error:
        raise BuildFailed(f"{library} can't be written: {error.strerror}") from error


def shared_functions(object_file: Path) -> list[str]:
    """The weak definitions in an object file, by its symbol table: what the linker may take from any object,
    whichever instructions it holds. An instruction set's object must have none. Needs `nm`."""
    lines = run(["nm", "--demangle", "--defined-only", str(object_file)]).splitlines()
    symbols = (line.split(maxsplit=2) for line in lines)
    return [name for _, kind, name in symbols if kind in "WVu" and not name.startswith("DW.ref.")]


def run(command: Sequence[str]) -> str:
    """Its output. Raises BuildFailed with what it said."""
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise BuildFailed(f"{command[0]} can't be run: {error.strerror}") from error
    if done.returncode:
        said = done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}"
        raise BuildFailed(f"{shlex.join(command)}\n{said}")
    return done.stdout


def main() -> int:
    parser = argparse.ArgumentParser(description="Compile Lathe's CPU kernels.")
    parser.add_argument("--into", type=Path, default=LIBRARY, metavar="FILE", help="the library to write")
    parser.add_argument("--force", action="store_true", help="compile even where nothing changed")
    parser.add_argument("--sanitize", metavar="LIST", help="address,undefined or thread")
    options = parser.parse_args()
    try:
        built = build(options.into, sanitize=options.sanitize, force=options.force)
    except BuildFailed as error:
        sys.stderr.write(f"No CPU kernels were compiled: {error}\n")
        return 1
    sys.stderr.write(f"{built.path} {'was compiled' if built.compiled else 'is up to date'}.\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
