"""Files of a sandbox, read and written from outside."""

import asyncio
import gc
import os

import pytest


async def test_what_is_written_is_read(pool):
    box = await pool.create()
    await box.write("a/b/text", "grün\n")
    await box.write("/tmp/bytes", bytes(range(256)) * 10_000, mode=0o755)
    assert (await box.exec("cat a/b/text; stat -c %a:%s /tmp/bytes")).stdout == "grün\n755:2560000\n"
    assert await box.read("/work/a/b/text") == "grün\n".encode()
    assert await box.read("/tmp/bytes") == bytes(range(256)) * 10_000
    await box.write("/tmp/bytes", "")
    assert (await box.exec("stat -c %a:%s /tmp/bytes")).stdout == "755:0\n"  # the mode stays


async def test_what_cant_be_read_says_why(pool):
    box = await pool.create()
    with pytest.raises(FileNotFoundError):
        await box.read("nothing")
    with pytest.raises(IsADirectoryError):
        await box.read("/tmp")
    with pytest.raises(IsADirectoryError):
        await box.write("/tmp", "text")
    await box.exec("mkfifo pipe")
    with pytest.raises(ValueError, match="no regular file"):
        await box.read("pipe")
    with pytest.raises(ValueError, match="no regular file"):
        await box.read("/dev/zero")
    await box.write("long", "x" * 100)
    with pytest.raises(ValueError, match="100 bytes"):
        await box.read("long", max_bytes=99)
    assert len(await box.read("long", max_bytes=100)) == 100


async def test_a_folder_is_listed(pool):
    box = await pool.create()
    await box.exec(
        "mkdir d; echo 123 > d/file; chmod 640 d/file; ln -s /etc/passwd d/link; mkfifo d/pipe; mkdir d/sub"
    )
    entries = await box.list("d")
    assert [(each.path, each.kind) for each in entries] == [
        ("d/file", "file"),
        ("d/link", "link"),
        ("d/pipe", "other"),
        ("d/sub", "folder"),
    ]
    assert entries[0].num_bytes == 4 and entries[0].mode == 0o640


async def test_a_link_can_lead_to_nothing_of_this_machine(pool, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("hunter2")
    box = await pool.create()
    await box.exec(["ln", "-s", str(secret), "link"])
    with pytest.raises(FileNotFoundError):
        await box.read("link")
    for way in ("/proc/1/root", "/proc/1/cwd/..", "/proc/self/root", "/../../.."):
        with pytest.raises(OSError):
            await box.read(f"{way}{secret}")


async def test_folders_go_in_and_out(pool, tmp_path):
    source = tmp_path / "source"
    (source / "deep/er").mkdir(parents=True)
    (source / "deep/er/file").write_bytes(os.urandom(3_000_000))
    (source / "run").write_text("#!/bin/sh\necho ran\n")
    (source / "run").chmod(0o755)
    (source / "link").symlink_to("/etc/passwd")
    box = await pool.create()
    await box.upload(source, "put")
    assert (await box.exec("./put/run; readlink put/link")).stdout == "ran\n/etc/passwd\n"
    await box.upload(source / "run", "single")
    assert await box.read("single") == b"#!/bin/sh\necho ran\n"
    await box.download("put", tmp_path / "back")
    assert (tmp_path / "back/deep/er/file").read_bytes() == (source / "deep/er/file").read_bytes()
    assert (tmp_path / "back/link").readlink() == (source / "link").readlink()
    assert (tmp_path / "back/run").stat().st_mode & 0o777 == 0o755
    with pytest.raises(FileNotFoundError):
        await box.download("nothing", tmp_path / "x")


async def test_a_download_writes_through_no_link(pool, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "target").mkdir()
    (tmp_path / "target/door").symlink_to(outside)
    box = await pool.create()
    await box.exec("mkdir -p tree/door; echo planted > tree/door/file")
    await box.download("tree", tmp_path / "target")
    assert not list(outside.iterdir())
    assert (tmp_path / "target/door/file").read_text() == "planted\n"


async def test_a_cancelled_write_ends_without_a_complaint(pool):
    box = await pool.create()
    complaints = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    for place in range(20):
        writing = asyncio.create_task(box.write("long", bytes(4 << 20)))
        await asyncio.sleep(0.001 * place)
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        del writing
    gc.collect()
    await box.write("short", "x")
    assert await box.read("short") == b"x" and complaints == []
