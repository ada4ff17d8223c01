"""What layers are filled from: a folder, a git repository, a list of Python packages."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path

from lathe.errors import UserError

FULL_ID = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
GIT_TIMEOUT_S = 1800.0


def copy_folder(source: Path, target: Path) -> None:
    """Copy files, folders and links, with rights (no setuid) and times, into the empty folder `target`."""
    try:
        for entry in sorted(os.scandir(source), key=lambda each: each.name):
            to = target / entry.name
            status = entry.stat(follow_symlinks=False)
            if entry.is_symlink():
                to.symlink_to(Path(entry.path).readlink())
            elif entry.is_dir():
                to.mkdir()
                copy_folder(Path(entry.path), to)
            elif entry.is_file():
                shutil.copyfile(entry.path, to, follow_symlinks=False)
            else:
                continue
            if not entry.is_symlink():
                to.chmod(stat.S_IMODE(status.st_mode) & 0o1777)
                os.utime(to, ns=(status.st_atime_ns, status.st_mtime_ns))
        target.chmod(stat.S_IMODE(source.stat().st_mode) & 0o1777 | 0o700)
    except OSError as error:
        raise UserError(
            f"{error.filename or source} can't be copied into an image: {error.strerror}"
        ) from error


def git(*arguments: str, cwd: Path | None = None) -> str:
    """Run git, with nobody's settings and no questions. Raises UserError with what it said."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    env |= {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull, "GIT_TERMINAL_PROMPT": "0"}
    try:
        done = subprocess.run(
            ["git", "-c", "safe.directory=*", "-c", "protocol.ext.allow=never", *arguments],
            cwd=cwd,
            env={**env, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=GIT_TIMEOUT_S,
        )
    except FileNotFoundError:
        raise UserError("git is not installed on this machine, or not on the PATH") from None
    except subprocess.TimeoutExpired:
        raise UserError(f"git {arguments[0]} did not end in {GIT_TIMEOUT_S:.0f} s") from None
    if done.returncode:
        raise UserError(f"git {arguments[0]} failed: {done.stderr.strip()[-1500:]}")
    return done.stdout.strip()


def resolve_commit(repo: str, commit: str) -> str:
    """The whole id of a commit. Raises UserError when the repository or the commit is not there."""
    for what, word in (("repository", repo), ("commit", commit)):
        if not word or word.startswith("-") or "\0" in word:
            raise UserError(f"{word!r} is no name of a {what}")
    if Path(repo).exists():
        try:
            return git("rev-parse", "--verify", "--end-of-options", f"{commit}^{{commit}}", cwd=Path(repo))
        except UserError as error:
            raise UserError(f"{repo} has no commit {commit!r}, or is no git repository ({error})") from None
    if "://" not in repo and not re.match(r"[^/]+@[^/]+:", repo):
        raise UserError(f"there is no repository {repo}: neither a folder of this machine nor a URL")
    if FULL_ID.fullmatch(commit):
        return commit
    rows = [line.split("\t") for line in git("ls-remote", "--", repo, commit, f"{commit}^{{}}").splitlines()]
    names = {name: each for each, name in rows}
    for name in (f"refs/tags/{commit}^{{}}", f"refs/tags/{commit}", f"refs/heads/{commit}", commit):
        if name in names:
            return names[name]
    raise UserError(f"{repo} has no branch or tag {commit!r}; any other commit needs all of its 40 digits")


def git_checkout(repo: str, commit: str, target: Path) -> None:
    """The files of a commit in the empty folder `target`, and a `.git` that holds this commit alone."""
    where = str(Path(repo).resolve()) if Path(repo).exists() else repo
    template = "--template="  # no hooks, no samples
    git("init", "-q", "--object-format", "sha256" if len(commit) == 64 else "sha1", template, cwd=target)
    # The other end is told to give out a commit that no branch ends at; of a URL, it decides.
    upload = "git -c safe.directory=* -c uploadpack.allowAnySHA1InWant=true upload-pack"
    other = [f"--upload-pack={upload}"] if where.startswith("/") else []
    # A path is turned into a URL: a plain one would be copied whole, without regard for the depth.
    place = f"file://{where}" if where.startswith("/") else where
    try:
        git("fetch", "-q", "--depth=1", "--no-tags", *other, "--", place, commit, cwd=target)
        git("update-ref", "refs/heads/main", commit, cwd=target)
        git("symbolic-ref", "HEAD", "refs/heads/main", cwd=target)
        git("reset", "-q", "--hard", cwd=target)
    except UserError as error:
        raise UserError(f"commit {commit} of {repo} can't be had: {error}") from None
    inside = target / ".git"
    for name in ("FETCH_HEAD", "ORIG_HEAD", "logs"):  # they name where it came from
        path = inside / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def pip_install(requirements: Path, target: Path, progress: Callable[[str], None] | None) -> None:
    """Install what a requirements file names into a folder, for the running Python."""
    command = [sys.executable, "-m", "pip", "install", "--no-compile", "--disable-pip-version-check"]
    command += ["--no-input", "--progress-bar=off", "--root-user-action=ignore", "--target", str(target)]
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    process = subprocess.Popen(
        [*command, "-r", str(requirements.resolve())],
        cwd=requirements.resolve().parent,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    last: deque[str] = deque(maxlen=20)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            last.append(line)
            if progress is not None:
                progress(line.rstrip())
        code = process.wait()
    except BaseException:
        process.kill()
        process.wait()
        raise
    finally:
        if process.stdout is not None:
            process.stdout.close()
    if code:
        said = "".join(last).strip()
        help_ = (
            "this environment has no pip: python -m ensurepip"
            if "No module named pip" in said
            else "check the names, and that an index can be reached (pip's --index-url, PIP_INDEX_URL)"
        )
        raise UserError(f"pip could not install {requirements} ({help_}):\n{said[-3000:]}")
    mine = f"#!{sys.executable}\n".encode()
    for path in target.glob("bin/*"):
        text = path.read_bytes()
        if text.startswith(mine):  # inside, the running Python may stand elsewhere
            path.write_bytes(b"#!/usr/bin/env python3\n" + text[len(mine) :])
