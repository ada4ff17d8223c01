"""Binds, networks, limits: what a sandbox shares with this machine, and what not."""

import os
import socket
from dataclasses import replace

import pytest
from sandbox_traces import until

from lathe.errors import UserError
from lathe.sandbox.spec import Bind, SandboxSpec
from lathe.types import Limits


async def test_a_writable_bind_is_written_as_its_owner(pool, tmp_path):
    repo = tmp_path / "repo"
    repo.mkdir()
    (repo / "old").write_text("old\n")
    (repo / "old").chmod(0o600)
    box = await pool.create(SandboxSpec(workdir="/repo", binds=(Bind(str(repo), "/repo", writable=True),)))
    result = await box.exec(
        "cat old; echo new > new; mkdir -p d/e; stat -c %U old new; git init -q . && git status -s"
    )
    assert result.stdout == "old\nroot\nroot\n?? new\n?? old\n", result.stderr
    assert (repo / "new").read_text() == "new\n"
    assert {path.lstat().st_uid for path in [repo, *repo.rglob("*")]} == {os.getuid()}
    await box.write("written", "by write\n")
    assert (repo / "written").read_text() == "by write\n" and (repo / "written").stat().st_uid == os.getuid()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files to another user")
async def test_another_users_folder_stays_theirs(pool, tmp_path):
    repo = tmp_path / "repo"
    repo.mkdir()
    os.chown(repo, 1234, 1235)
    box = await pool.create(SandboxSpec(binds=(Bind(str(repo), "/repo", writable=True),)))
    await box.exec("echo new > /repo/new")
    status = (repo / "new").stat()
    assert (status.st_uid, status.st_gid) == (1234, 1235)


async def test_other_binds_are_read_only(pool, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/file").write_text("text\n")
    (tmp_path / "folder/file").chmod(0o600)
    binds = (Bind(str(tmp_path / "folder"), "/a/b"), Bind(str(tmp_path / "folder/file"), "/etc/single"))
    box = await pool.create(SandboxSpec(binds=binds))
    result = await box.exec(
        "cat /a/b/file /etc/single; echo x > /a/b/file; echo x > /etc/single; touch /a/b/new"
    )
    assert result.stdout == "text\ntext\n" and result.stderr.count("Read-only file system") == 3


async def test_a_bind_that_cant_be_is_refused(pool, tmp_path):
    with pytest.raises(UserError, match="there is no"):
        await pool.create(SandboxSpec(binds=(Bind(str(tmp_path / "nothing"), "/a"),)))
    with pytest.raises(UserError, match="absolute"):
        await pool.create(SandboxSpec(binds=(Bind(str(tmp_path), "a"),)))
    with pytest.raises(UserError, match="absolute"):
        await pool.create(SandboxSpec(workdir="work"))


async def test_a_link_in_the_image_moves_no_mount(pool, tmp_path):
    """A sandbox's own files name the places where the next one's mounts go."""
    box = await pool.create()
    await box.exec("rm -rf /srv; mkdir /boxes; ln -s /boxes /srv; ln -s / /escape; mkdir -p /data")
    image = await box.snapshot()
    binds = (Bind(str(tmp_path), "/srv/x"), Bind(str(tmp_path), "/escape/data"))
    copy = await pool.create(SandboxSpec(image=image, binds=binds))
    result = await copy.exec("ls -d /boxes/x /data; grep -c ' /data ' /proc/self/mounts; ls /escape/work")
    assert result.stdout == "/boxes/x\n/data\n1\n"


async def test_loopback_reaches_itself_and_no_network_is_dead(pool):
    server = socket.create_server(("127.0.0.1", 0))
    port = server.getsockname()[1]
    line = (
        "import socket, sys\n"
        "def reach(port):\n"
        "    try: socket.create_connection(('127.0.0.1', port), 2).close(); return True\n"
        "    except OSError as error: return error.errno\n"
        "own = socket.socket()\n"
        "try: own.bind(('127.0.0.1', 0)); own.listen(); print(reach(own.getsockname()[1]))\n"
        "except OSError as error: print(error.errno)\n"
        f"print(reach({port}))\n"
    )
    with server:
        inside = await pool.create(SandboxSpec(network="loopback"))
        assert (
            await inside.exec(["python3", "-c", line])
        ).stdout == "True\n111\n"  # refused: nobody listens there
        dead = await pool.create()
        assert (await dead.exec(["python3", "-c", line])).stdout.splitlines()[1] == "101"  # unreachable


async def test_disk_and_inodes_are_bounded(pool):
    limits = replace(Limits(), disk_bytes=8 << 20, num_files=100, file_bytes=4 << 20)
    box = await pool.create(SandboxSpec(limits=limits))
    result = await box.exec("for i in 1 2 3 4; do head -c 3000000 /dev/zero > f$i || exit 1; done")
    assert result.exit_code == 1 and "No space left" in result.stderr
    await box.exec("rm f*")
    result = await box.exec("head -c 5000000 /dev/zero > big; stat -c %s big")
    assert result.stdout == f"{4 << 20}\n"  # SIGXFSZ ends the writer
    await box.exec("rm big")
    assert "No space left" in (await box.exec("for i in $(seq 200); do touch $i || exit; done")).stderr
    with pytest.raises(OSError, match="No space left"):
        await box.write("more", "x")


async def test_processes_are_bounded(pool):
    box = await pool.create(SandboxSpec(limits=replace(Limits(), num_processes=30)))
    neighbour = await pool.create()
    result = await box.exec("f() { f | f & }; f; sleep 1; ps -e | wc -l", timeout_s=20)
    assert result.exit_code != 0 or int(result.stdout) <= 33
    assert (await neighbour.exec("echo fine")).stdout == "fine\n"
    await neighbour.exec("true")


async def test_root_inside_is_nobody_outside(pool, tmp_path):
    box = await pool.create()
    process = await box.start("echo begun; exec sleep 1000")
    result = await box.exec("cat /proc/self/uid_map; id -u; grep -h ^Cap /proc/self/status; cat /etc/shadow")
    first = int(result.stdout.split()[1])
    assert first != 0 if os.getuid() == 0 else first == 0
    assert "No such file" in result.stderr
    assert result.stdout.splitlines()[2:5] == [
        "CapInh:\t0000000000000000",
        "CapPrm:\t00000000000004fb",
        "CapEff:\t00000000000004fb",
    ]
    await process.kill()


async def test_memory_of_all_processes_together_is_bounded(pool):
    if "memory" not in pool._backend._cgroups.controllers:
        pytest.skip(f"no control groups here: {pool._backend.missing_cgroups}")
    box = await pool.create(SandboxSpec(limits=replace(Limits(), memory_bytes=256 << 20)))
    hog = "import os; os.fork(); os.fork(); x = b'x' * (100 << 20); print(len(x)); os.wait()"
    result = await box.exec(["python3", "-c", hog])
    assert result.exit_code != 0 or result.stdout.count("104857600") < 4
    alone = await box.exec(["python3", "-c", "x = b'x' * (300 << 20)"])
    assert alone.exit_code != 0 and "MemoryError" in alone.stderr
    assert (await box.exec("echo fine")).stdout == "fine\n"


async def test_pids_and_cpu_groups(pool):
    if not {"pids", "cpu"} <= set(pool._backend._cgroups.controllers):
        pytest.skip(f"no control groups here: {pool._backend.missing_cgroups}")
    box = await pool.create(SandboxSpec(limits=replace(Limits(), num_processes=20, num_cpus=0.2)))
    # Each user of the sandbox's may have 20 by the limit of processes; all of them together no more.
    each = "sh -c 'for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 1000 & done; wait'"
    running = await box.start(f"for u in 1 2 3; do setpriv --reuid=$u --clear-groups {each} & done; wait")
    await until(lambda: "fork" in running.output()[1])
    await running.kill()
    spin = (
        "import time as t; end = t.monotonic() + 1\nwhile t.monotonic() < end: pass\nprint(t.process_time())"
    )
    assert float((await box.exec(["python3", "-c", spin])).stdout) < 0.6


async def test_what_root_inside_may_not_do(pool):
    box = await pool.create()
    for line in (
        "mount -t tmpfs tmpfs /mnt",
        "mount -o remount,rw /usr",
        "umount /proc",
        "umount -l /dev",
        "unshare --user true",
        "unshare --mount true",
        "unshare --net true",
        "chroot / true",
        "mknod /tmp/disk b 254 0",
        "hostname other",
        "cat /proc/1/environ",
        "ls /proc/1/cwd/",
        "ls /proc/1/root/",
        "echo 1 > /proc/sys/user/max_user_namespaces",
        "echo b > /proc/sysrq-trigger",
        "chmod 600 /dev/null",
        "touch /dev/new",
        "dmesg",
        "date --set 2001-01-01",
        "nice -n -5 true 2>&1 | grep -c Permission | grep -q 0",
    ):
        result = await box.exec(line)
        assert result.exit_code != 0, line
    sockets = (
        "import socket\n"
        "for family in (socket.AF_VSOCK, socket.AF_PACKET, socket.AF_ALG):\n"
        "    try: socket.socket(family, socket.SOCK_STREAM); print('open', family)\n"
        "    except OSError as error: print(error.errno)\n"
    )
    assert (await box.exec(["python3", "-c", sockets])).stdout.split() == ["1", "1", "1"]
    ptrace = (
        "import ctypes\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "print(libc.ptrace(16, 1, 0, 0), ctypes.get_errno())\n"  # PTRACE_ATTACH
        "print(libc.syscall(321, 0, 0, 0), ctypes.get_errno())\n"  # bpf on x86-64, free on aarch64
    )
    attach, bpf = (await box.exec(["python3", "-c", ptrace])).stdout.splitlines()
    assert attach == "-1 1" and bpf.startswith("-1")
