"""A fork of a warm Python is, for the code that it runs, a Python that was started in the sandbox."""

import asyncio
import json
import os
import signal
from pathlib import Path

import pytest

FACTS = """
import json, os, sys
KINDS = ("mnt", "pid", "user", "ipc", "uts", "net")
CLAIMS = ("Cap", "NoNewPrivs", "Seccomp:")
json.dump({
    "argv": sys.argv, "name": __name__, "file": globals().get("__file__"),
    "prefix": sys.prefix, "path": sys.path, "root": sorted(os.listdir("/")),
    "executable": sys.executable, "input": sys.stdin.read(), "env": dict(os.environ),
    "cwd": os.getcwd(), "uid": os.getuid(), "session": os.getsid(0) == os.getpid(),
    "fds": sorted(os.listdir("/proc/self/fd")), "limits": open("/proc/self/limits").read(),
    "claims": [line for line in open("/proc/self/status") if line.startswith(CLAIMS)],
    "namespaces": {each: os.readlink(f"/proc/self/ns/{each}") for each in KINDS},
    "processes": sum(each.isdigit() for each in os.listdir("/proc")),
    "lathe": any(each.split(".")[0] == "lathe" for each in sys.modules),
}, sys.stdout)
"""


async def warm(pool):
    """A sandbox whose shard has a zygote that is ready."""
    box = await pool.create()
    for _ in range(200):
        told = await box.python("import sys; print('_pytest.python' in sys.modules)")
        if told.stdout == "True\n":
            return box
        await asyncio.sleep(0.05)
    raise AssertionError("the zygote was never ready")


async def test_nothing_but_the_modules_tells_it_from_a_fresh_one(pool):
    box = await warm(pool)
    forked = json.loads((await box.python(FACTS, stdin="words")).check().stdout)
    fresh = json.loads((await box.exec(["python3", "-I", "-B", "-c", FACTS], stdin="words")).check().stdout)
    assert forked == fresh


@pytest.mark.parametrize(
    ("code", "exit_code", "words"),
    [
        ("raise SystemExit(3)", 3, ""),
        ("import sys; sys.exit('no')", 1, "no"),
        ("1 / 0", 1, 'File "<string>", line 1, in <module>\nZeroDivisionError'),
        ("import os; os.kill(os.getpid(), 9)", 137, ""),
        ("import os; os._exit(7)", 7, ""),
        ("def f(:", 1, "SyntaxError"),
    ],
)
async def test_ends_are_told(pool, code, exit_code, words):
    box = await warm(pool)
    told = await box.python(code)
    assert told.exit_code == exit_code
    assert words in told.stderr
    assert "zygote" not in told.stderr


async def test_forks_know_nothing_of_one_another(pool):
    box, other = await warm(pool), await pool.create()
    await box.python("import pytest, builtins, os; pytest.mine = builtins.mine = 1; os.environ['MINE'] = '1'")
    told = await other.python(
        "import pytest, builtins, os; print(hasattr(pytest, 'mine'), os.environ.get('MINE'))"
    )
    assert told.stdout == "False None\n"
    draws = {(await box.python("import random; print(random.random())")).stdout for _ in range(3)}
    assert len(draws) == 3


async def test_it_is_killed_at_its_limit_with_all_that_it_started(pool):
    box = await warm(pool)
    told = await box.python(
        "import os, time\nprint('begun', flush=True)\nos.fork()\nos.fork()\ntime.sleep(60)", timeout_s=0.5
    )
    assert (told.timed_out, told.stdout) == (True, "begun\n")
    # init, zygote, sh, ls, grep; four more if the forks still slept
    assert int((await box.exec("ls /proc | grep -c '^[0-9]*$'")).stdout) <= 5


def zygote_of(spawner: int) -> int:
    children = Path(f"/proc/{spawner}/task/{spawner}/children").read_text().split()
    return next(int(each) for each in children if "python" in str(Path(f"/proc/{each}/exe").readlink()))


async def test_a_zygote_that_dies_is_done_without(pool):
    box = await warm(pool)
    (shard,) = [each for each in pool._backend._slots if each is not None][:1]
    os.kill(zygote_of(shard.pid), signal.SIGKILL)
    for _ in range(3):
        told = await box.python("print('still')")
        if told.stdout == "still\n":
            break
    assert told.stdout == "still\n"


async def test_many_at_once(pool):
    boxes = await asyncio.gather(*(pool.create() for _ in range(30)))
    told = await asyncio.gather(*(box.python(f"print({place})") for place, box in enumerate(boxes)))
    assert [each.stdout for each in told] == [f"{place}\n" for place in range(30)]
