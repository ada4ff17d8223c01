"""The kernels' threads: shared by callers, started anew after a fork, and never left behind."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
import torch
from one_call import kernels, library_path, own_copy
from tiny_steps import Steps, tiny

from lathe.kernels.attention import Span
from lathe.kernels.cpu.library import open_library

HERE = Path(__file__).parent
PROMPT = [(7 * i * i + 3 * i) % 300 for i in range(70)]


def with_threads(num_threads):
    return open_library(own_copy("pool"), None, num_threads)


def num_threads_here() -> int:
    return psutil.Process().num_threads()


def test_threads_that_call_at_once_wait_for_each_other():
    expected = Steps(tiny("qwen3", "f32"), kernels()).read([PROMPT])[0]
    library = with_threads(2)
    each = [Steps(tiny("qwen3", "f32"), library) for _ in range(3)]
    wrong: list[int] = []

    def read(number: int) -> None:
        for _ in range(4):
            if not torch.equal(each[number].read([PROMPT], [[30, 40]])[0], expected):
                wrong.append(number)

    threads = [threading.Thread(target=read, args=(number,)) for number in range(len(each))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_two_callers_of_one_program():
    """Its memory is one, so a call is over before the next begins."""
    library = with_threads(2)
    steps = Steps(tiny("moe", "q8_0"), library)

    def once(token: int) -> torch.Tensor:
        slot = 16 * (token % 8)
        return steps.program.run([token], [0], [slot], [Span(0, 1, ((slot, slot + 1),))], [0], 300)

    expected = {token: once(token) for token in range(8)}
    wrong: list[int] = []

    def call(token: int) -> None:
        for _ in range(20):
            if not torch.equal(once(token), expected[token]):
                wrong.append(token)

    threads = [threading.Thread(target=call, args=(token,)) for token in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_pool_that_starts_anew_leaves_no_threads():
    def read(num_threads: int) -> None:
        Steps(tiny("qwen3", "f32"), with_threads(num_threads)).read([PROMPT[:3]])

    read(2)
    before = num_threads_here()
    for _ in range(10):
        read(3)
        assert num_threads_here() == before + 1
        read(1)
        assert num_threads_here() == before - 1
        read(2)
    assert num_threads_here() == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_starts_its_own_threads():
    """In a process of its own: of the parent's threads only the forking one is in the child."""
    program = """
import os, sys
sys.path[:0] = sys.argv[1:3]
import torch
from one_call import kernels, own_copy
from tiny_steps import Steps, tiny
from lathe.kernels.cpu.library import open_library

steps = Steps(tiny("qwen3", "f32"), open_library(own_copy("fork"), None, 2))
before = steps.read([[1, 2, 3]])[0]
for generation in range(2):
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        same = torch.equal(steps.read([[1, 2, 3]])[0], before)
        os._exit(0 if same and os.waitstatus_to_exitcode(status) == 0 else 1)
    if not torch.equal(steps.read([[1, 2, 3]])[0], before):
        os._exit(2)
os._exit(0)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(HERE), str(HERE.parents[1])],
        capture_output=True,
        text=True,
        timeout=110,
        env=os.environ | {"LATHE_CPU_LIBRARY": str(library_path())},
    )
    assert done.returncode == 0, done.stderr


def test_a_program_ends_while_its_threads_sleep():
    program = """
import sys
sys.path[:0] = sys.argv[1:3]
from one_call import own_copy
from tiny_steps import Steps, tiny
from lathe.kernels.cpu.library import open_library
Steps(tiny("qwen3", "f32"), open_library(own_copy("end"), None, 3)).read([[1, 2, 3]])
print("read")
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(HERE), str(HERE.parents[1])],
        capture_output=True,
        text=True,
        timeout=110,
        env=os.environ | {"LATHE_CPU_LIBRARY": str(library_path())},
    )
    assert (done.returncode, done.stdout) == (0, "read\n"), done.stderr
