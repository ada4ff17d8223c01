"""`make sanitize` sees what it is there for, beside PyTorch and in memory that PyTorch made."""

import subprocess
import sys
from pathlib import Path

import pytest
import sanitized

from lathe.kernels.cpu import build

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="preloads a Linux library"),
]

PLANTED = """
    #include <thread>
    #define API extern "C" __attribute__((visibility("default")))

    API float read_at(const float* x, int i) { return x[i]; }
    API int add_one(int x) { return x + 1; }
    API int count_with(int at_once) {
        int count = 0;
        auto add = [&] { for (int i = 0; i < 1000; i++) count++; };
        std::thread first(add);
        if (at_once == 1) first.join();
        std::thread second(add);
        if (first.joinable()) first.join();
        second.join();
        return count;
    }
"""


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Calls functions of PLANTED, compiled with a sanitizer, in a process with PyTorch."""
    folder = tmp_path_factory.mktemp("planted")
    (folder / "planted.cpp").write_text(PLANTED)

    def call(sanitize: str, calls: str) -> subprocess.CompletedProcess[str]:
        library = folder / sanitize / "lib.so"
        try:
            build.build(library, folder, sanitize=sanitize)
            environment = sanitized.environment(library, sanitize)
        except build.BuildFailed as error:
            pytest.skip(f"no sanitizer here: {error}")
        program = (
            "import ctypes, sys, torch\n"
            "ones = torch.ones(1000)\n"
            "x = ctypes.c_void_p(ones.data_ptr())\n"
            "native = ctypes.CDLL(sys.argv[1])\n"
            "native.read_at.restype = ctypes.c_float\n"
            f"print('gave', {calls}, ones.sum().item())\n"
        )
        command = [*sanitized.python_command(sanitize), "-c", program, str(library)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)

    return call


@pytest.mark.parametrize("sanitize", ["address,undefined", "thread"])
def test_good_code_is_left_alone(planted, sanitize):
    done = planted(sanitize, "native.read_at(x, 999), native.add_one(1), native.count_with(1)")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "gave 1.0 2 2000 1000.0\n"


def test_a_read_past_the_end_of_a_tensor_is_found(planted):
    done = planted("address,undefined", "native.read_at(x, 1000)")
    assert done.returncode != 0 and "gave" not in done.stdout
    assert "heap-buffer-overflow" in done.stderr and "read_at" in done.stderr


def test_undefined_behaviour_is_found(planted):
    done = planted("address,undefined", "native.add_one(2**31 - 1)")
    assert done.returncode != 0 and "gave" not in done.stdout
    assert "signed integer overflow" in done.stderr


def test_a_race_is_found(planted):
    done = planted("thread", "native.count_with(2)")
    assert done.returncode != 0 and "data race" in done.stderr


def test_the_tests_run_on_the_sanitized_library():
    """As `make sanitize` runs them, with one test that says which library it got."""
    probe = Path(__file__).with_name("test_build.py")
    command = [sys.executable, sanitized.__file__, "address,undefined", str(probe), "-k", "this_tree_has"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0 and "1 passed" in done.stdout + done.stderr, done.stdout + done.stderr
