"""What an attempt changed: taken from the agent's sandbox, laid over a clean one.

A patch is whole files, so that it needs no git, and nothing in it depends on what else is there. What changed
is known by each file's change time, which no program in the sandbox can set.
"""

from __future__ import annotations

import base64
import binascii
import difflib
import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any

from lathe.errors import InfrastructureError, UserError
from lathe.types import Sandbox

MAX_FILE_BYTES = 16 << 20
MAX_PATCH_BYTES = 64 << 20
MAX_FILES = 5_000
LISTING_TIMEOUT_S = 120.0
# A patch never holds these: git's own files run programs, and compiled Python hides what it was made from.
NEVER = (".git", ".git/*", "*/.git", "*/.git/*", "__pycache__/*", "*/__pycache__/*", "*.pyc", "*.pyo")


@dataclass(frozen=True)
class Change:
    """A file's new content and mode, a link's target, or neither when it is gone."""

    data: bytes | None = None
    mode: int = 0o644
    link: str | None = None

    @property
    def is_deletion(self) -> bool:
        return self.data is None and self.link is None


@dataclass(frozen=True)
class Patch:
    """Changes by path, relative to the workdir. `left_out` are changes that it doesn't hold, and why."""

    changes: Mapping[str, Change] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, files: Mapping[str, str | None]) -> Patch:
        """A patch that writes these texts, and deletes the files whose text is None."""
        return cls({path: Change(None if text is None else text.encode()) for path, text in files.items()})

    def without(self, patterns: Iterable[str], why: str) -> Patch:
        """The patch without its changes to files that match one of the patterns."""
        patterns = tuple(patterns)
        out = {path: why for path in self.changes if matches(path, patterns)}
        kept = {path: change for path, change in self.changes.items() if path not in out}
        return Patch(kept, {**self.left_out, **out})


@dataclass(frozen=True)
class Listing:
    """What lay in a workdir at one moment: for each path its kind, change time, size and mode."""

    entries: Mapping[str, tuple[str, str, int, int]]


def matches(path: str, patterns: Iterable[str]) -> bool:
    """Is the path one of them? `*` stands for anything, slashes too; a pattern also means all below it."""
    return any(fnmatch(path, each) or fnmatch(path, each.rstrip("/") + "/*") for each in patterns)


async def take_listing(box: Sandbox, paths: Sequence[str] | None = None) -> Listing:
    """The workdir as it is now, or these files in it. The image must have GNU find."""
    form = r"%y\t%C@\t%s\t%m\t%P\0" if paths is None else r"%y\t%C@\t%s\t%m\t%p\0"
    which = (
        [".", "-mindepth", "1", "-not", "-path", "./.git/*"] if paths is None else [*paths, "-maxdepth", "0"]
    )
    result = await box.exec(
        ["find", *which, "-printf", form], timeout_s=LISTING_TIMEOUT_S, max_output_bytes=64 << 20
    )
    is_complete = result.exit_code == 0 or paths is not None  # of named files, some may be gone
    if not is_complete or result.timed_out or result.truncated:
        raise InfrastructureError(f"the workdir can't be listed: {result.stderr[-500:] or result.exit_code}")
    entries = {}
    for line in result.stdout.split("\0")[:-1]:
        kind, changed, size, mode, path = line.split("\t", 4)
        entries[path] = (kind, changed, int(size), int(mode, 8))
    return Listing(entries)


async def take_patch(box: Sandbox, before: Listing) -> Patch:
    """What was changed since `before`. Files that are too large, or no files, are left out by name."""
    after = await take_listing(box)
    changes: dict[str, Change] = {}
    left_out: dict[str, str] = {}
    num_bytes = 0
    for path in sorted(before.entries.keys() | after.entries.keys()):
        if matches(path, NEVER) or before.entries.get(path) == after.entries.get(path):
            continue
        entry = after.entries.get(path)
        if entry is None or entry[0] == "d":
            if before.entries.get(path, "d")[0] != "d":
                changes[path] = Change()
            continue
        kind, _, size, mode = entry
        if "�" in path:
            left_out[path] = "its name is no UTF-8"
        elif kind == "l":
            target = (await box.exec(["readlink", "-n", "--", path])).check().stdout
            changes[path] = Change(link=target)
        elif kind != "f":
            left_out[path] = "no regular file"
        elif size > MAX_FILE_BYTES or num_bytes + size > MAX_PATCH_BYTES or len(changes) >= MAX_FILES:
            left_out[path] = "too large"
        else:
            data = await _read(box, path)
            if data is None:
                left_out[path] = "it can't be read"
                continue
            changes[path] = Change(data, mode & 0o777)
            num_bytes += len(data)
    return Patch(changes, left_out)


async def _read(box: Sandbox, path: str) -> bytes | None:
    """A file's bytes; None where the agent made it unreadable, or changes it at this moment."""
    try:
        return await box.read(path, max_bytes=MAX_FILE_BYTES)
    except (OSError, ValueError):
        return None


async def apply_patch(box: Sandbox, patch: Patch) -> dict[str, str]:
    """Lay the changes over the workdir. The paths that could not be changed, and why.

    A path that leaves the workdir, also by a link that the patch makes, changes nothing: links come last, and
    are only made where they stay inside.
    """
    refused: dict[str, str] = {}
    links = {path: change.link for path, change in patch.changes.items() if change.link is not None}
    gone = [path for path, change in patch.changes.items() if change.is_deletion]
    files = [path for path, change in patch.changes.items() if change.data is not None]
    for path in [*gone, *files, *links]:
        if not is_inside(path):
            refused[path] = "outside of the workdir"
    gone, files = ([each for each in paths if each not in refused] for paths in (gone, files))
    if gone:
        listed = "\0".join(gone) + "\0"
        (await box.exec(["xargs", "-0", "rm", "-f", "--"], stdin=listed)).check()
    for path in files:
        change = patch.changes[path]
        assert change.data is not None
        try:
            await box.write(path, change.data, mode=change.mode)
        except (OSError, ValueError) as error:
            refused[path] = str(error)
    for path, target in links.items():
        if path in refused:
            continue
        if target.startswith("/") or not is_inside(posixpath.join(posixpath.dirname(path), target)):
            refused[path] = f"a link out of the workdir, to {target}"
            continue
        made = await box.exec(["ln", "-sfnT", "--", target, path])
        if made.exit_code != 0:
            refused[path] = made.stderr.strip()
    return refused


def is_inside(path: str) -> bool:
    """Does a relative path stay in its folder?"""
    clean = posixpath.normpath(path)
    return bool(path) and not clean.startswith(("/", "../")) and clean not in ("..", ".") and "\0" not in path


# As JSON, and for people


def patch_to_json(patch: Patch) -> dict[str, Any]:
    """Text where it is text, else base64."""
    return {path: _change_to_json(change) for path, change in patch.changes.items()}


def _change_to_json(change: Change) -> dict[str, Any] | None:
    if change.link is not None:
        return {"link": change.link}
    if change.data is None:
        return None
    mode = {} if change.mode == 0o644 else {"mode": change.mode}
    try:
        return {"text": change.data.decode(), **mode}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(change.data).decode(), **mode}


def patch_from_json(value: Any) -> Patch:
    """Raises UserError for what `patch_to_json` doesn't write."""
    try:
        return Patch({path: _change_from_json(change) for path, change in value.items()})
    except (AttributeError, KeyError, TypeError, ValueError, binascii.Error) as error:
        raise UserError(f"this is no patch: {error!r}") from error


def _change_from_json(value: dict[str, Any] | None) -> Change:
    if value is None:
        return Change()
    if "link" in value:
        return Change(link=str(value["link"]))
    data = value["text"].encode() if "text" in value else base64.b64decode(value["base64"], validate=True)
    return Change(data, int(value.get("mode", 0o644)))


def to_diff(patch: Patch, before: Mapping[str, bytes]) -> str:
    """A unified diff for people. `before` has the old content of the files that were there."""
    return "".join(line for path, change in patch.changes.items() for line in _diff(path, change, before))


def _diff(path: str, change: Change, before: Mapping[str, bytes]) -> Iterator[str]:
    if change.link is not None:
        yield f"{path} -> {change.link}\n"
        return
    old, new = before.get(path), change.data
    if any(b"\0" in data for data in (old, new) if data is not None):
        yield f"binary file {path} changed\n"
        return
    texts = [(data or b"").decode("utf-8", "replace").splitlines(keepends=True) for data in (old, new)]
    was, now = ("/dev/null" if data is None else side + path for side, data in (("a/", old), ("b/", new)))
    for line in difflib.unified_diff(texts[0], texts[1], was, now):
        yield line if line.endswith("\n") else line + "\n\\ No newline at end of file\n"
