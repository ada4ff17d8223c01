"""The machine under a benchmark: what it is, how fast it reads memory, and how busy others keep it."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import psutil

T = TypeVar("T")
NOISE_LIMIT = 0.10  # of one core, used by other processes
MAX_TRIES = 5


def describe() -> str:
    """Processor, memory, commit and date, in one line."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    processor = names[0].partition(":")[2].strip() if names else platform.machine()
    git = ["git", "-C", str(Path(__file__).parent)]
    commit = subprocess.run(
        [*git, "describe", "--always", "--dirty"], capture_output=True, text=True
    ).stdout.strip()
    return (
        f"{processor}, {os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB, "
        f"Python {platform.python_version()}, {datetime.date.today()}, commit {commit}"
    )


def kernels(threads: int) -> str:
    """Which of Lathe's compiled kernels are used, or why none. In a process that ends: they start threads."""
    code = "from lathe.kernels.cpu.library import describe; print(describe())"
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    return run.stdout.strip()


class Bandwidth:
    """GB/s that `threads` threads read, measured anew at each call (0.5 s)."""

    def __init__(self, threads: int):
        self.threads = threads
        self.folder = tempfile.TemporaryDirectory()
        self.program = Path(self.folder.name) / "read_bandwidth"
        source = Path(__file__).with_suffix("").with_name("read_bandwidth.c")
        command = ["cc", "-O3", "-march=native", "-fopenmp", source, "-o", self.program]
        if subprocess.run(command).returncode:
            sys.exit("a C compiler with OpenMP is needed to measure the memory's bandwidth")

    def measure(self) -> float:
        out = subprocess.run(
            [self.program, str(self.threads)], capture_output=True, text=True, check=True
        ).stdout
        return float(out.split()[0])


def quietly(measure: Callable[[], T], pids: Sequence[int], tries: int = MAX_TRIES) -> tuple[T, float]:
    """`measure()`, and the share of a core that processes other than `pids` and this one had meanwhile.

    Measured again, up to `tries` times, while that share is above NOISE_LIMIT; then the quietest counts.
    """
    measured: list[tuple[float, T]] = []
    for _ in range(tries):
        if measured:
            time.sleep(2)  # what disturbed may be over then
        busy, ours, start = _busy_s(), _used_s(pids), time.perf_counter()
        result = measure()
        seconds = time.perf_counter() - start
        share = max(0.0, (_busy_s() - busy - (_used_s(pids) - ours)) / seconds)
        measured.append((share, result))
        if share <= NOISE_LIMIT:
            break
    share, result = min(measured, key=lambda entry: entry[0])
    return result, share


def _busy_s() -> float:
    times = psutil.cpu_times()
    return sum(getattr(times, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq"))


def _used_s(pids: Sequence[int]) -> float:
    """Processor seconds of these processes, this one, and the children it waited for."""
    own = os.times()
    total = own.user + own.system + own.children_user + own.children_system
    for pid in pids:
        times = psutil.Process(pid).cpu_times()
        total += times.user + times.system
    return total
