"""Without a sandbox: the same methods, on the machine itself."""

import asyncio
import os
from pathlib import Path

import pytest
from serving import wait_until

from lathe.agent.host import Host


@pytest.fixture
async def host(tmp_path):
    host = Host(tmp_path)
    yield host
    await host.close()
    assert not is_there(host.kept)


def is_there(path: str) -> bool:
    return Path(path).exists()


def is_running(pid_file: Path) -> bool:
    try:
        os.kill(int(pid_file.read_text()), 0)
    except ProcessLookupError:
        return False
    return True


async def test_a_command_and_its_ends(host, tmp_path):
    result = await host.exec("cat; echo bad >&2; exit 3", stdin="given")
    assert (result.exit_code, result.stdout, result.stderr) == (3, "given", "bad\n")
    assert (await host.exec(["no-such-program"])).exit_code == 127
    assert (await host.exec("kill -9 $$")).exit_code == 137
    assert (await host.exec("pwd", cwd="..")).stdout.strip() == str(tmp_path.parent)


async def test_partial_output_survives_a_time_out_and_all_is_killed(host, tmp_path):
    result = await host.exec("echo begun; sleep 300 & echo $! >pid; wait", timeout_s=0.5)
    assert (result.timed_out, result.stdout) == (True, "begun\n")
    assert wait_until(lambda: not is_running(tmp_path / "pid"))


async def test_a_cancelled_call_ends_its_command(host, tmp_path):
    heard = asyncio.Event()
    call = asyncio.ensure_future(
        host.exec("echo $$ >pid; echo begun; sleep 300", on_output=lambda name, data: heard.set())
    )
    await asyncio.wait_for(heard.wait(), 60)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    assert wait_until(lambda: not is_running(tmp_path / "pid"))


async def test_long_output_keeps_head_and_tail(host):
    result = await host.exec("seq 100000", max_output_bytes=1000)
    assert result.truncated
    assert result.stdout.startswith("1\n2\n")
    assert result.stdout.endswith("100000\n")
    assert "bytes left out" in result.stdout
    assert len(result.stdout) < 1100


async def test_the_background_ends_with_the_host(tmp_path):
    host = Host(tmp_path)
    process = await host.start("echo $$ >pid; sleep 300")
    with pytest.raises(TimeoutError):
        await process.wait(0.2)
    assert is_running(tmp_path / "pid")
    await host.close()
    assert wait_until(lambda: not is_running(tmp_path / "pid"))


async def test_files(host, tmp_path):
    await host.write("new/a", "x", mode=0o755)
    assert await host.read("new/a") == b"x"
    (entry,) = await host.list("new")
    assert (entry.path, entry.kind, entry.mode) == ("a", "file", 0o755)
    for path, error in (("none", FileNotFoundError), ("new", IsADirectoryError), ("/dev/null", ValueError)):
        with pytest.raises(error):
            await host.read(path)
    with pytest.raises(ValueError, match="longer"):
        await host.read("new/a", max_bytes=0)
