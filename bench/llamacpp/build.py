"""Builds llama.cpp for this very machine, as fast as it gets: what Lathe is measured against.

    python bench/llamacpp/build.py [--folder ~/.cache/lathe-bench] [--jobs 2]

The source is the one inside llama-cpp-python's source distribution on PyPI. It is compiled in Release mode
with GGML_NATIVE (all of this processor's instructions; no instruction that another one lacks is left out),
OpenMP, llamafile's matrix products and run-time repacking. Needs cmake and a C++ compiler, 3 GB of disk
and, on two cores, ten minutes. What is built already is left alone.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

VERSION = "0.3.36"  # of llama-cpp-python; its llama.cpp is upstream's 0c1e57098
FOLDER = Path(os.environ.get("LATHE_BENCH", "~/.cache/lathe-bench")).expanduser()
OPTIONS = {
    "CMAKE_BUILD_TYPE": "Release",
    "GGML_NATIVE": "ON",
    "GGML_OPENMP": "ON",
    "GGML_LLAMAFILE": "ON",
    "GGML_CPU_REPACK": "ON",
    "GGML_CCACHE": "OFF",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_BUILD_APP": "OFF",
    "LLAMA_BUILD_UI": "OFF",
    "LLAMA_USE_PREBUILT_UI": "OFF",
    "LLAMA_OPENSSL": "OFF",
}
PROGRAMS = ("llama-bench", "llama-batched-bench", "llama-server", "llama-perplexity", "llama-quantize")


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    made.add_argument("--folder", type=Path, default=FOLDER, help="default: $LATHE_BENCH, or this")
    made.add_argument("--jobs", type=int, default=2, help="compilers at once")
    options = made.parse_args()
    source = unpacked(options.folder.expanduser())
    build = build_folder(options.folder.expanduser())
    settings = [f"-D{name}={value}" for name, value in OPTIONS.items()]
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    run(["cmake", "-S", source, "-B", build, *generator, *settings])
    run(["nice", "cmake", "--build", build, "-j", str(options.jobs), "--target", "llama", *PROGRAMS])
    compile_peer(source, build / "bin")
    print(f"\nbuilt in {build / 'bin'}:")
    print("\n".join(sorted(path.name for path in (build / "bin").iterdir())))


def build_folder(folder: Path = FOLDER) -> Path:
    return folder / f"llamacpp-{VERSION}"


def built(name: str) -> Path:
    """A program or library of the build. Exits, saying what to do, when there is none."""
    path = build_folder() / "bin" / name
    if not path.exists():
        sys.exit(f"{path} is not there. Build it: python bench/llamacpp/build.py")
    return path


def unpacked(folder: Path) -> Path:
    """llama.cpp's source, downloaded by pip when it isn't here yet."""
    name = f"llama_cpp_python-{VERSION}"
    if not (folder / name).is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        archive = folder / f"{name}.tar.gz"
        if not archive.exists():
            pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:"]
            run([*pip, "--dest", folder, f"llama-cpp-python=={VERSION}"])
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
    return folder / name / "vendor" / "llama.cpp"


def compile_peer(source: Path, bin: Path) -> None:
    """peer.cpp: what the benchmarks drive llama.cpp through."""
    code = Path(__file__).with_name("peer.cpp")
    includes = [f"-I{source / 'include'}", f"-I{source / 'ggml/include'}"]
    libraries = [f"-L{bin}", "-lllama", "-lggml", "-lggml-base", f"-Wl,-rpath,{bin}"]
    run([os.environ.get("CXX", "c++"), "-std=c++17", "-O2", *includes, code, *libraries, "-o", bin / "peer"])


def run(command: list[str | Path]) -> None:
    print("+", *command, flush=True)
    if code := subprocess.run(command).returncode:
        sys.exit(f"{command[0]} ended with exit code {code}")


if __name__ == "__main__":
    main()
