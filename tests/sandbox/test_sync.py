"""Sandboxes without await."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from lathe.errors import InfrastructureError, SandboxGone
from lathe.sandbox.pool import open_pool_sync
from lathe.sandbox.spec import SandboxSpec


@pytest.fixture
def sync_pool(probed, nothing_left):
    try:
        with open_pool_sync("namespace") as pool:
            yield pool
    except InfrastructureError as error:
        pytest.skip(f"no namespaces here: {error}")


def test_everything_works_without_await(sync_pool):
    assert sync_pool.backend == "namespace"
    box = sync_pool.create(SandboxSpec(hostname="box"))
    assert box.workdir == "/work"
    assert box.exec("hostname").check().stdout == "box\n"
    box.write("file", "text")
    assert box.read("file") == b"text" and [each.path for each in box.list("/work")] == ["/work/file"]
    fork = box.fork()
    box.write("file", "other")
    assert fork.read("file") == b"text"
    assert sync_pool.create(SandboxSpec(image=fork.snapshot())).read("file") == b"text"
    shell = box.shell()
    shell.run("cd /tmp")
    assert shell.run("pwd").stdout == "/tmp\n"
    process = box.start("echo up; sleep 1000")
    with pytest.raises(TimeoutError):
        process.wait(0.05)
    process.kill()
    assert process.wait().exit_code == 137
    box.hibernate()
    assert box.read("file") == b"other"
    box.close()
    with pytest.raises(SandboxGone):
        box.exec(["true"])


def test_threads_share_a_pool(sync_pool):
    def work(number: int) -> str:
        box = sync_pool.create()
        try:
            return box.exec(["echo", str(number)]).stdout
        finally:
            box.close()

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(work, range(40))) == [f"{number}\n" for number in range(40)]
