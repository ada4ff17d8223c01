"""Sandboxes by the thousand, and how long one takes.

    python bench/sandboxes.py latency            one at a time, beside bubblewrap where it is installed
    python bench/sandboxes.py warm --count 1000  alive at once, each having run a command in its own overlay
    python bench/sandboxes.py cold --count 20000 environments: made, each run once and verified
    python bench/sandboxes.py python             pytest runs, with and without warm Python

Large counts are brought up in steps and torn down gently; a machine whose memory runs short ends the run.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import statistics
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

import psutil
from rich.console import Console
from rich.progress import Progress

from lathe.sandbox.pool import Pool, open_pool
from lathe.sandbox.spec import SandboxSpec
from lathe.types import Limits, Sandbox

SMALL = SandboxSpec(
    limits=Limits(memory_bytes=None, num_processes=100, disk_bytes=64 << 20, num_files=20_000)
)
STEPS = (100, 1_000, 5_000, 10_000, 20_000)
MIN_FREE_BYTES = 3 << 30
BOXES_PER_SHARD = 2_000
# Plugins that happen to be installed would cost more than all else.
PYTEST = """
import os, sys
os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
import pytest
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "."]))
"""
TESTS = "def test_one():\n    assert 1 + 1 == 2\n\n\ndef test_two():\n    assert 'a' in 'abc'\n"


def median_ms(seconds: list[float]) -> str:
    return f"{statistics.median(seconds) * 1000:.2f} ms"


async def timed(times: int, action: Callable[[], Awaitable[object]]) -> list[float]:
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        await action()
        taken.append(time.perf_counter() - started)
    return taken


async def latency(rounds: int) -> None:
    """Lathe and bubblewrap in turn, so that what else the machine does hits both."""
    bwrap = shutil.which("bwrap")
    argv = [
        *[
            bwrap or "",
            "--ro-bind",
            "/usr",
            "/usr",
            "--symlink",
            "usr/bin",
            "/bin",
            "--symlink",
            "usr/lib",
            "/lib",
        ],
        *["--symlink", "usr/lib64", "/lib64", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"],
        *["--unshare-all", "true"],
    ]

    async def other() -> None:
        process = await asyncio.create_subprocess_exec(*argv)
        assert await process.wait() == 0

    async with open_pool(num_shards=1, use_cgroups=False) as pool:

        async def once() -> None:
            box = await pool.create(SMALL)
            (await box.exec(["true"])).check()
            await box.close()

        async def only_create() -> Sandbox:
            made.append(await pool.create(SMALL))
            return made[-1]

        made: list[Sandbox] = []
        ours: list[float] = []
        theirs: list[float] = []
        for _ in range(rounds):
            ours += await timed(5, once)
            if bwrap:
                theirs += await timed(5, other)
        print(f"create, run true, close         {median_ms(ours)}")
        if bwrap:
            ratio = statistics.median(theirs) / statistics.median(ours)
            print(f"bubblewrap, the same            {median_ms(theirs)}   ({ratio:.1f} times as long)")
        print(f"create                          {median_ms(await timed(50, only_create))}")
        box = made[-1]
        print(f"exec true, alive                {median_ms(await timed(200, lambda: box.exec(['true'])))}")
        print(f"exec sh -c true, alive          {median_ms(await timed(200, lambda: box.exec('true')))}")
        for place in range(20):
            await box.write(f"file{place}", "x" * 8192)
        forks: list[Sandbox] = []

        async def fork() -> None:
            forks.append(await box.fork())

        taken = await timed(30, fork)
        print(
            f"fork, 20 files of 8 kB          {median_ms(taken)}   "
            f"({1 / statistics.median(taken):.0f} a second)"
        )
        sleeper = forks[0]

        async def sleep_and_wake() -> None:
            await sleeper.hibernate()
            await sleeper.resume()

        print(f"hibernate and resume            {median_ms(await timed(30, sleep_and_wake))}")


async def in_turns(
    places: Iterable[int], action: Callable[[int], Awaitable[None]], width: int, name: str
) -> float:
    """Do it for all of them, `width` at once. Seconds."""
    waiting = list(places)
    started = time.perf_counter()
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(name, total=len(waiting))
        left = iter(waiting)

        async def worker() -> None:
            for place in left:
                await action(place)
                bar.advance(task)

        await asyncio.gather(*(worker() for _ in range(width)))
    return time.perf_counter() - started


async def run_once(place: int, box: Sandbox) -> None:
    """A command that writes in its own overlay, and the proof that it was this one's."""
    (await box.exec(f"echo {place} > mine")).check()
    assert await box.read("mine") == f"{place}\n".encode(), place


async def bring_up(pool: Pool, count: int, width: int) -> list[Sandbox]:
    boxes: list[Sandbox] = []
    before = psutil.virtual_memory().available

    async def create(place: int) -> None:
        boxes[place] = await pool.create(SMALL)

    async def run(place: int) -> None:
        await run_once(place, boxes[place])

    for step in [*(each for each in STEPS if each < count), count]:
        if psutil.virtual_memory().available < MIN_FREE_BYTES:
            free = psutil.virtual_memory().available >> 20
            raise SystemExit(f"only {free} MiB are free: stopped at {len(boxes)}")
        fresh = range(len(boxes), step)
        boxes += [None] * len(fresh)  # type: ignore[list-item]
        made_s = await in_turns(fresh, create, width, f"to {step}")
        ran_s = await in_turns(fresh, run, width, f"run {len(fresh)}")
        used = before - psutil.virtual_memory().available
        print(
            f"{step:6,} alive   created {len(fresh) / made_s:6.0f}/s   ran {len(fresh) / ran_s:6.0f}/s   "
            f"{used / step / 1024:4.0f} kB each   {len(psutil.pids()):6,} processes"
        )
    return boxes


async def warm(count: int, width: int) -> None:
    shards = -(-count // BOXES_PER_SHARD)
    started = time.perf_counter()
    async with open_pool(num_shards=max(2, shards), use_cgroups=False) as pool:
        boxes = await bring_up(pool, count, width)
        print(f"{count:,} alive, each having run a command, after {time.perf_counter() - started:.1f} s")
        taken: list[float] = []

        async def again(place: int) -> None:
            taken.extend(await timed(1, lambda: boxes[place].exec(["cat", "mine"])))

        await in_turns(range(0, count, max(1, count // 500)), again, 1, "again")
        print(f"exec while all are alive        {median_ms(taken)}")
        seconds = await in_turns(range(count), lambda place: boxes[place].close(), 16, "closing")
        print(f"closed one by one               {seconds:.1f} s")


async def cold(count: int, width: int) -> None:
    before, peak = psutil.virtual_memory().available, {"processes": 0, "bytes": 0}

    async def watch() -> None:
        while True:
            peak["processes"] = max(peak["processes"], len(psutil.pids()))
            peak["bytes"] = max(peak["bytes"], before - psutil.virtual_memory().available)
            await asyncio.sleep(0.5)

    async with open_pool(use_cgroups=False) as pool:
        watching = asyncio.create_task(watch())
        started = time.perf_counter()
        boxes = [await pool.create(SMALL, warm=False) for _ in range(count)]
        print(f"{count:,} environments noted      {time.perf_counter() - started:.1f} s")

        async def run_and_sleep(place: int) -> None:
            await run_once(place, boxes[place])
            await boxes[place].hibernate()

        async def verify(place: int) -> None:
            assert (await boxes[place].exec(["cat", "mine"])).stdout == f"{place}\n", place
            await boxes[place].close()

        seconds = await in_turns(range(count), run_and_sleep, width, "run")
        print(f"each run once, back to sleep    {seconds:.1f} s   ({seconds / count * 1000:.1f} ms each)")
        seconds = await in_turns(range(count), verify, width, "verify")
        print(f"each woken, verified, closed    {seconds:.1f} s   ({seconds / count * 1000:.1f} ms each)")
        watching.cancel()
        print(
            f"peak: {peak['processes']:,} processes on the machine, {peak['bytes'] >> 20:,} MiB more in use"
        )


async def python(count: int, width: int) -> None:
    """A fresh sandbox, a file of two tests, pytest: both ways, in turns of `width` at once."""

    async def run(pool: Pool, is_warm: bool) -> None:
        box = await pool.create(SMALL)
        await box.write("test_it.py", TESTS)
        told = await (box.python(PYTEST) if is_warm else box.exec(["python3", "-I", "-B", "-c", PYTEST]))
        assert "2 passed" in told.stdout, told
        await box.close()

    async with open_pool(use_cgroups=False) as pool:
        for _ in range(8):
            await run(pool, True)
        await asyncio.sleep(2.0)
        rates: dict[bool, list[float]] = {True: [], False: []}
        for _ in range(5):
            for is_warm in (True, False):
                started = time.perf_counter()
                for _ in range(0, count, width):
                    await asyncio.gather(*(run(pool, is_warm) for _ in range(width)))
                rates[is_warm].append(count / (time.perf_counter() - started))
        fast, slow = statistics.median(rates[True]), statistics.median(rates[False])
        print(
            f"sandbox + pytest, two tests     {fast:.1f}/s by a zygote, {slow:.1f}/s without: "
            f"{fast / slow:.1f} times"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["latency", "warm", "cold", "python"])
    parser.add_argument("--count", type=int)
    parser.add_argument("--width", type=int, default=8, help="how many at once")
    options = parser.parse_args()
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True
    ).stdout.strip()
    print(f"{options.what}, commit {commit}, {psutil.cpu_count()} cores, load {psutil.getloadavg()[0]:.1f}")
    match options.what:
        case "latency":
            asyncio.run(latency(options.count or 20))
        case "warm":
            asyncio.run(warm(options.count or 1_000, options.width))
        case "cold":
            asyncio.run(cold(options.count or 20_000, options.width))
        case "python":
            asyncio.run(python(options.count or 16, 2))


if __name__ == "__main__":
    main()
