"""Background commands, shells, snapshots, forks, sleep and lifetimes."""

import asyncio
from dataclasses import replace

import pytest
from sandbox_traces import until

from lathe.errors import SandboxGone
from lathe.sandbox.spec import SandboxSpec
from lathe.types import Limits


async def test_a_background_command_goes_on(pool):
    box = await pool.create()
    process = await box.start("echo begun; read line; echo $line", stdin="words\n")
    result = await process.wait(60)
    assert (result.stdout, result.exit_code) == ("begun\nwords\n", 0)
    assert await process.wait() == result

    server = await box.start("echo up; exec sleep 1000")
    await until(lambda: server.output()[0] == "up\n")
    with pytest.raises(TimeoutError):
        await server.wait(0.05)
    assert (await box.exec("ps -e | grep -c sleep")).stdout == "1\n"  # another command's end leaves it alone
    await server.kill()
    assert (await server.wait()).exit_code == 137
    assert (await box.exec("ps -e | grep -c sleep")).stdout == "0\n"


async def test_a_shell_keeps_folder_variables_and_functions(pool):
    box = await pool.create()
    shell = await box.shell(env={"COLOUR": "blue"})
    await shell.run("cd /tmp; x=1; f() { echo f:$1; }; export Y=2")
    result = await shell.run("pwd; echo $x $COLOUR; f a; sh -c 'echo $Y'; echo err >&2; false")
    assert result.stdout == "/tmp\n1 blue\nf:a\n2\n" and result.stderr == "err\n" and result.exit_code == 1
    assert (await shell.run("for i in 1 2\ndo\n  echo $i\ndone\ncat <<X\nhere\nX")).stdout == "1\n2\nhere\n"
    broken = await shell.run("echo 'open")
    assert broken.exit_code != 0 and broken.stderr
    assert (await shell.run("cat; echo $x")).stdout == "1\n"  # no input, and it lives
    big = await shell.run("echo " + "x" * 300_000 + " | wc -c")
    assert big.stdout == "300001\n"
    await shell.close()
    with pytest.raises(SandboxGone):
        await shell.run("true")


async def test_a_time_out_ends_the_line_and_not_the_shell(pool):
    box = await pool.create()
    shell = await box.shell()
    await shell.run("x=kept")
    for line in ("echo part; sleep 1000; echo never", "while :; do sleep 0.01; done", "while :; do :; done"):
        result = await shell.run(line, timeout_s=0.3)
        assert result.timed_out and result.exit_code != 0 and "never" not in result.stdout
    assert (await shell.run("echo $x; ps -e | grep -c sleep")).stdout == "kept\n0\n"
    assert (await shell.run("exit 7")).exit_code == 7
    assert (await shell.run("echo again")).stdout == "again\n"
    await shell.close()


async def test_a_snapshot_is_an_image_and_the_sandbox_goes_on(pool):
    box = await pool.create()
    await box.exec(
        "mkdir d; echo one > d/a; ln d/a d/b; ln -s a d/c; chmod 4750 d/a; rm -r /mnt /srv; touch /etc/x"
    )
    running = await box.start("sleep 1000")
    image = await box.snapshot()
    await box.exec("echo two > d/a; rm /etc/x")
    with pytest.raises(TimeoutError):
        await running.wait(0.01)
    copy = await pool.create(SandboxSpec(image=image))
    line = "cat d/a d/b d/c; stat -c '%a %h %U' d/a; ls -d /mnt /srv /etc/x; python3 -c 'print(1)'"
    assert (await copy.exec(line)).stdout == "one\none\none\n4750 2 root\n/etc/x\n1\n"
    assert (await box.exec("cat d/a d/b")).stdout == "two\ntwo\n"
    # A second floor: what was removed stays removed, what came back does not bring the old along.
    await copy.exec("rm -r d; mkdir d; echo new > d/n")
    second = await pool.create(SandboxSpec(image=await copy.snapshot()))
    assert (await second.exec("ls d; ls -d /mnt; ls -A /work")).stdout == "n\nd\n"


async def test_forks_part_ways(pool):
    box = await pool.create()
    await box.exec("echo base > file; rm -r /srv")
    left, right = await asyncio.gather(box.fork(), box.fork())
    await left.exec("echo left > file")
    await right.exec("echo right >> file; mkdir /srv")
    assert [await each.read("file") for each in (box, left, right)] == [
        b"base\n",
        b"left\n",
        b"base\nright\n",
    ]
    assert (await left.exec("ls -d /srv")).exit_code != 0
    deep = right
    for n in range(3):
        deeper = await deep.fork()
        await deeper.exec(f"echo {n} >> file")
        await deep.close()
        deep = deeper
    assert await deep.read("file") == b"base\nright\n0\n1\n2\n"


async def test_many_forks_in_a_row_become_one_layer(pool, monkeypatch):
    monkeypatch.setattr("lathe.sandbox.namespace.backend.MAX_OWN_LAYERS", 3)
    box = await pool.create()
    await box.exec("mkdir keep drop; touch drop/file")
    for n in range(8):
        await box.exec(f"touch keep/{n}; rm -rf drop")
        child = await box.fork()
        await box.close()
        box = child
    assert len(box.layers) <= 4
    assert (await box.exec("ls keep; ls -d drop")).stdout == "".join(f"{n}\n" for n in range(8))


async def test_sleep_keeps_files_and_costs_no_process(pool):
    box = await pool.create()
    shell = await box.shell()
    await shell.run("cd /tmp; echo kept > file; rm /etc/hosts; sleep 1000 &")
    await box.hibernate()
    await box.hibernate()
    assert box.shard is None
    assert await box.read("/tmp/file") == b"kept\n"  # wakes it
    assert box.shard is not None
    assert (await box.exec("ls /etc/hosts; ps -e | grep -c sleep")).stdout == "0\n"
    assert (await shell.run("pwd")).stdout == "/tmp\n"
    for n in range(3):
        await box.exec(f"echo {n} >> /tmp/file")
        await box.hibernate()
    fork = await box.fork()
    await box.resume()
    assert await fork.read("/tmp/file") == await box.read("/tmp/file") == b"kept\n0\n1\n2\n"
    image = await box.snapshot()
    again = await pool.create(SandboxSpec(image=image))
    assert await again.read("/tmp/file") == b"kept\n0\n1\n2\n"


async def test_a_cold_sandbox_is_made_at_its_first_use(pool):
    boxes = [await pool.create(warm=False) for _ in range(50)]
    assert all(box.shard is None for box in boxes)
    assert (await boxes[7].exec("echo ran")).stdout == "ran\n"
    assert sum(box.shard is not None for box in boxes) == 1


async def test_lifetimes_end_a_sandbox(pool):
    limits = Limits()
    idle = await pool.create(SandboxSpec(limits=replace(limits, idle_s=0.3)))
    assert (await idle.exec("sleep 0.6; echo used")).stdout == "used\n"  # being used is not being idle
    old = await pool.create(SandboxSpec(limits=replace(limits, lifetime_s=0.3)))
    with pytest.raises(SandboxGone):
        await old.exec("sleep 1000")
    await until(lambda: idle.gone is not None)
    with pytest.raises(SandboxGone, match="nobody has used it"):
        await idle.exec(["true"])
    with pytest.raises(SandboxGone, match="lived for"):
        await old.exec(["true"])
