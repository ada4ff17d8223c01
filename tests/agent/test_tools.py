"""Each tool in a real sandbox: what it does, and what it tells a model that asked wrongly."""

import asyncio
import re

import pytest

from lathe.agent.prompt import SYSTEM
from lathe.agent.tools import NATIVE_TOOLS, Output, ToolError, Workspace
from lathe.agent.tools.bash import BASH
from lathe.agent.tools.edit import EDIT
from lathe.agent.tools.glob import GLOB
from lathe.agent.tools.grep import GREP
from lathe.agent.tools.listing import as_regex
from lathe.agent.tools.read import READ
from lathe.agent.tools.todo import TODO
from lathe.agent.tools.write import WRITE
from lathe.sandbox.spec import SandboxSpec
from lathe.text.chat_template import ChatTemplate
from lathe.types import Message


@pytest.fixture
def work(box) -> Workspace:
    return Workspace(box)


async def use(tool, work, **arguments) -> Output:
    return await tool.run(work, arguments)


async def said(tool, work, **arguments) -> str:
    return (await use(tool, work, **arguments)).text


async def refused(tool, work, **arguments) -> str:
    with pytest.raises(ToolError) as caught:
        await use(tool, work, **arguments)
    return str(caught.value)


def test_seven_tools_and_the_system_prompt_are_small(qwen):
    assert [tool.name for tool in NATIVE_TOOLS] == ["bash", "read", "write", "edit", "grep", "glob", "todo"]
    specs = [tool.spec for tool in NATIVE_TOOLS]
    prompt = ChatTemplate.builtin().encode(qwen, [Message("system", SYSTEM), Message("user", "Hi")], specs)
    assert 500 < len(prompt) < 2000


# bash


async def test_bash_shows_output_and_how_it_ended(work):
    assert await use(BASH, work, command="echo one; echo two >&2; echo three") == Output("one\ntwo\nthree")
    failed = await use(BASH, work, command="echo no; exit 3")
    assert failed == Output("no\n[exit code 3]", is_error=True)
    assert await said(BASH, work, command="true") == "[no output]"
    assert "line 1" in await said(BASH, work, command="nosuchcommand")
    assert await said(BASH, work, command="cat") == "[no output]"  # nothing on stdin, and no waiting for it


async def test_bash_keeps_its_folder_and_nothing_else(work):
    assert (
        await said(BASH, work, command="mkdir -p a/b; cd a; x=1; false")
        == f"[exit code 1]\n[now in {work.sandbox.workdir}/a]"
    )
    assert await said(BASH, work, command="pwd; echo [$x]") == f"{work.sandbox.workdir}/a\n[]"
    assert await said(BASH, work, command="(cd b; true); exit 0") == "[no output]"
    assert f"[now in {work.sandbox.workdir}/a/b]" in await said(BASH, work, command="cd b && exit 4")
    await use(WRITE, work, file_path="f.txt", content="here")
    assert await work.sandbox.read(f"{work.sandbox.workdir}/a/b/f.txt") == b"here\n"
    # A folder that is gone, and a command that breaks our file, leave it where it was.
    assert "[now in" not in await said(
        BASH, work, command="rm -rf /tmp/.lathe; mkdir -p /tmp/.lathe/cwd; cd /"
    )
    await use(BASH, work, command="rm -rf /tmp/.lathe/cwd; cd /work; rm -rf a")
    assert work.cwd == "/work"


async def test_bash_kills_at_the_limit_and_keeps_what_was_said(work):
    result = await use(BASH, work, command="cd /tmp; echo begun; sleep 60; echo never", timeout_s=1)
    assert (
        result.is_error and result.text.startswith("begun\n[killed after 1 s") and "never" not in result.text
    )
    assert (await use(BASH, work, command="echo alive")).text.startswith("alive")


async def test_bash_is_not_held_up_by_what_it_leaves_running(work):
    async with asyncio.timeout(30):
        assert await said(BASH, work, command="sleep 1000 & echo gone on") == "gone on"


@pytest.mark.parametrize(
    "ways", [{"command": "python3 -u s.py", "background": True}, {"command": "python3 -u s.py &"}]
)
async def test_bash_starts_what_goes_on_running(work, ways):
    await work.sandbox.write("s.py", "import time\nprint('serving')\nwhile True: time.sleep(0.1)")
    text = await said(BASH, work, **ways)
    pid, log = text.split("process ")[1].split(";")[0], text.split(" in ")[-1].rstrip("]")
    heard = f"until grep serving {log}; do sleep 0.05; done"
    assert await said(BASH, work, command=heard, timeout_s=30) == "serving"
    assert await said(BASH, work, command=f"kill {pid}") == "[no output]"


async def test_bash_tells_when_the_background_ends_at_once(work):
    result = await use(BASH, work, command="echo sorry; exit 2 &", background=True)
    assert result == Output("sorry\n[it ended already, with exit code 2]", is_error=True)


async def test_long_output_is_cut_in_its_middle_and_kept(work):
    text = await said(BASH, work, command="seq 1 100000; printf '\\xff'")
    assert len(text) < 10_300
    assert text.startswith("1\n2\n3\n") and "99999\n100000\n\ufffd" in text
    kept = text.split("all of it is in ")[1].split(" ")[0]
    whole = await work.sandbox.read(kept)
    assert whole.startswith(b"1\n2\n") and b"\n50000\n" in whole
    assert await said(BASH, work, command=f"wc -l < {kept}") == "100000"
    one_line = await said(BASH, work, command="head -c 50000 /dev/zero | tr '\\0' x")
    assert len(one_line) < 10_300 and one_line.startswith("xxxx") and one_line.endswith("xxxx")


async def test_an_image_without_bash(work, monkeypatch):
    monkeypatch.setattr("lathe.agent.tools.bash.START", 'PATH=/none; exec /bin/sh -c "$1" 2>&1')
    assert await said(BASH, work, command="cd /; echo hi") == "hi\n[now in /]"


# read


async def test_read_numbers_lines(work):
    await work.sandbox.write("a.txt", "one\n\ttwo\r\nthree")
    assert await said(READ, work, file_path="a.txt") == "     1\tone\n     2\t\ttwo\n     3\tthree"
    assert await said(READ, work, file_path=f"{work.sandbox.workdir}/a.txt", offset=2, limit=1) == (
        "     2\t\ttwo\n[lines 2-2 of 3; go on with offset=3]"
    )
    assert "3 lines; offset 9 is behind" in await said(READ, work, file_path="a.txt", offset=9)
    await work.sandbox.write("empty", "")
    assert "is empty" in await said(READ, work, file_path="empty")


async def test_read_stops_at_whole_lines_and_says_where_to_go_on(work):
    await work.sandbox.write("long.py", "".join(f"line {n} {'x' * 60}\n" for n in range(1, 2001)))
    text = await said(READ, work, file_path="long.py")
    assert len(text) <= 2 * work.max_output_chars + 100
    last, note = text.splitlines()[-2:]
    number = int(last.split("\t")[0])
    assert note == f"[lines 1-{number} of 2000; go on with offset={number + 1}]"
    on = await said(READ, work, file_path="long.py", offset=number + 1)
    assert on.startswith(f"{number + 1:6}\tline {number + 1} ")
    await work.sandbox.write("wide", "y" * 5000 + "\nz\n")
    assert "[… 3000 characters more]" in await said(READ, work, file_path="wide")


async def test_read_names_what_is_no_text(work):
    await work.sandbox.write("b.bin", b"\x7fELF\0\0")
    await work.sandbox.write("l.txt", "é".encode("latin-1"))
    await work.sandbox.write("dir/main.py", "x")
    assert "binary file of 6 bytes" in await refused(READ, work, file_path="b.bin")
    assert "not UTF-8" in await refused(READ, work, file_path="l.txt")
    assert "is a folder" in await refused(READ, work, file_path="dir")
    assert f"Did you mean {work.sandbox.workdir}/dir/main.py?" in await refused(
        READ, work, file_path="dir/mian.py"
    )
    assert "Nor does the folder" in await refused(READ, work, file_path="nowhere/x.py")
    await work.sandbox.exec("truncate -s 30M big")
    assert "can't be read" in await refused(READ, work, file_path="big")


# write


async def test_write_makes_and_replaces(work):
    made = await use(WRITE, work, file_path="new/a.py", content="a = 1\nb = 2")
    assert made.text == f"Wrote {work.sandbox.workdir}/new/a.py (+2 -0 lines)."
    header = f"--- /dev/null\n+++ b{work.sandbox.workdir}/new/a.py\n"
    assert made.diff == header + "@@ -0,0 +1,2 @@\n+a = 1\n+b = 2\n"
    assert await work.sandbox.read("new/a.py") == b"a = 1\nb = 2\n"
    replaced = await use(WRITE, work, file_path="new/a.py", content="a = 1\nb = 3\n")
    assert replaced.text == f"Replaced {work.sandbox.workdir}/new/a.py (+1 -1 lines)."
    assert replaced.diff.splitlines()[-2:] == ["-b = 2", "+b = 3"]
    await work.sandbox.write("bare", "no newline")
    await use(WRITE, work, file_path="bare", content="still none")
    assert await work.sandbox.read("bare") == b"still none"
    await use(WRITE, work, file_path="empty", content="")
    assert await work.sandbox.read("empty") == b""
    assert await WRITE.preview(work, {"file_path": "bare", "content": "x"}) != ""
    assert await work.sandbox.read("bare") == b"still none"


async def test_write_says_what_it_can_not(work):
    await work.sandbox.write("dir/x", "")
    assert "can't be written" in await refused(WRITE, work, file_path="dir", content="x")
    assert "can't be written" in await refused(WRITE, work, file_path="dir/x/y", content="x")
    await use(WRITE, work, file_path="half", content="a \ud83d b")  # half a surrogate pair
    assert await work.sandbox.read("half") == b"a ? b\n"


# edit

SOURCE = "def f():\n    return 1\n\n\ndef g():\n    return 1\n"


async def test_edit_changes_one_place(work):
    await work.sandbox.write("a.py", SOURCE)
    done = await use(
        EDIT, work, file_path="a.py", old_string="def g():\n    return 1", new_string="def g():\n    return 2"
    )
    assert done.text == f"Edited {work.sandbox.workdir}/a.py (+1 -1 lines)."
    assert done.diff.splitlines()[-2:] == ["-    return 1", "+    return 2"]
    assert (
        await work.sandbox.read("a.py") == SOURCE.replace("g():\n    return 1", "g():\n    return 2").encode()
    )


async def test_edit_replaces_all_where_told(work):
    await work.sandbox.write("a.py", SOURCE)
    message = await refused(EDIT, work, file_path="a.py", old_string="return 1", new_string="return 2")
    assert "2 times" in message and "lines 2, 6" in message and "replace_all" in message
    done = await use(
        EDIT, work, file_path="a.py", old_string="return 1", new_string="return 2", replace_all=True
    )
    assert done.text == f"Edited 2 places of {work.sandbox.workdir}/a.py (+2 -2 lines)."
    assert b"return 1" not in await work.sandbox.read("a.py")


async def test_edit_shows_the_nearest_lines(work):
    await work.sandbox.write("a.py", SOURCE + "\n\ndef compute_total(prices):\n    return sum(prices)\n")
    spaces = await refused(EDIT, work, file_path="a.py", old_string="def f():\n  return 1", new_string="x")
    assert "white space alone" in spaces and "     1\tdef f():\n     2\t    return 1" in spaces
    near = await refused(
        EDIT,
        work,
        file_path="a.py",
        old_string="def compute_totals(price):\n    return sum(price)",
        new_string="x",
    )
    assert "nearest lines" in near and "     9\tdef compute_total(prices):" in near
    numbers = await refused(EDIT, work, file_path="a.py", old_string="     1\tdef f():", new_string="x")
    assert "line numbers" in numbers
    assert "Nothing in it" in await refused(
        EDIT, work, file_path="a.py", old_string="zzzz@@@@", new_string="x"
    )
    assert "use write" in await refused(EDIT, work, file_path="a.py", old_string="", new_string="x")
    assert "the same" in await refused(EDIT, work, file_path="a.py", old_string="f", new_string="f")
    assert "does not exist" in await refused(EDIT, work, file_path="b.py", old_string="f", new_string="g")
    assert (await work.sandbox.read("a.py")).startswith(SOURCE.encode())


@pytest.mark.parametrize("end", ["", "\r\n"])
async def test_edit_keeps_line_ends(work, end):
    await work.sandbox.write("w.txt", f"one\r\ntwo\r\nthree{end}")
    await use(EDIT, work, file_path="w.txt", old_string="one\ntwo", new_string="one\n1.5\ntwo")
    assert await work.sandbox.read("w.txt") == f"one\r\n1.5\r\ntwo\r\nthree{end}".encode()
    await use(EDIT, work, file_path="w.txt", old_string="three", new_string="four")
    assert await work.sandbox.read("w.txt") == f"one\r\n1.5\r\ntwo\r\nfour{end}".encode()


async def test_edit_of_a_long_file_is_quick(work):
    lines = [f"value_{n} = compute({n}, {n + 1})" for n in range(20_000)]
    await work.sandbox.write("long.py", "\n".join(lines))
    async with asyncio.timeout(30):
        message = await refused(
            EDIT, work, file_path="long.py", old_string="value_77 = compute(77, 79)", new_string="x"
        )
        assert "    78\tvalue_77 = compute(77, 78)" in message
        await use(EDIT, work, file_path="long.py", old_string=lines[-1], new_string="end")


# glob and grep


@pytest.fixture
async def tree(work) -> Workspace:
    """Files in a git repository, one of them ignored."""
    names = [
        "src/app.py",
        "src/deep/er/mod.py",
        "src/deep/er/mod.ts",
        "docs/a b.md",
        "top.py",
        "build/out.py",
    ]
    for place, name in enumerate(names):
        await work.sandbox.write(name, f"# {name}\nneedle = {place}\nNeedle\n")
        await work.sandbox.exec(["touch", "-d", f"2026-01-0{place + 1}", name])
    await work.sandbox.write(".gitignore", "build/\n")
    await work.sandbox.exec(["touch", "-d", "2025-01-01", ".gitignore"])
    result = await work.sandbox.exec(
        "git init -q . && git add -A && git -c user.name=a -c user.email=b commit -qm x"
    )
    assert result.exit_code == 0, result
    return work


async def test_glob_finds_files_latest_first(tree):
    assert await said(GLOB, tree, pattern="**/*.py") == "top.py\nsrc/deep/er/mod.py\nsrc/app.py"
    assert await said(GLOB, tree, pattern="*.py", path="src") == "deep/er/mod.py\napp.py"
    assert await said(GLOB, tree, pattern="src/**/mod.{py,ts}") == "src/deep/er/mod.ts\nsrc/deep/er/mod.py"
    assert await said(GLOB, tree, pattern="docs/*") == "docs/a b.md"
    assert "No file in /work matches" in await said(GLOB, tree, pattern="*.rs")
    assert "is no folder" in await refused(GLOB, tree, pattern="*", path="nope")
    await tree.sandbox.write("untracked.py", "")
    assert (await said(GLOB, tree, pattern="*.py")).startswith("untracked.py\n")
    await tree.sandbox.exec("rm top.py")
    assert "top.py" not in await said(GLOB, tree, pattern="*.py")


async def test_glob_without_git_and_with_many_files(work):
    await work.sandbox.exec("mkdir d; cd d; for n in $(seq 1 150); do : > f$n.txt; done")
    text = await said(GLOB, work, pattern="*.txt")
    assert len(text.splitlines()) == 101 and text.endswith("[50 files more; use a narrower pattern]")


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("*.py", ["a.py", "x/y/a.py"], ["a.pyc", "py"]),
        ("src/*.py", ["src/a.py"], ["src/x/a.py", "a/src/a.py"]),
        ("src/**", ["src/a", "src/x/y"], ["other/a"]),
        ("**/test_*.py", ["test_a.py", "x/test_b.py"], ["x/a_test.py"]),
        ("a?c.[ch]", ["abc.c", "x/abc.h"], ["abbc.c", "abc.x"]),
        ("[!a].txt", ["b.txt"], ["a.txt"]),
        ("*.{js,t{s,sx}}", ["a.js", "a.ts", "a.tsx"], ["a.t"]),
        ("a{b.txt", ["a{b.txt"], ["ab.txt"]),
        ("a+(b).txt", ["a+(b).txt"], ["aab.txt"]),
    ],
)
def test_globs(pattern, yes, no):
    matches = re.compile(as_regex(pattern)).fullmatch
    assert all(map(matches, yes)) and not any(map(matches, no))


async def test_grep_finds_lines(tree):
    assert await said(GREP, tree, pattern="needle = [0-3]", glob="*.py") == (
        "src/app.py:2:needle = 0\nsrc/deep/er/mod.py:2:needle = 1"
    )
    assert await said(GREP, tree, pattern="(?i)^NEEDLE$", path="docs") == "a b.md:3:Needle"
    assert await said(GREP, tree, pattern="needle", path="src/app.py") == "app.py:2:needle = 0"
    assert await said(GREP, tree, pattern="build/out") == "No line matches 'build/out'."  # git ignores it
    assert await said(GREP, tree, pattern="-v|--help") == "No line matches '-v|--help'."
    assert "can't be searched" in await refused(GREP, tree, pattern="(")
    assert "does not exist" in await refused(GREP, tree, pattern="x", path="nope")
    assert "no files" in await said(GREP, tree, pattern="x", glob="*.rs")


async def test_grep_shortens(work):
    await work.sandbox.write("many", "needle\n" * 500)
    await work.sandbox.write("wide.js", "needle" + "x" * 5000)
    await work.sandbox.write("bin", b"needle\0needle")
    text = await said(GREP, work, pattern="needle")
    lines = text.splitlines()
    assert lines[-1] == "[301 lines more; use a narrower pattern, path or glob]" and len(lines) == 201
    assert len(await said(GREP, work, pattern="needle", path="wide.js")) < 400
    assert "bin:" not in text


@pytest.mark.parametrize(
    ("name", "script"),
    [
        ("grep", 'case "$1" in -*P*) exit 2;; esac; exec /usr/bin/grep "$@"'),  # as busybox's, without -P
        ("rg", 'test "$1 $2 $3 $4" = "-nH --no-heading --color never" && shift 4 && exec grep -nHE "$@"'),
    ],
)
async def test_grep_with_what_the_image_has(pool, name, script):
    env = {"PATH": "/opt/mine:/usr/bin:/bin"}
    work = Workspace(await pool.create(SandboxSpec(env=env)))
    await work.sandbox.write(f"/opt/mine/{name}", f"#!/bin/sh\n{script}\n", mode=0o755)
    await work.sandbox.write("b/a b.py", "x\nneedle = 0\n")
    assert await said(GREP, work, pattern="needle = [01]") == "b/a b.py:2:needle = 0"


# todo


async def test_todo_shows_the_plan(work):
    todos = [{"content": "Look", "status": "completed"}, {"content": "Mend", "status": "in_progress"}]
    assert await said(TODO, work, todos=todos) == "[x] Look\n[>] Mend"
    assert work.todos == todos
    assert await said(TODO, work, todos=[]) == "[the list is empty]"
