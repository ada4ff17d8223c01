"""Where an agent works, and where what it remembers of that place is kept.

The person's git is known by its files alone: running git in a folder obeys the configuration that lies there,
which a program in the sandbox may have written.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path

from lathe.errors import UserError


def state_folder(environment: Mapping[str, str]) -> Path:
    """Where Lathe keeps what it remembers: $XDG_STATE_HOME/lathe, ~/.local/state/lathe by default."""
    root = environment.get("XDG_STATE_HOME", "")
    # The XDG specification says that relative paths are to be ignored.
    return (Path(root) if Path(root).is_absolute() else Path.home() / ".local" / "state") / "lathe"


def project_name(folder: Path) -> str:
    """A folder's name for files of ours: readable, and its own."""
    digest = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:12]
    return f"{re.sub(r'[^A-Za-z0-9_.-]', '-', folder.name).strip('.-')[:40] or 'root'}-{digest}"


def open_project(folder: Path) -> Path:
    """The folder that an agent may work in, in full. Raises UserError when it is none, or would lay open a
    home."""
    try:
        place = folder.expanduser().resolve(strict=True)
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{folder} is no folder to work in: {reason}.") from error
    if not place.is_dir():
        raise UserError(f"{folder} is no folder: name a project's folder with --cwd.")
    if Path.home().resolve().is_relative_to(place):
        raise UserError(
            f"{place} holds your home, with all of its secrets: an agent should see a project alone. "
            "Go into a project's folder, or name it with --cwd."
        )
    return place


def git_folder_of(folder: Path) -> Path | None:
    """The git directory of a work tree, None where the folder is none."""
    place = folder / ".git"
    if place.is_dir():
        return place
    try:
        text = place.read_text("utf-8", "replace")
    except OSError:
        return None
    if not text.startswith("gitdir:"):
        return None
    linked = (folder / text.removeprefix("gitdir:").strip()).resolve()
    return linked if (linked / "HEAD").is_file() else None


def common_folder_of(git_folder: Path) -> Path:
    """Where a linked work tree's git directory keeps what all work trees share; else the directory itself."""
    try:
        return (git_folder / (git_folder / "commondir").read_text("utf-8").strip()).resolve()
    except (OSError, UnicodeDecodeError):
        return git_folder


def top_of(folder: Path) -> Path:
    """The work tree that a folder lies in, the folder itself where there is none. A home folder under git
    counts as none: it would lay open all that lies in it."""
    folder = folder.resolve()
    home = Path.home().resolve()
    for place in (folder, *folder.parents):
        if home.is_relative_to(place):
            break
        if git_folder_of(place) is not None:
            return place
    return folder
