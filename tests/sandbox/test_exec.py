"""Commands in a sandbox of the namespace backend."""

import asyncio
import os
import time

import pytest

from lathe.errors import CommandFailed, CommandTimedOut, InfrastructureError, SandboxGone, UserError


async def test_a_command_says_what_became_of_it(pool):
    box = await pool.create()
    result = await box.exec(["sh", "-c", "echo out; echo err >&2; exit 3"])
    assert (result.exit_code, result.stdout, result.stderr) == (3, "out\n", "err\n")
    assert not result.timed_out and not result.truncated and result.duration_s > 0
    with pytest.raises(CommandFailed, match="err"):
        result.check()


async def test_a_line_goes_to_the_shell_and_a_list_does_not(pool):
    box = await pool.create()
    assert (await box.exec("echo $((1 + 1)) | tr 2 3")).stdout == "3\n"
    assert (await box.exec(["echo", "$((1 + 1))"])).stdout == "$((1 + 1))\n"


async def test_what_is_not_there_is_the_commands_failure(pool):
    box = await pool.create()
    missing = await box.exec(["no-such-program"])
    assert missing.exit_code == 127 and "no-such-program" in missing.stderr
    nowhere = await box.exec(["true"], cwd="/no/such/folder")
    assert nowhere.exit_code == 126 and "/no/such/folder" in nowhere.stderr


async def test_folder_environment_and_input(pool):
    box = await pool.create()
    result = await box.exec("pwd; echo $COLOUR; cat", cwd="/tmp", env={"COLOUR": "blue"}, stdin="typed\n")
    assert result.stdout == "/tmp\nblue\ntyped\n"
    assert (await box.exec("cat")).stdout == ""  # no input is an empty one


async def test_input_that_nobody_reads_holds_nothing_up(pool):
    box = await pool.create()
    assert (await box.exec(["true"], stdin=b"x" * (4 << 20))).exit_code == 0


async def test_the_callers_environment_and_files_stay_outside(pool, monkeypatch, tmp_path):
    monkeypatch.setenv("LATHE_TEST_SECRET", "hunter2")
    with (tmp_path / "open").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        box = await pool.create()
        result = await box.exec("env; ls -l /proc/self/fd")
    assert "hunter2" not in result.stdout and str(tmp_path) not in result.stdout
    descriptors = [line for line in result.stdout.splitlines() if " -> " in line]
    assert len(descriptors) == 4  # three, and the folder that ls reads


async def test_a_time_out_keeps_what_was_written(pool):
    box = await pool.create()
    began = time.monotonic()
    result = await box.exec("echo partial; sleep 1000", timeout_s=0.5)
    assert result.timed_out and result.stdout == "partial\n" and result.exit_code == 137
    assert time.monotonic() - began < 60
    with pytest.raises(CommandTimedOut):
        result.check()
    assert (await box.exec("ps -e | grep -c sleep")).stdout == "0\n"


async def test_much_output_keeps_head_and_tail(pool):
    box = await pool.create()
    result = await box.exec("seq 1000000", max_output_bytes=2000)
    assert result.truncated and len(result.stdout) < 2200
    assert result.stdout.startswith("1\n2\n") and result.stdout.endswith("999999\n1000000\n")
    assert "6886896 bytes left out" in result.stdout  # seq writes 6,888,896 bytes


async def test_output_is_heard_as_it_comes(pool):
    box = await pool.create()
    heard: list[tuple[str, bytes]] = []
    first = asyncio.Event()

    def listen(stream, data):
        heard.append((stream, data))
        first.set()

    running = asyncio.create_task(box.exec("echo one; sleep 1000", on_output=listen))
    await asyncio.wait_for(first.wait(), 60)
    assert heard == [("stdout", b"one\n")]
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (await box.exec("ps -e | grep -c sleep")).stdout == "0\n"


async def test_a_daemon_with_the_output_open_holds_nothing_up(pool):
    box = await pool.create()
    result = await box.exec("setsid sh -c 'while :; do echo noise; done' & echo done")
    assert "done\n" in result.stdout and result.exit_code == 0
    assert (await box.exec("ps -e -o args | grep -c [n]oise")).stdout == "0\n"


async def test_commands_run_beside_each_other(pool):
    box = await pool.create()
    results = await asyncio.gather(*(box.exec(f"sleep 0.2; echo {n}") for n in range(20)))
    assert [result.stdout for result in results] == [f"{n}\n" for n in range(20)]


async def test_a_closed_sandbox_is_gone(pool):
    box = await pool.create()
    await box.close()
    await box.close()
    with pytest.raises(SandboxGone, match="closed"):
        await box.exec(["true"])


async def test_what_no_command_can_be_is_refused(pool):
    box = await pool.create()
    with pytest.raises(UserError, match="NUL"):
        await box.exec(["echo", "a\0b"])
    with pytest.raises(UserError, match="program"):
        await box.exec([])
    with pytest.raises(UserError, match="stdin"):
        await box.exec(["echo", "x" * 300_000])


async def test_python_and_git_of_this_machine_work(pool):
    box = await pool.create()
    assert (await box.exec(["python3", "-c", "print(6 * 7)"])).stdout == "42\n"
    line = "git init -q . && git -c user.name=a -c user.email=b commit -q --allow-empty -m c && git log"
    assert "Author: a" in (await box.exec(line)).check().stdout


async def test_a_command_starts_as_programs_expect_it(pool):
    """Signals at their defaults, none blocked, a session of its own."""
    box = await pool.create()
    told = await box.exec("grep -E '^Sig(Blk|Ign)' /proc/self/status | cut -f2")
    glibcs_own = 0b11 << 31  # 32 and 33, which no program can set
    assert [int(each, 16) & ~glibcs_own for each in told.stdout.split()] == [0, 0]
    broken_pipe = ["bash", "-c", "yes | head -1 >/dev/null; echo ${PIPESTATUS[0]}"]
    assert (await box.exec(broken_pipe)).stdout == "141\n"
    leader, group, session = (await box.exec("ps -o pid=,pgid=,sid= -p $$")).stdout.split()
    assert leader == group == session


async def test_a_file_that_is_no_program_is_not_executable(pool):
    box = await pool.create()
    await box.write("data", "no program", mode=0o644)
    assert (await box.exec(["./data"])).exit_code == 126
    assert (await box.exec(["/work"])).exit_code == 126
    assert (await box.exec(["data"], env={"PATH": "/nowhere:/work"})).exit_code == 126
    assert (await box.exec(["data"], env={"PATH": "/nowhere"})).exit_code == 127
    await box.write("script", "#!/bin/sh\necho $0 $1\n", mode=0o755)
    assert (
        await box.exec(["script", "a b"], env={"PATH": "/nowhere:/work:/bin"})
    ).stdout == "/work/script a b\n"


async def test_a_path_of_a_hundred_thousand_folders_ends_nobody(pool):
    box = await pool.create()
    with pytest.raises(InfrastructureError, match="too long"):
        await box.exec(["true"], env={"PATH": ":" * 100_000})
    assert (await box.exec(["echo", "fine"])).stdout == "fine\n"
