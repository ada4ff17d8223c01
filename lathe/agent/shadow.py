"""Snapshots of a folder's files, and the way back to one, without touching the person's own git.

Everything is kept in a git directory of our own, outside of the folder: the person's index, HEAD, stashes
and hooks are never used, and a folder that is no repository works as well. What is covered: every file that
git would track there, untracked ones included. What is not: files that .gitignore names, files that are
unreadable or larger than MAX_FILE_BYTES, repositories inside of the folder, empty folders, owners and times.

A program in the sandbox may have written anything into the folder, a .git/config or .gitattributes that names
programs, too. So only git's plumbing is used, with a configuration of our own alone, and no filter runs.
"""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lathe.agent.project import common_folder_of, git_folder_of
from lathe.errors import LatheError

MAX_FILE_BYTES = 8 << 20
MAX_FILES = 50_000
MAX_BYTES = 1 << 30
GIT_TIMEOUT_S = 60

CONFIG = """[core]
\trepositoryformatversion = 0
\tbare = false
\thooksPath = /dev/null
\tautocrlf = false
\tfsmonitor = false
\tuntrackedCache = false
\tquotePath = false
[gc]
\tauto = 0
"""
# These come before every .gitattributes: files are kept byte for byte, and no filter is run.
ATTRIBUTES = "* -text -filter -ident -working-tree-encoding\n"


class ShadowError(LatheError):
    """Files can't be kept or brought back: git is not there, the folder is too large, the disk is full."""


@dataclass(frozen=True)
class Snapshot:
    """The files at one moment. `uncovered` are paths that were there, but not kept; a folder ends in /."""

    tree: str
    uncovered: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rewind:
    """What going back to a snapshot would do: files to write, files to delete (made since). `now` is how to
    undo it. `persons` are those of them that the person changed between the agent's turns."""

    target: Snapshot
    now: Snapshot
    written: tuple[str, ...]
    deleted: tuple[str, ...]
    persons: tuple[str, ...] = ()

    @property
    def is_nothing(self) -> bool:
        return not self.written and not self.deleted


class Shadow:
    """Snapshots of `folder`, kept in `store` (made when needed; one store serves one folder). Blocking.

    Raises ShadowError. Not to be used from two threads at once.
    """

    def __init__(self, folder: Path, store: Path):
        self.folder = folder.resolve()
        self.store = store.resolve()
        if self.store.is_relative_to(self.folder):
            raise ShadowError(
                f"{store} lies in {folder} itself: snapshots are kept outside of what they keep"
            )

    # Keeping

    def snapshot(self) -> Snapshot:
        """Keep all files as they are now. Costs what has changed since the last one, and a walk."""
        self._open()
        listed = self._list("--cached", "--others", "--exclude-standard")
        # Files that the person's git tracks in spite of .gitignore are part of the work, too.
        names = sorted({*listed, *self._tracked_by_the_person()})
        if len(names) > MAX_FILES:
            raise ShadowError(f"{self.folder} has {len(names):,} files; more than {MAX_FILES:,} are not kept")
        kept, uncovered, gone, num_bytes = [], [], [], 0
        for name in names:
            size = self._size_of(name)
            if name.endswith("/") or (size is not None and not self._can_keep(name, size)):
                uncovered.append(name)
                gone.append(name.rstrip("/"))
            elif size is None:
                gone.append(name)
            else:
                kept.append(name)
                num_bytes += size
        if num_bytes > MAX_BYTES:
            raise ShadowError(
                f"{self.folder} holds {num_bytes:,} bytes; more than {MAX_BYTES:,} are not kept"
            )
        if gone:
            self._git("update-index", "-z", "--force-remove", "--stdin", given=gone)
        self._git("update-index", "-z", "--add", "--remove", "--replace", "--stdin", given=kept)
        return Snapshot(self._git("write-tree").decode().strip(), tuple(uncovered))

    def files(self) -> list[str]:
        """What is covered, without keeping it: names for completion."""
        self._open()
        listed = self._list("--cached", "--others", "--exclude-standard")
        return sorted({name for name in listed if not name.endswith("/")})[:MAX_FILES]

    def changed(self, before: Snapshot, after: Snapshot) -> list[str]:
        """Paths whose files differ between two snapshots."""
        if before.tree == after.tree:
            return []
        fields = self._git("diff-tree", "-r", "-z", "--name-only", "--no-renames", before.tree, after.tree)
        return [os.fsdecode(name) for name in fields.split(b"\0") if name]

    def diff(self, before: Snapshot, after: Snapshot) -> str:
        """A unified diff between two snapshots; "" when they are equal."""
        if before.tree == after.tree:
            return ""
        words = ("diff-tree", "-r", "-p", "--no-renames", "--no-ext-diff", "--no-textconv", "--no-color")
        return self._git(*words, before.tree, after.tree).decode("utf-8", "replace")

    # Going back

    def plan(self, target: Snapshot, turns: Sequence[tuple[Snapshot, Snapshot]] = ()) -> Rewind:
        """What it takes to go back to `target`. `turns` are the snapshots around each turn of the agent since
        then, in their order: what changed between them, the person did."""
        self._open()
        now = self.snapshot()
        if target.tree == now.tree:
            return Rewind(target, now, (), ())
        there = set(self._paths_in(target))
        differ = self.changed(target, now)
        written = [name for name in differ if name in there]
        deleted = [name for name in differ if name not in there and not _covers(target.uncovered, name)]
        ignored = self._ignored_at(target, deleted)
        deleted = [name for name in deleted if name not in ignored]
        persons: set[str] = set()
        next_ones = [before for before, _ in turns[1:]] + [now]
        for (_, after), before in zip(turns, next_ones, strict=False):
            persons.update(self.changed(after, before))
        return Rewind(
            target, now, tuple(written), tuple(deleted), tuple(sorted(persons & {*written, *deleted}))
        )

    def apply(self, rewind: Rewind, *, keep: Sequence[str] = ()) -> None:
        """Go back, but leave the files in `keep` as they are."""
        written = [name for name in rewind.written if name not in keep]
        for name in rewind.deleted:
            if name not in keep:
                _delete(self.folder, name)
        index = self.store / "restore-index"
        index.unlink(missing_ok=True)
        self._git("read-tree", rewind.target.tree, index=index)
        self._git("checkout-index", "-f", "-z", "--stdin", given=written, index=index)
        index.unlink(missing_ok=True)

    # Git

    def _open(self) -> None:
        if (self.store / "HEAD").exists():
            self._exclude_what_the_person_excludes()
            return
        try:
            for name in ("objects/info", "objects/pack", "refs/heads", "info"):
                (self.store / name).mkdir(mode=0o700, parents=True, exist_ok=True)
            (self.store / "config").write_text(CONFIG)
            (self.store / "info" / "attributes").write_text(ATTRIBUTES)
            self._exclude_what_the_person_excludes()
            (self.store / "HEAD").write_text("ref: refs/heads/main\n")  # last: now it is a repository
        except OSError as error:
            raise ShadowError(f"snapshots can't be kept in {self.store}: {error.strerror}") from error

    def _exclude_what_the_person_excludes(self) -> None:
        folder = git_folder_of(self.folder)
        theirs = None if folder is None else common_folder_of(folder) / "info" / "exclude"
        text = b""
        if theirs is not None and theirs.is_file() and theirs.stat().st_size < MAX_FILE_BYTES:
            text = theirs.read_bytes()
        ours = self.store / "info" / "exclude"
        if not ours.exists() or ours.read_bytes() != text:
            ours.write_bytes(text)

    def _tracked_by_the_person(self) -> list[str]:
        """By the person's index, which is only read; [] where there is none that can be."""
        folder = git_folder_of(self.folder)
        if folder is None or not (folder / "index").is_file():
            return []
        try:
            names = self._list("--cached", index=folder / "index")
        except ShadowError:  # a split index, or one of a newer git
            return []
        return [name for name in names if self._size_of(name) is not None]

    def _size_of(self, name: str) -> int | None:
        """None for what is no file or link, is gone, or lies beyond a link."""
        try:
            status = os.lstat(self.folder / name)
            if any((self.folder / parent).is_symlink() for parent in _parents_of(name)):
                return None
        except (OSError, ValueError):
            return None
        kind = status.st_mode & 0o170000
        return status.st_size if kind in (0o100000, 0o120000) else None

    def _can_keep(self, name: str, size: int) -> bool:
        place = self.folder / name
        return size <= MAX_FILE_BYTES and (place.is_symlink() or os.access(place, os.R_OK))

    def _list(self, *words: str, index: Path | None = None) -> list[str]:
        listed = self._git("ls-files", "-z", *words, index=index)
        return [os.fsdecode(name) for name in listed.split(b"\0") if name]

    def _paths_in(self, snapshot: Snapshot) -> list[str]:
        listed = self._git("ls-tree", "-r", "-z", "--name-only", snapshot.tree)
        return [os.fsdecode(name) for name in listed.split(b"\0") if name]

    def _ignored_at(self, target: Snapshot, names: Sequence[str]) -> set[str]:
        """Those of the files that the target's .gitignore named: they may be older than the agent's work."""
        if not names:
            return set()
        index = self.store / "ignore-index"
        index.unlink(missing_ok=True)
        self._git("read-tree", target.tree, index=index)
        rules = [name for name in self._paths_in(target) if name.rsplit("/", 1)[-1] == ".gitignore"]
        place = self.store / "ignore-tree"
        place.mkdir(exist_ok=True)
        prefix = f"--prefix={place}/"
        self._git("checkout-index", "-f", "-z", "--stdin", prefix, given=rules, index=index)
        try:
            words = ("check-ignore", "-z", "--no-index", "--stdin")
            found = self._git(*words, given=names, index=index, tree=place, allowed=(0, 1))
            return {os.fsdecode(name) for name in found.split(b"\0") if name}
        finally:
            index.unlink(missing_ok=True)
            for name in rules:
                _delete(place, name)

    def _git(
        self,
        *words: str,
        given: Sequence[str] | None = None,
        index: Path | None = None,
        tree: Path | None = None,
        allowed: tuple[int, ...] = (0,),
    ) -> bytes:
        place = tree or self.folder
        environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "LC_ALL": "C",
            "HOME": str(self.store),
            "GIT_DIR": str(self.store),
            "GIT_WORK_TREE": str(place),
            "GIT_INDEX_FILE": str(index or self.store / "index"),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_ATTR_NOSYSTEM": "1",
            "GIT_OPTIONAL_LOCKS": "0",
            "GIT_TERMINAL_PROMPT": "0",
        }
        stdin = b"".join(os.fsencode(name) + b"\0" for name in given or ())
        try:
            done = subprocess.run(
                ["git", *words],
                cwd=place,
                env=environment,
                input=stdin,
                capture_output=True,
                timeout=GIT_TIMEOUT_S,
            )
        except FileNotFoundError as error:
            raise ShadowError("git is not installed") from error
        except subprocess.TimeoutExpired as error:
            raise ShadowError(f"{self.folder} took longer than {GIT_TIMEOUT_S} s to look through") from error
        except OSError as error:
            raise ShadowError(f"git can't be started in {place}: {error.strerror}") from error
        if done.returncode not in allowed:
            said = done.stderr.decode("utf-8", "replace").strip()
            raise ShadowError(f"git {words[0]} failed: {said[-500:]}")
        return done.stdout


def _parents_of(name: str) -> list[str]:
    parts = name.rstrip("/").split("/")
    return ["/".join(parts[:end]) for end in range(1, len(parts))]


def _covers(uncovered: Sequence[str], name: str) -> bool:
    return any(name == other or (other.endswith("/") and name.startswith(other)) for other in uncovered)


def _delete(folder: Path, name: str) -> None:
    """Delete a file and the folders that it leaves empty. Follows no link on the way: a program in the
    sandbox may just now have put one there that leads out of the folder."""
    *parents, last = name.split("/")
    opened = [os.open(folder, os.O_RDONLY | os.O_DIRECTORY)]
    try:
        for parent in parents:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
            opened.append(os.open(parent, flags, dir_fd=opened[-1]))
        os.unlink(last, dir_fd=opened[-1])  # pathlib has no dir_fd
        for parent, handle in zip(reversed(parents), reversed(opened[:-1]), strict=True):
            os.rmdir(parent, dir_fd=handle)
    except OSError as error:
        harmless = (errno.ENOENT, errno.ENOTDIR, errno.ENOTEMPTY, errno.EEXIST, errno.ELOOP, errno.EBUSY)
        if error.errno not in harmless:
            raise ShadowError(f"{name} can't be deleted: {error.strerror}") from error
    finally:
        for handle in opened:
            os.close(handle)
