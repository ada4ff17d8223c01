"""Commits of a repository, undone: bugs that its authors had, and mended with a test."""

from __future__ import annotations

import ast
import tempfile
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from lathe.errors import UserError
from lathe.sandbox.sources import git
from lathe.synth.repository.bugs import Bug, changed_places
from lathe.synth.repository.checkout import NOT_SOURCE, Repository

MAX_LINES = 200  # of a commit's change: larger ones are features, not mistakes


def undone_commits(repository: Repository, *, num_commits: int = 300) -> Iterator[Bug]:
    """For each of the last commits that changed modules: the newest files without that change.

    A commit that later ones built upon, so that it can't be taken out alone, is passed over. Git is only
    asked for objects, never to check anything out, so that no setting of the repository runs a program.
    """
    if repository.commit is None:
        return
    origin = Path(repository.origin)
    log = git("rev-list", "--no-merges", f"--max-count={num_commits}", repository.commit, cwd=origin)
    for commit in log.splitlines():
        files = without_commit(repository, origin, commit)
        places = changed_places(repository, files)
        if files and places:
            subject = git("log", "-1", "--format=%s", commit, cwd=origin)
            yield Bug("commit", f"{commit}: {subject}", files, places)


def without_commit(repository: Repository, origin: Path, commit: str) -> dict[str, str]:
    """The modules that a commit changed, as they would be today without it; empty where nobody can say."""
    if len(git("rev-list", "--parents", "--max-count=1", commit, cwd=origin).split()) != 2:
        return {}  # the first commit of all
    rows = git("diff-tree", "-r", "--no-commit-id", "--name-status", "--no-renames", commit, cwd=origin)
    files = {}
    for status, _, path in (line.partition("\t") for line in rows.splitlines()):
        if not path.endswith(".py") or any(fnmatch(path, each) for each in NOT_SOURCE):
            continue
        if status != "M" or path not in repository.sources:
            return {}  # files that came or went are no mistake in a function
        before, after = (blob(origin, f"{commit}{end}:{path}") for end in ("^", ""))
        text = merged(repository.texts[path], after, before)
        if text is None or not is_small(repository.texts[path], text):
            return {}
        files[path] = text
    return {path: text for path, text in files.items() if text != repository.texts[path]}


def blob(origin: Path, name: str) -> str:
    """A file of a commit, its last newline included."""
    size = int(git("cat-file", "-s", name, cwd=origin))
    text = git("cat-file", "blob", name, cwd=origin)
    return text + "\n" * (size > len(text.encode()))


def merged(now: str, base: str, other: str) -> str | None:
    """`now` with the way from `base` to `other` gone, too. None where they contradict, or it is no Python."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("now", "base", "other")]
        for path, text in zip(paths, (now, base, other), strict=True):
            path.write_text(text, "utf-8", newline="")
        try:
            git("merge-file", "-q", *(str(path) for path in paths))
        except UserError:
            return None
        text = paths[0].read_text("utf-8")
    try:
        compile(text, "<merged>", "exec", ast.PyCF_ONLY_AST, dont_inherit=True)
    except (SyntaxError, ValueError):
        return None
    return text


def is_small(was: str, now: str) -> bool:
    lines = [text.splitlines() for text in (was, now)]
    gone, new = (set(one) - set(other) for one, other in (lines, lines[::-1]))
    return 0 < len(gone | new) <= MAX_LINES
