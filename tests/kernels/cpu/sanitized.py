"""Runs the kernels' tests on a library that is compiled with a sanitizer, in a process that has PyTorch, too.

    python tests/kernels/cpu/sanitized.py address,undefined [what pytest takes]
    python tests/kernels/cpu/sanitized.py thread [what pytest takes]

The first bad access, overflow or race ends the run with the sanitizer's report.
"""

import os
import subprocess
import sys
from pathlib import Path

from lathe.kernels.cpu import build

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
RUNTIMES = {"address": "libasan.so", "thread": "libtsan.so"}


def environment(library: Path, sanitize: str) -> dict[str, str]:
    """In which a Python that knows nothing of sanitizers can load such a library."""
    compiler = build.find_compiler().command[0]
    names = [RUNTIMES[each] for each in sanitize.split(",") if each in RUNTIMES]
    # The sanitizer looks for the C++ runtime's functions when it starts: before anything has loaded that.
    preloaded = [runtime_file(compiler, name) for name in (*names, "libstdc++.so")]
    return os.environ | {
        "LD_PRELOAD": " ".join(preloaded),
        "LATHE_CPU_LIBRARY": str(library),
        # Python keeps what it allocates for good. PyTorch's code is not watched: its waits look like races.
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        # A forked child starts threads of its own, which is tested.
        "TSAN_OPTIONS": "ignore_noninstrumented_modules=1 halt_on_error=1 report_signal_unsafe=0 "
        "die_after_fork=0",
    }


def runtime_file(compiler: str, name: str) -> str:
    found = subprocess.run(
        [compiler, f"-print-file-name={name}"], capture_output=True, text=True
    ).stdout.strip()
    if not Path(found).is_absolute():
        raise build.BuildFailed(f"{compiler} has no {name}")
    return str(Path(found).resolve())


def python_command(sanitize: str) -> list[str]:
    """The thread sanitizer needs addresses where it expects them, which newer kernels scatter too widely."""
    return (["setarch", "-R"] if sanitize == "thread" else []) + [sys.executable]


def main() -> int:
    sanitize, *arguments = sys.argv[1:]
    library = ROOT / "build" / sanitize.replace(",", "-") / build.LIBRARY.name
    build.build(library, sanitize=sanitize)
    about_building = ["--ignore", str(HERE / "test_build.py"), "--ignore", str(HERE / "test_sanitized.py")]
    tests = arguments or [str(HERE), *about_building]
    pytest = ["-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", "--timeout", "1200", *tests]
    command = [*python_command(sanitize), *pytest]
    return subprocess.run(command, env=environment(library, sanitize), cwd=ROOT).returncode


if __name__ == "__main__":
    raise SystemExit(main())
