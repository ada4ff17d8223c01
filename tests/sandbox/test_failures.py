"""What breaks, and what the caller is told: a sandbox that is gone is no machine that failed."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest
from sandbox_traces import descendants, until

from lathe.errors import InfrastructureError, SandboxGone
from lathe.sandbox.pool import open_pool
from lathe.sandbox.spec import SandboxSpec


def first_processes() -> list[int]:
    """The first processes of all sandboxes of this test."""
    return [pid for pid in descendants(os.getpid()) if Path(f"/proc/{pid}/comm").read_text() == "init\n"]


async def test_a_killed_first_process_is_a_sandbox_gone(pool):
    box, other = await pool.create(), await pool.create(warm=False)
    running = asyncio.create_task(box.exec("echo begun; sleep 1000"))
    background = await box.start("sleep 1000")
    await box.exec(["true"])
    [first] = first_processes()
    os.kill(first, signal.SIGKILL)
    with pytest.raises(SandboxGone):
        await running
    with pytest.raises(SandboxGone):
        await background.wait(60)
    with pytest.raises(SandboxGone):
        await box.exec(["true"])
    with pytest.raises(SandboxGone):
        await box.read("/etc/passwd")
    with pytest.raises(SandboxGone):
        await box.hibernate()
    await box.close()
    assert (await other.exec("echo fine")).stdout == "fine\n"


async def test_a_killed_command_is_the_commands_failure(pool):
    box = await pool.create()
    assert (await box.exec("kill -9 $$")).exit_code == 137
    assert (await box.exec("kill -9 1; kill -9 -1; echo survived")).exit_code in (0, 137)
    assert (await box.exec("echo fine")).stdout == "fine\n"


async def test_a_killed_spawner_is_the_machines_failure(nothing_left):
    async with open_pool("namespace", num_shards=1) as pool:
        box = await pool.create()
        asleep = await pool.create()
        await asleep.write("file", "kept")
        await asleep.hibernate()
        running = asyncio.create_task(box.exec("sleep 1000"))
        shell = await box.shell()
        await box.exec(["true"])
        assert box.shard is not None
        os.kill(box.shard.pid, signal.SIGKILL)
        with pytest.raises(InfrastructureError, match="spawner"):
            await running
        with pytest.raises(InfrastructureError):
            await box.exec(["true"])
        with pytest.raises(InfrastructureError):
            await box.read("/etc/passwd")
        with pytest.raises(InfrastructureError):
            await shell.run("true")
        await box.close()
        assert (await asleep.read("file")) == b"kept"  # in a new spawner
        assert (await (await pool.create()).exec("echo fine")).stdout == "fine\n"


async def test_a_full_disk_is_the_machines_failure(nothing_left, tmp_path):
    """In a process of its own, whose pool keeps its layers on a disk of four megabytes."""
    program = (
        "import asyncio, pathlib, sys\n"
        "from lathe.errors import InfrastructureError\n"
        "from lathe.sandbox.pool import open_pool\n"
        "async def main():\n"
        "    async with open_pool('namespace', state=pathlib.Path(sys.argv[1])) as pool:\n"
        "        box = await pool.create()\n"
        "        await box.exec('head -c 6000000 /dev/urandom > big')\n"
        "        for act in (box.snapshot, box.fork, box.hibernate):\n"
        "            try:\n"
        "                await act()\n"
        "            except InfrastructureError as error:\n"
        "                print('No space left' in str(error))\n"
        "        print((await box.exec('stat -c %s big; rm big')).stdout)\n"
        "        await box.hibernate()\n"
        "        print((await box.exec('ls')).exit_code)\n"
        "asyncio.run(main())\n"
    )
    line = 'mount -t tmpfs -o size=4m tmpfs "$1" && exec "$2" -c "$3" "$1"'
    unshare = ["unshare", "--mount"] if os.getuid() == 0 else ["unshare", "--mount", "--map-root-user"]
    process = await asyncio.create_subprocess_exec(
        *unshare,
        "sh",
        "-c",
        line,
        "sh",
        str(tmp_path),
        sys.executable,
        program,
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await process.communicate()
    assert said.decode().split() == ["True", "True", "True", "6000000", "0"]


async def test_an_overlay_that_cant_be_mounted_is_the_machines_failure(pool):
    box = await pool.create()
    await box.exec("echo x > file")
    image = await box.snapshot()
    [layer] = pool.images.layers(image)
    layer.rename(layer.with_name("elsewhere"))
    with pytest.raises(InfrastructureError, match="overlay"):
        await pool.create(SandboxSpec(image=image))
    layer.with_name("elsewhere").rename(layer)
    assert (await (await pool.create(SandboxSpec(image=image))).exec("cat file")).stdout == "x\n"


async def test_a_cancelled_creation_leaves_nothing(pool):
    making = [asyncio.create_task(pool.create()) for _ in range(20)]
    await asyncio.sleep(0.005)
    for task in making:
        task.cancel()
    await asyncio.wait(making)
    await pool.create()
    num_made = 1 + sum(not task.cancelled() for task in making)
    await until(lambda: len(first_processes()) <= num_made)


async def test_a_pool_ends_with_all_that_runs(nothing_left):
    async with open_pool("namespace") as pool:
        boxes = await asyncio.gather(*(pool.create() for _ in range(10)))
        await boxes[0].shell()
        await boxes[1].start("setsid sleep 1000")
        running = asyncio.create_task(boxes[2].exec("sleep 1000"))
        await boxes[3].hibernate()
        await asyncio.sleep(0.05)
    with pytest.raises((SandboxGone, InfrastructureError)):
        await running
    with pytest.raises(SandboxGone, match="pool is closed"):
        await boxes[3].exec(["true"])


async def test_a_killed_caller_takes_its_sandboxes_along(nothing_left, tmp_path):
    """Whoever opened the pool died without closing it."""
    program = (
        "import asyncio, os, sys\n"
        "from lathe.sandbox.pool import open_pool\n"
        "async def main():\n"
        "    async with open_pool('namespace') as pool:\n"
        "        box = await pool.create()\n"
        "        await box.start('sleep 1000')\n"
        "        print('up', flush=True)\n"
        "        await asyncio.sleep(1000)\n"
        "asyncio.run(main())\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        program,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert process.stdout is not None and await process.stdout.readline() == b"up\n"
    family = descendants(process.pid)
    assert len(family) >= 2  # the spawner, a first process
    process.kill()
    await process.wait()
    await until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in family))
