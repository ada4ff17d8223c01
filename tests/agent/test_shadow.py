"""Files come back, and the person's own git never notices."""

import os
import subprocess
from pathlib import Path

import pytest

from lathe.agent import shadow as shadow_module
from lathe.agent.shadow import Shadow, ShadowError


def git(folder: Path, *words: str) -> str:
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_AUTHOR_NAME": "a",
        "GIT_AUTHOR_EMAIL": "a@b",
        "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@b",
    }
    done = subprocess.run(["git", *words], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def tree_of(folder: Path) -> dict[str, bytes | str]:
    found: dict[str, bytes | str] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        elif path.is_file():
            found[name] = path.read_bytes() + oct(path.stat().st_mode & 0o100).encode()
    return found


@pytest.fixture
def folder(tmp_path) -> Path:
    """No repository, with the files that are hard to keep."""
    folder = tmp_path / "project"
    (folder / "src").mkdir(parents=True)
    (folder / "src" / "a.py").write_text("one = 1\n")
    (folder / "crlf.txt").write_bytes(b"a\r\nb\n\xff\x00")
    (folder / "run.sh").write_text("#!/bin/sh\n")
    (folder / "run.sh").chmod(0o755)
    (folder / "link").symlink_to("src/a.py")
    (folder / "a name\nof two lines").write_text("x")
    (folder / ".gitignore").write_text("ignored/\n*.log\n")
    (folder / "ignored").mkdir()
    (folder / "ignored" / "cache").write_text("c")
    return folder


@pytest.fixture
def shadow(folder, tmp_path) -> Shadow:
    return Shadow(folder, tmp_path / "state" / "shadow")


def test_everything_that_a_command_did_is_undone(folder, shadow):
    before = tree_of(folder)
    start = shadow.snapshot()
    (folder / "src" / "a.py").write_text("one = 2\n")
    (folder / "run.sh").chmod(0o644)
    (folder / "link").unlink()
    (folder / "link").write_text("no link any more")
    (folder / "crlf.txt").unlink()
    (folder / "new" / "deep").mkdir(parents=True)
    (folder / "new" / "deep" / "made.py").write_text("made")
    (folder / "a name\nof two lines").unlink()
    (folder / "a name\nof two lines").mkdir()
    (folder / "a name\nof two lines" / "inside").write_text("a folder now")
    rewind = shadow.plan(start)
    assert set(rewind.deleted) == {"new/deep/made.py", "a name\nof two lines/inside"}
    shadow.apply(rewind)
    assert tree_of(folder) == before
    assert not (folder / "new").exists()
    assert shadow.snapshot() == start
    shadow.apply(shadow.plan(rewind.now))  # there again
    assert (folder / "new" / "deep" / "made.py").read_text() == "made"
    assert (folder / "src" / "a.py").read_text() == "one = 2\n"


def test_an_unchanged_folder_has_nothing_to_rewind(folder, shadow):
    start = shadow.snapshot()
    assert shadow.plan(start).is_nothing
    assert shadow.diff(start, shadow.snapshot()) == ""


def test_ignored_files_stay_as_they_are(folder, shadow):
    start = shadow.snapshot()
    (folder / "ignored" / "cache").write_text("newer")
    (folder / "x.log").write_text("log")
    rewind = shadow.plan(start)
    assert rewind.is_nothing


def test_a_file_that_was_ignored_is_not_deleted_because_the_rules_changed(folder, shadow):
    (folder / ".env.log").write_text("secret")
    start = shadow.snapshot()
    (folder / ".gitignore").write_text("")
    (folder / "made").write_text("since")
    rewind = shadow.plan(start)
    assert rewind.deleted == ("made",)
    shadow.apply(rewind)
    assert (folder / ".env.log").read_text() == "secret"
    assert (folder / "ignored" / "cache").read_text() == "c"


def test_a_large_file_is_told_and_left(folder, shadow, monkeypatch):
    monkeypatch.setattr(shadow_module, "MAX_FILE_BYTES", 1000)
    (folder / "big.bin").write_bytes(b"b" * 2000)
    start = shadow.snapshot()
    assert start.uncovered == ("big.bin",)
    (folder / "big.bin").write_bytes(b"small now")
    rewind = shadow.plan(start)
    assert rewind.is_nothing  # it was there, and its content is not known
    small = shadow.snapshot()
    (folder / "big.bin").write_bytes(b"b" * 3000)
    assert shadow.plan(small).written == ("big.bin",)


def test_too_many_files_are_refused(folder, shadow, monkeypatch):
    monkeypatch.setattr(shadow_module, "MAX_FILES", 3)
    with pytest.raises(ShadowError, match="more than 3"):
        shadow.snapshot()


def test_what_the_person_changed_between_turns_is_told_and_can_be_kept(folder, shadow):
    before = shadow.snapshot()
    (folder / "src" / "a.py").write_text("the agent's\n")
    (folder / "made.py").write_text("the agent's\n")
    after = shadow.snapshot()
    (folder / "crlf.txt").write_text("the person's\n")
    before_2 = shadow.snapshot()
    (folder / "run.sh").write_text("the agent's\n")
    after_2 = shadow.snapshot()
    (folder / "made.py").write_text("the person's\n")
    rewind = shadow.plan(before, [(before, after), (before_2, after_2)])
    assert rewind.persons == ("crlf.txt", "made.py")
    shadow.apply(rewind, keep=rewind.persons)
    assert (folder / "crlf.txt").read_text() == "the person's\n"
    assert (folder / "made.py").read_text() == "the person's\n"
    assert (folder / "src" / "a.py").read_text() == "one = 1\n"
    assert (folder / "run.sh").read_text() == "#!/bin/sh\n"


def test_the_persons_git_is_untouched(folder, shadow):
    git(folder, "init", "-q")
    git(folder, "add", "src")
    git(folder, "commit", "-qm", "first")
    (folder / "src" / "a.py").write_text("stashed\n")
    git(folder, "stash")
    (folder / "src" / "a.py").write_text("staged\n")
    git(folder, "add", "src/a.py")
    git(folder, "add", "-f", "ignored/cache")  # tracked in spite of .gitignore
    (folder / "src" / "a.py").write_text("on disk\n")
    hook = folder / ".git" / "hooks" / "post-index-change"
    hook.write_text(f"#!/bin/sh\ntouch {folder}/hook-ran\n")
    hook.chmod(0o755)
    (folder / ".git" / "info").mkdir(exist_ok=True)
    (folder / ".git" / "info" / "exclude").write_text("private\n")
    (folder / "private").write_text("p")
    theirs = tree_of(folder / ".git")
    start = shadow.snapshot()
    (folder / "src" / "a.py").write_text("the agent's\n")
    (folder / "ignored" / "cache").write_text("the agent's\n")
    (folder / "private").write_text("the agent's\n")
    rewind = shadow.plan(start)
    assert rewind.written == ("ignored/cache", "src/a.py")
    shadow.apply(rewind)
    assert (folder / "src" / "a.py").read_text() == "on disk\n"
    assert (folder / "ignored" / "cache").read_text() == "c"
    assert tree_of(folder / ".git") == theirs
    assert not (folder / "hook-ran").exists()


def test_nothing_that_lies_in_the_folder_is_run(folder, shadow, tmp_path):
    marker = tmp_path / "ran"
    program = folder / "program"
    program.write_text(f"#!/bin/sh\ntouch {marker}\ncat\n")
    program.chmod(0o755)
    git(folder, "init", "-q")
    inner = folder / "inner"
    inner.mkdir()
    git(inner, "init", "-q")
    (inner / "f").write_text("f")
    git(inner, "add", "f")
    git(inner, "commit", "-qm", "x")
    for repository in (folder, inner):
        config = repository / ".git" / "config"
        config.write_text(
            config.read_text()
            + f'[core]\n\tfsmonitor = {program}\n\thooksPath = {folder}\n[filter "f"]\n\tclean = {program}\n'
            + f'\tsmudge = {program}\n[diff "f"]\n\ttextconv = {program}\n\tcommand = {program}\n'
        )
    (folder / ".gitattributes").write_text("* filter=f diff=f text\n")
    start = shadow.snapshot()
    assert "inner/" in start.uncovered
    (folder / "src" / "a.py").write_text("changed\r\n")
    (inner / "f").write_text("changed")
    after = shadow.snapshot()
    assert "+changed" in shadow.diff(start, after)
    shadow.apply(shadow.plan(start))
    assert (folder / "src" / "a.py").read_text() == "one = 1\n"
    assert not marker.exists()


def test_a_link_that_leads_out_is_not_followed(folder, shadow, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "a.py").write_text("outside\n")
    (outside / "made.py").write_text("outside\n")
    start = shadow.snapshot()
    (folder / "src" / "made.py").write_text("made\n")
    rewind = shadow.plan(start)
    # Behind our back, the folder becomes a link.
    (folder / "src" / "made.py").unlink()
    (folder / "src" / "a.py").unlink()
    (folder / "src").rmdir()
    (folder / "src").symlink_to(outside)
    shadow.apply(rewind)
    assert (outside / "made.py").read_text() == "outside\n"
    shadow.apply(shadow.plan(start))
    assert (outside / "a.py").read_text() == "outside\n"
    assert not (folder / "src").is_symlink()
    assert (folder / "src" / "a.py").read_text() == "one = 1\n"


def test_a_linked_work_tree_is_a_repository(folder, tmp_path):
    git(folder, "init", "-q")
    git(folder, "add", "src")
    git(folder, "commit", "-qm", "first")
    git(folder, "worktree", "add", "-q", str(tmp_path / "linked"))
    linked = Shadow(tmp_path / "linked", tmp_path / "state" / "linked")
    start = linked.snapshot()
    (tmp_path / "linked" / "src" / "a.py").write_text("changed")
    assert linked.plan(start).written == ("src/a.py",)


def test_a_store_inside_the_folder_is_refused(folder):
    with pytest.raises(ShadowError, match="outside"):
        Shadow(folder, folder / ".shadow")


def test_without_git_it_says_so(folder, shadow, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ShadowError, match="git is not installed"):
        shadow.snapshot()
