"""The same sandboxes for an ordinary user. Where the tests run as root, a process of nobody's tries them."""

import asyncio
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

import lathe

PROGRAM = """
import asyncio, os, pathlib, sys
from lathe.sandbox.pool import open_pool
from lathe.sandbox.spec import Bind, SandboxSpec

async def main():
    assert os.getuid() != 0
    repo = pathlib.Path(sys.argv[1])
    async with open_pool("namespace") as pool:
        box = await pool.create(SandboxSpec(binds=(Bind(str(repo), "/repo", writable=True),)))
        print((await box.exec("id -u; echo made > /repo/made; stat -c %U /repo/made")).stdout.split())
        print((repo / "made").stat().st_uid == os.getuid())
        print((await box.exec("rm -r /mnt && mkdir /mnt && touch /mnt/a && ls /mnt")).stdout.split())
        print((await box.exec("setsid sleep 1000 & touch /dev/x /usr/x; rm /dev/stdout; exit 2")).exit_code)
        await box.write("file", "text")
        fork = await box.fork()
        await box.hibernate()
        print([await each.read("file") for each in (box, fork)], (await fork.exec("ls /mnt")).stdout.split())
        print((await box.exec("sleep 1000", timeout_s=0.2)).timed_out)
        shell = await box.shell()
        await shell.run("cd /tmp")
        print((await shell.run("pwd; ls -l /dev/stdout | wc -l")).stdout.split())
        lo = await pool.create(SandboxSpec(network="loopback"))
        print((await lo.exec("grep -c lo: /proc/net/dev")).stdout.split())
        for _ in range(200):
            told = await box.python("import sys, os; print('decimal' in sys.modules)")
            if told.stdout.startswith("True"):
                break
            await asyncio.sleep(0.05)
        same = "import os; print([os.readlink('/proc/self/ns/' + each) for each in ('net', 'mnt', 'user')])"
        fresh = await box.exec(["python3", "-c", same])
        print(told.stdout.strip(), (await box.python(same)).stdout == fresh.stdout)
        print((await box.exec("ps -e | grep -c sleep")).stdout.split())
asyncio.run(main())
"""


@pytest.mark.skipif(os.getuid() != 0, reason="every other test here is an ordinary user's already")
async def test_nobody_has_sandboxes_too(nothing_left):
    python = shutil.which("python3", path="/usr/bin")
    if python is None or shutil.which("setpriv") is None:
        pytest.skip("needs setpriv, and a Python in /usr/bin that everybody may run")
    house = Path(lathe.__file__).parent
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for name in ("__init__.py", "types.py", "errors.py"):
            (place / "lathe").mkdir(exist_ok=True)
            shutil.copy(house / name, place / "lathe" / name)
        shutil.copytree(house / "sandbox", place / "lathe" / "sandbox")
        subprocess.run(["chmod", "-R", "a+rX", folder], check=True)  # noqa: ASYNC221
        (place / "repo").mkdir()
        os.chown(place / "repo", 65534, 65534)
        process = await asyncio.create_subprocess_exec(
            *["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", python, "-c", PROGRAM],
            str(place / "repo"),
            env={"PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1", "PATH": os.environ["PATH"]},
            cwd="/",
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        said, errors = await process.communicate()
    if b"refuses sandboxes" in errors:
        pytest.skip(errors.decode().splitlines()[-1])
    assert said.decode().splitlines() == [
        "['0', 'root']",
        "True",
        "['a']",
        "2",
        "[b'text', b'text'] ['a']",
        "True",
        "['/tmp', '1']",
        "['1']",
        "True True",
        "['0']",
    ], errors.decode()
