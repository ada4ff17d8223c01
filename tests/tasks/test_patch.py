"""A patch holds what was changed, no more, and lays it over another sandbox without leaving the workdir."""

import pytest

from lathe.errors import UserError
from lathe.tasks.patch import (
    Change,
    Patch,
    apply_patch,
    is_inside,
    matches,
    patch_from_json,
    patch_to_json,
    take_listing,
    take_patch,
    to_diff,
)
from lathe.tasks.place import open_place
from lathe.types import HiddenTests, Task

TASK = Task(
    "t",
    "",
    HiddenTests(files={"test_a.py": ""}),
    files={
        "keep.txt": "k\n",
        "edit.txt": "old\n",
        "gone.txt": "g\n",
        "deep/a/b.txt": "b\n",
        "turn": "file\n",
    },
    setup=("mkdir empty && echo built > built.txt",),
)
WORK = r"""
echo new > edit.txt
rm gone.txt
mkdir -p fresh/more && printf '\000\377' > fresh/more/bin && chmod 755 fresh/more/bin
ln -s ../keep.txt fresh/link
ln -s /etc/passwd fresh/outside
rm turn && mkdir turn && echo x > turn/now-a-folder
mkdir __pycache__ && echo c > __pycache__/a.pyc
mkdir .git && echo '[core]' > .git/config
mkfifo pipe
head -c 20000000 /dev/zero > big
touch -d '2001-01-01' edit.txt
chmod 600 keep.txt
"""


@pytest.fixture
async def work(pool):
    """The patch of an agent that did all of WORK."""
    box = await open_place(TASK, pool)
    before = await take_listing(box)
    (await box.exec(WORK)).check()
    patch = await take_patch(box, before)
    await box.close()
    return patch


async def test_it_holds_what_was_changed(pool, work):
    assert dict(work.changes) == {
        "edit.txt": Change(b"new\n"),
        "gone.txt": Change(),
        "fresh/more/bin": Change(b"\0\xff", 0o755),
        "fresh/link": Change(link="../keep.txt"),
        "fresh/outside": Change(link="/etc/passwd"),
        "turn": Change(),
        "turn/now-a-folder": Change(b"x\n"),
        "keep.txt": Change(b"k\n", 0o600),
    }
    assert work.left_out == {"pipe": "no regular file", "big": "too large"}
    assert patch_from_json(patch_to_json(work)).changes == work.changes


async def test_it_makes_another_place_the_same(pool, work):
    box = await open_place(TASK, pool)
    refused = await apply_patch(box, work)
    assert refused == {"fresh/outside": "a link out of the workdir, to /etc/passwd"}
    told = await box.exec(
        "cat edit.txt fresh/link turn/now-a-folder built.txt deep/a/b.txt; stat -c %a fresh/more/bin; ls"
    )
    assert told.stdout.split() == [
        "new", "k", "x", "built", "b", "755", "built.txt", "deep", "edit.txt", "empty", "fresh", "keep.txt",
        "turn",
    ]  # fmt: skip
    assert await box.read("fresh/more/bin") == b"\0\xff"


async def test_nothing_outside_is_touched(pool):
    box = await open_place(TASK, pool)
    hostile = Patch(
        {
            "../up.txt": Change(b"x"),
            "/tmp/abs.txt": Change(b"x"),
            "a/../../up2.txt": Change(b"x"),
            "../../etc/passwd": Change(),
            "way": Change(link="/tmp"),
            "sneaky/../../../tmp/s": Change(link="x"),
            "fine.txt": Change(b"fine"),
        }
    )
    refused = await apply_patch(box, hostile)
    assert refused.keys() == hostile.changes.keys() - {"fine.txt"}
    assert (await box.exec("ls /tmp /work/.. | grep -c -e up -e abs -e way")).stdout == "0\n"
    assert (await box.exec("test -s /etc/passwd")).exit_code == 0


def test_patterns():
    assert matches("a/conftest.py", ("*/conftest.py",))
    assert matches(".git/hooks/x", (".git",))
    assert matches("tests/deep/x.py", ("tests/",))
    assert not matches("mytests/x.py", ("tests",))
    assert is_inside("a/../b")
    assert not any(map(is_inside, ("", ".", "..", "../a", "/a", "a/../..", "a\0b")))


def test_protected_changes_are_left_out_by_name():
    patch = Patch.of({"a.py": "", "conftest.py": "", "tests/x.py": None})
    kept = patch.without(("conftest.py", "tests"), "protected")
    assert list(kept.changes) == ["a.py"]
    assert kept.left_out == {"conftest.py": "protected", "tests/x.py": "protected"}


def test_a_diff_for_people():
    patch = Patch({"a": Change(b"1\n2\n"), "n": Change(b"new"), "d": Change(), "b": Change(b"\0")})
    assert to_diff(patch, {"a": b"1\n3\n", "d": b"x\n"}).splitlines() == [
        "--- a/a", "+++ b/a", "@@ -1,2 +1,2 @@", " 1", "-3", "+2",
        "--- /dev/null", "+++ b/n", "@@ -0,0 +1 @@", "+new", "\\ No newline at end of file",
        "--- a/d", "+++ /dev/null", "@@ -1 +0,0 @@", "-x", "binary file b changed",
    ]  # fmt: skip


@pytest.mark.parametrize("value", [[], {"a": {}}, {"a": {"base64": "!"}}, {"a": 3}, {"a": {"text": 1}}])
def test_what_is_no_patch(value):
    with pytest.raises(UserError, match="no patch"):
        patch_from_json(value)
