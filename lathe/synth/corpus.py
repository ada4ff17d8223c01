"""Source files to make tasks from, each with its origin and its licence. Nothing is imported."""

from __future__ import annotations

import ast
import importlib.machinery
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

from lathe.errors import UserError

STDLIB = "stdlib"
MAX_FILE_BYTES = 1 << 20
# Not the library itself: its tests, its applications, and what is generated.
STDLIB_SKIPPED = frozenset({
    "test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "turtledemo", "ensurepip",
    "pydoc_data", "tkinter", "msilib", "__pycache__",
})  # fmt: skip


@dataclass(frozen=True)
class Origin:
    """What a file belongs to. `version` is a package's or a repository's commit, None where unknown."""

    name: str
    version: str | None = None
    licence: str | None = None

    def place(self, where: str, line: int) -> str:
        """A line of it, for people: "toolz 1.0.0: toolz/recipes.py, line 12"."""
        version = f" {self.version}" if self.version else ""
        return f"{self.name}{version}: {where}, line {line}"


@dataclass(frozen=True)
class SourceFile:
    """A file of Python. `where` is its path in its corpus, `module` its dotted name there."""

    where: str
    module: str
    text: str
    origin: Origin
    is_importable: bool = False

    @cached_property
    def tree(self) -> ast.Module | None:
        """None where it is no Python of this version."""
        try:
            return ast.parse(self.text)
        except (SyntaxError, ValueError, RecursionError):
            return None


def read_corpus(sources: Iterable[str], licence: str | None = None) -> list[SourceFile]:
    """The Python files of files, folders, installed packages ("networkx", "email.utils") and "stdlib".

    `licence` is said of files and folders that do not say their own. Raises UserError for a source that is
    none of them, or that holds no Python.
    """
    files: dict[str, SourceFile] = {}
    for source in sources:
        found = list(_read_source(source, licence))
        if not found:
            raise UserError(f"{source} holds no Python file.")
        files.update({f"{each.origin.name}/{each.where}": each for each in found})
    return list(files.values())


def _read_source(source: str, licence: str | None) -> Iterator[SourceFile]:
    path = Path(source)
    if source == STDLIB:
        yield from _stdlib()
    elif path.exists():
        origin = folder_origin(path, licence)
        root = path.parent if path.is_file() else path
        for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
            if not any(part.startswith(".") for part in file.relative_to(root).parts):
                yield from _read_file(file, root, origin)
    else:
        yield from _installed(source)


def folder_origin(path: Path, licence: str | None = None) -> Origin:
    """The name, the commit and the licence of a file or a folder, as far as they are known."""
    return Origin(path.resolve().name, _commit(path), licence or _licence_beside(path))


def _stdlib() -> Iterator[SourceFile]:
    root = Path(sysconfig.get_paths()["stdlib"])
    for file in sorted(root.rglob("*.py")):
        parts = file.relative_to(root).parts
        if not STDLIB_SKIPPED & set(parts) and not parts[0].startswith(("config-", "_sysconfig")):
            yield from _read_file(file, root, _python(), is_importable=True)


def _python() -> Origin:
    return Origin("cpython", ".".join(map(str, sys.version_info[:3])), "PSF-2.0")


def _installed(name: str) -> Iterator[SourceFile]:
    """A top-level module or package, or a part of it: found without importing anything."""
    top, *inner = name.split(".")
    spec = importlib.machinery.PathFinder.find_spec(top)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise UserError(f"{name} is no file, no folder, and no installed Python package. Is it installed?")
    file = Path(spec.origin)
    root = file.parent.parent if spec.submodule_search_locations else file.parent
    where = root.joinpath(top, *inner)
    origin = _python() if top in sys.stdlib_module_names else _distribution(top)
    if where.is_dir():
        for each in sorted(where.rglob("*.py")):
            yield from _read_file(each, root, origin, is_importable=True)
    elif where.with_suffix(".py").is_file():
        yield from _read_file(where.with_suffix(".py"), root, origin, is_importable=True)
    else:
        raise UserError(f"{top} is installed, but has no {name}.")


def _distribution(top: str) -> Origin:
    for name in metadata.packages_distributions().get(top, []):
        found: Any = metadata.metadata(name)
        licences = [
            each.split(" :: ")[-1] for each in found.get_all("Classifier") or [] if "License ::" in each
        ]
        said = found.get("License-Expression") or found.get("License") or ", ".join(licences)
        return Origin(name, metadata.version(name), said.strip().splitlines()[0][:80] if said else None)
    return Origin(top)


def _read_file(file: Path, root: Path, origin: Origin, is_importable: bool = False) -> Iterator[SourceFile]:
    try:
        if file.stat().st_size <= MAX_FILE_BYTES:
            where = file.relative_to(root)
            module = ".".join(where.with_suffix("").parts).removesuffix(".__init__")
            yield SourceFile(where.as_posix(), module, file.read_text("utf-8"), origin, is_importable)
    except (OSError, UnicodeDecodeError):
        return  # another encoding, a dead link


def _commit(path: Path) -> str | None:
    folder = path.parent if path.is_file() else path
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def _licence_beside(path: Path) -> str | None:
    """The first line of a licence's text: its name, in most."""
    folder = path.parent if path.is_file() else path
    for file in sorted(folder.glob("LICEN[CS]E*")):
        lines = [line.strip() for line in file.read_text("utf-8", "replace").splitlines() if line.strip()]
        if lines:
            return lines[0][:80]
    return None
