"""What types.Sandbox promises, of each backend that this machine has."""

import asyncio
import os
import socket
import subprocess
import sys

import pytest
from sandbox_traces import until

from lathe.errors import CommandFailed, CommandTimedOut, InfrastructureError, SandboxGone, UserError
from lathe.sandbox.pool import open_pool
from lathe.sandbox.spec import Bind, Egress, SandboxSpec
from lathe.types import Limits


@pytest.fixture(params=["namespace", "landlock"])
async def pool(request, probed, nothing_left):
    """A pool of each backend. Skips, and says why, where the machine refuses it."""
    try:
        context = open_pool(request.param)
        made = await context.__aenter__()
    except InfrastructureError as error:
        pytest.skip(f"no {request.param} here: {error}")
    try:
        yield made
    finally:
        await context.__aexit__(None, None, None)


@pytest.fixture
async def landlock(probed, nothing_left):
    try:
        context = open_pool("landlock")
        made = await context.__aenter__()
    except InfrastructureError as error:
        pytest.skip(f"no landlock here: {error}")
    try:
        yield made
    finally:
        await context.__aexit__(None, None, None)


async def test_commands(pool):
    box = await pool.create()
    result = await box.exec(
        "echo out; echo err >&2; cat; echo $COLOUR; exit 3", stdin="in\n", env={"COLOUR": "red"}
    )
    assert (result.exit_code, result.stdout, result.stderr) == (3, "out\nin\nred\n", "err\n")
    with pytest.raises(CommandFailed):
        result.check()
    assert (await box.exec("pwd")).stdout.strip() == box.workdir
    assert (await box.exec(["no-such-program"])).exit_code == 127
    assert (await box.exec("kill -9 $$")).exit_code == 128 + 9
    assert (await box.python("import sys; print(sys.stdin.read())", stdin="a")).stdout == "a\n"


async def test_limits_of_time_and_output(pool):
    box = await pool.create()
    late = await box.exec("echo x; sleep 1000", timeout_s=0.3)
    assert late.timed_out and late.stdout == "x\n" and late.exit_code == 137
    with pytest.raises(CommandTimedOut):
        late.check()
    long = await box.exec("seq 100000", max_output_bytes=1000)
    assert long.truncated and long.stdout.startswith("1\n2\n") and long.stdout.endswith("100000\n")


async def test_what_a_command_leaves_behind_is_ended(pool):
    box = await pool.create()
    await box.exec("(setsid sh -c 'sleep 4321.5 & exit 0' &)")
    assert (await box.exec("ps -eo args | grep -c '[4]321.5'")).stdout == "0\n"


async def test_background(pool):
    box = await pool.create()
    process = await box.start("echo up; sleep 1000")
    async with asyncio.timeout(60):
        while process.output()[0] != "up\n":  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert (await box.exec("true")).exit_code == 0
    with pytest.raises(TimeoutError):
        await process.wait(0.05)
    await process.kill()
    assert (await process.wait()).exit_code == 137


async def test_a_shell_lives_on(pool):
    box = await pool.create()
    shell = await box.shell()
    await shell.run("mkdir here; cd here; colour=blue")
    assert (await shell.run("basename $PWD; echo $colour")).stdout == "here\nblue\n"
    late = await shell.run("sleep 1000", timeout_s=0.3)
    assert late.timed_out
    assert (await shell.run("echo $colour")).stdout == "blue\n"
    await shell.close()


async def test_files(pool, tmp_path):
    project = f"{SandboxSpec().workdir}/project"
    box = await pool.create(SandboxSpec(workdir=project))
    await box.write("a/b", "text", mode=0o755)
    assert await box.read(f"{project}/a/b") == b"text"
    assert [(each.path, each.kind, each.mode) for each in await box.list("a")] == [("a/b", "file", 0o755)]
    with pytest.raises(FileNotFoundError):
        await box.read("none")
    with pytest.raises(IsADirectoryError):
        await box.read("a")
    with pytest.raises(ValueError, match="more than"):
        await box.read("a/b", max_bytes=2)
    (tmp_path / "up").mkdir()
    (tmp_path / "up" / "file").write_text("carried")
    await box.upload(tmp_path / "up", f"{project}/up")
    assert (await box.exec("cat up/file")).stdout == "carried"
    await box.download("up", tmp_path / "down")
    assert (tmp_path / "down" / "file").read_text() == "carried"


async def test_snapshot_fork_and_sleep(pool):
    box = await pool.create()
    await box.write("file", "one")
    fork = await box.fork()
    image = await box.snapshot()
    await box.write("file", "two")
    fresh = await pool.create(SandboxSpec(image=image))
    await box.hibernate()
    assert [await each.read("file") for each in (box, fork, fresh)] == [b"two", b"one", b"one"]
    assert (await fresh.exec("echo three > file && cat file")).stdout == "three\n"
    assert await fork.read("file") == b"one"


async def test_a_closed_sandbox_is_gone(pool):
    box = await pool.create()
    await box.close()
    await box.close()
    with pytest.raises(SandboxGone):
        await box.exec("true")


async def test_secrets_and_neighbours_are_out_of_reach(pool, tmp_path, monkeypatch):
    monkeypatch.setenv("LATHE_TEST_SECRET", "hunter2")
    secret = tmp_path / "secret"
    secret.write_text("hunter2")
    secret.chmod(0o644)
    box, other = await pool.create(), await pool.create()
    await other.write("secret", "hunter2")
    tried = [
        f"cat {secret}",
        f"ln -s {secret} link; cat link",
        f"cat {other.workdir}/secret" if other.workdir != box.workdir else "cat secret",
        f"cat /proc/{os.getpid()}/environ",
        f"echo gone > {secret}",
        f"ln {secret} hard && cat hard",
        "env",
    ]
    for line in tried:
        assert "hunter2" not in (await box.exec(line)).stdout, line
    assert secret.read_text() == "hunter2"
    with pytest.raises((FileNotFoundError, PermissionError)):
        await box.read("link")


async def test_other_processes_are_out_of_reach(pool):
    victim = subprocess.Popen(["sleep", "1000"])  # noqa: ASYNC220
    try:
        box = await pool.create()
        await box.exec(f"kill -9 {victim.pid}; kill -9 -1")
        assert victim.poll() is None
    finally:
        victim.kill()
        victim.wait()


async def test_no_network(pool):
    box = await pool.create()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for kind in ("SOCK_STREAM", "SOCK_DGRAM"):
            code = (
                f"import socket; socket.socket(socket.AF_INET, socket.{kind}).connect(('127.0.0.1', {port}))"
            )
            assert (await box.exec(["python3", "-c", code])).exit_code == 1


async def test_no_new_namespaces(pool):
    box = await pool.create()
    code = "import ctypes; print(ctypes.CDLL(None, use_errno=True).unshare(0x10000000))"
    assert (await box.exec(["python3", "-c", code])).stdout == "-1\n"


async def test_a_writable_folder_of_this_machine(pool, tmp_path):
    os.chmod(tmp_path, 0o755)  # noqa: PTH101
    box = await pool.create(SandboxSpec(binds=(Bind(str(tmp_path), str(tmp_path), writable=True),)))
    result = await box.exec(f"echo made > {tmp_path}/made")
    if "Invalid argument" in result.stderr:
        pytest.skip(result.stderr)
    assert (tmp_path / "made").read_text() == "made\n", result.stderr


async def test_what_landlock_cannot_do_is_refused(landlock, tmp_path):
    for spec in (
        SandboxSpec(network="loopback"),
        SandboxSpec(network=Egress(("example.org:443",))),
        SandboxSpec(binds=(Bind(str(tmp_path), "/elsewhere"),)),
    ):
        with pytest.raises(UserError, match="landlock backend"):
            await landlock.create(spec)


async def test_unix_sockets_of_this_machine_are_out_of_landlocks_reach(landlock, tmp_path):
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        os.chmod(path, 0o777)  # noqa: PTH101
        box = await landlock.create()
        code = f"import socket; socket.socket(socket.AF_UNIX).connect({path!r})"
        assert "Operation not permitted" in (await box.exec(["python3", "-c", code])).stderr


def test_where_namespaces_are_refused_auto_takes_landlock_and_says_so():
    from test_probe import REFUSING

    program = (
        "import asyncio, logging\nlogging.basicConfig()\nfrom lathe.sandbox.pool import open_pool\n"
        "async def main():\n"
        " async with open_pool() as pool:\n"
        "  print(pool.backend, (await (await pool.create()).exec('echo hi')).stdout)\n"
        "asyncio.run(main())"
    )
    command = [sys.executable, "-c", REFUSING, program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if "refuses sandboxes of every kind" in done.stderr or "PermissionError" in done.stderr:
        pytest.skip(done.stderr[-300:])
    assert done.stdout.split() == ["landlock", "hi"], done.stderr
    assert "made by landlock, which isolates less: user namespace" in done.stderr


async def test_an_image_of_a_folder(pool, tmp_path):
    (tmp_path / "file").write_text("kept")
    image = await asyncio.to_thread(pool.images.from_directory, tmp_path)
    box = await pool.create(SandboxSpec(image=image))
    assert (await box.exec("cat file; rm file; ls")).stdout == "kept"
    assert (await (await box.fork()).exec("ls")).stdout == ""
    again = await pool.create(SandboxSpec(image=await box.snapshot()))
    assert (await again.exec("ls")).stdout == ""


async def test_a_landlock_sandbox_whose_keeper_is_killed_is_gone(landlock):
    box = await landlock.create()
    running = asyncio.create_task(box.exec("sleep 1000 & echo $PPID; wait"))
    process = await box.start("echo $PPID; sleep 1000")
    async with asyncio.timeout(60):
        while not process.output()[0]:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    os.kill(int(process.output()[0]), 9)
    with pytest.raises(SandboxGone):
        await running
    with pytest.raises(SandboxGone):
        await box.read("file")


async def test_lifetimes(pool):
    for limits, why in ((Limits(idle_s=0.3), "nobody has used it"), (Limits(lifetime_s=0.3), "it has lived")):
        box = await pool.create(SandboxSpec(limits=limits))
        await until(lambda box=box: box.gone is not None)
        with pytest.raises(SandboxGone, match=why):
            await box.exec("true")
