"""A repository as its tasks see it: its files without history, builds and leftovers, as an image."""

from __future__ import annotations

import ast
import configparser
import hashlib
import posixpath
import re
import shutil
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from lathe.errors import UserError
from lathe.sandbox.images import ImageStore
from lathe.sandbox.sources import copy_folder, git_checkout, resolve_commit
from lathe.synth.mutations import Function, functions_of

WORKDIR = "/work"
# What could hold the repaired code, or was made from it. Of a package's metadata the description alone stays,
# which `importlib.metadata` reads.
LEFT_OUT_FOLDERS = (
    ".git", ".hg", ".svn", "__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis",
    ".tox",
    ".nox", ".venv", "venv", "env", "build", "dist", ".eggs", "wheels", "htmlcov", "site", "_build", ".idea",
    "node_modules", "*.dist-info",
)  # fmt: skip
LEFT_OUT_FILES = (
    "*.pyc", "*.pyo", "*.orig", "*.rej", "*.bak", "*.patch", "*.diff", "*.whl", "*.egg", "*.zip", "*.tar",
    "*.tar.*", "*.tgz", "*~", ".coverage", "*.swp",
)  # fmt: skip
NOT_SOURCE = ("setup.py", "conftest.py", "*/conftest.py", "noxfile.py", "versioneer.py", "*/_version.py",
              "docs/*", "doc/*", "examples/*", "benchmarks/*", "bench/*", "tools/*", "*/_vendor/*",
              "*/vendor/*",
              "test/*", "tests/*", "*/test/*", "*/tests/*", "testing/*", "*/test_*.py", "test_*.py",
              "*_test.py", "*/__main__.py", "scripts/*")  # fmt: skip
MAX_TEXT_BYTES = 1 << 20
LICENCES = (
    (r"Apache License[\s,]+Version 2\.0", "Apache-2.0"),
    (r"GNU LESSER GENERAL PUBLIC", "LGPL"),
    (r"GNU AFFERO GENERAL PUBLIC", "AGPL"),
    (r"GNU GENERAL PUBLIC", "GPL"),
    (r"Mozilla Public License Version 2\.0", "MPL-2.0"),
    (r"Permission is hereby granted, free of charge", "MIT"),
    (r"Neither the name", "BSD-3-Clause"),
    (r"Redistribution and use in source and binary forms", "BSD-2-Clause"),
    (r"PYTHON SOFTWARE FOUNDATION", "PSF-2.0"),
    (r"Permission to use, copy, modify, and/or distribute", "ISC"),
)


@dataclass(frozen=True)
class Repository:
    """What tasks are made of. `texts` are its text files by path; `image` has all of its files in /work.

    `tests` are the paths of its test files, `sources` those of the modules where faults may be put. `roots`
    are the folders that its modules are imported from, `arguments` what pytest needs to run it. `digest` says
    what all of it is.
    """

    name: str
    folder: Path
    image: str
    texts: Mapping[str, str]
    tests: tuple[str, ...]
    sources: tuple[str, ...]
    roots: tuple[str, ...]
    arguments: tuple[str, ...]
    digest: str
    origin: str
    commit: str | None
    licence: str | None

    def functions(self, path: str) -> list[Function]:
        """The functions of one of its modules; none where it is no Python of this version."""
        try:
            return functions_of(self.texts[path])
        except (SyntaxError, ValueError):
            return []

    def module(self, path: str) -> str:
        """The name by which a file is imported."""
        return module_path(path, self.roots).removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    @property
    def packages(self) -> tuple[str, ...]:
        """The outermost names that it brings."""
        return tuple(sorted({self.module(path).split(".")[0] for path in self.sources}))


def module_path(path: str, roots: tuple[str, ...]) -> str:
    """A file's path from the folder that it is imported from."""
    for root in sorted(roots, key=len, reverse=True):
        if root and path.startswith(root + "/"):
            return path[len(root) + 1 :]
    return path


def check_out(path: Path | str, target: Path, store: ImageStore) -> Repository:
    """Copy a folder, or the commit that a git repository is at, into the empty folder `target`, cleaned.

    Raises UserError where there is none, and where it has no test files or no Python to break.
    """
    source = Path(path).resolve()
    if not source.is_dir():
        raise UserError(f"{path} is no folder of this machine. Give a repository's folder.")
    commit = None
    if (source / ".git").exists():
        commit = resolve_commit(str(source), "HEAD")
        git_checkout(str(source), commit, target)
    else:
        copy_folder(source, target)
    clean(target)
    name = re.sub(r"-\d[\w.]*$", "", source.name) or source.name
    return read_repository(target, store, name=name, origin=str(source), commit=commit)


def clean(folder: Path, root: Path | None = None) -> None:
    """Delete what could hold the answer to a task: history, compiled files, builds, patches; and links that
    lead out of `root`, by default the folder itself."""
    root = root or folder
    for entry in sorted(folder.iterdir()):
        is_folder = entry.is_dir() and not entry.is_symlink()
        patterns = LEFT_OUT_FOLDERS if is_folder else LEFT_OUT_FILES
        if any(fnmatch(entry.name, each) for each in patterns) and not is_package(entry):
            shutil.rmtree(entry) if is_folder else entry.unlink()
        elif is_folder and entry.name.endswith(".egg-info"):
            for each in entry.iterdir():
                if each.name not in ("PKG-INFO", "entry_points.txt"):
                    shutil.rmtree(each) if each.is_dir() else each.unlink()
        elif entry.name == ".git" or (entry.is_symlink() and not leads_inside(entry, root)):
            entry.unlink()
        elif is_folder:
            clean(entry, root)


def leads_inside(link: Path, root: Path) -> bool:
    return link.resolve().is_relative_to(root.resolve())


def is_package(path: Path) -> bool:
    """A folder that is named as builds are, but holds a package's code: `env`, `site`, `build`."""
    return path.is_dir() and path.name.isidentifier() and (path / "__init__.py").exists()


def read_repository(
    folder: Path, store: ImageStore, *, name: str, origin: str, commit: str | None = None
) -> Repository:
    """The repository of a folder that is clean. Raises UserError where nothing can be made of it."""
    texts = dict(texts_of(folder))
    python = [path for path in texts if path.endswith(".py")]
    tests = tuple(path for path in python if posixpath.basename(path).startswith("test_"))
    sources = tuple(path for path in python if not any(fnmatch(path, each) for each in NOT_SOURCE))
    if not tests:
        raise UserError(f"{origin} has no test files: pytest's are named test_*.py. A suite must be there.")
    if not sources:
        raise UserError(f"{origin} has no Python but its tests: there is nothing to break.")
    roots = roots_of(texts)
    content = hashlib.sha256()
    for path in sorted(texts):
        content.update(f"{path}\0{len(texts[path])}\0{texts[path]}".encode("utf-8", "surrogatepass"))
    return Repository(
        name,
        folder,
        store.from_directory(folder, WORKDIR),
        texts,
        tests,
        sources,
        roots,
        pytest_arguments(texts, roots),
        content.hexdigest()[:16],
        origin,
        commit,
        licence_of(texts),
    )


def texts_of(folder: Path) -> Iterator[tuple[str, str]]:
    """The files that are text, by path."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink() and path.stat().st_size <= MAX_TEXT_BYTES:
            data = path.read_bytes()
            try:
                text = data.decode()
            except UnicodeDecodeError:
                continue
            if "\0" not in text:
                yield path.relative_to(folder).as_posix(), text


def roots_of(texts: Mapping[str, str]) -> tuple[str, ...]:
    """Where modules are imported from: the repository, and its `src` or `lib` where code lies there."""
    found = [
        root
        for root in ("src", "lib")
        if any(re.match(rf"{root}/[^/]+(/__init__)?\.py$", path) for path in texts)
    ]
    return (*(root for root in found if f"{root}/__init__.py" not in texts), "")


def pytest_arguments(texts: Mapping[str, str], roots: tuple[str, ...]) -> tuple[str, ...]:
    """What pytest must be told, since the judge clears `addopts` and nothing is installed."""
    settings = pytest_settings(texts)
    arguments: list[str] = []
    if missing := [root for root in roots if root]:
        named = settings.get("pythonpath", "").split()
        arguments += ["-o", "pythonpath=" + " ".join(dict.fromkeys([*named, *missing]))]
    if mode := re.search(r"--import-mode[= ](\w+)", settings.get("addopts", "")):
        arguments.append(f"--import-mode={mode[1]}")
    return tuple(arguments)


def pytest_settings(texts: Mapping[str, str]) -> dict[str, str]:
    """The repository's own settings of pytest, as texts; of the first file that pytest would read."""
    for path, section in (("pytest.ini", "pytest"), ("tox.ini", "pytest"), ("setup.cfg", "tool:pytest")):
        if path == "tox.ini" and "pyproject.toml" in texts:
            try:
                tool = tomllib.loads(texts["pyproject.toml"]).get("tool", {})
            except tomllib.TOMLDecodeError:
                tool = {}
            if found := tool.get("pytest", {}).get("ini_options"):
                return {
                    key: " ".join(map(str, each)) if isinstance(each, list) else str(each)
                    for key, each in found.items()
                }
        parser = configparser.ConfigParser(interpolation=None)
        try:
            parser.read_string(texts.get(path, ""))
        except configparser.Error:
            continue
        if parser.has_section(section):
            return dict(parser[section])
    return {}


def licence_of(texts: Mapping[str, str]) -> str | None:
    """The licence's SPDX name as the metadata says it, else as its text is known by; None for neither."""
    try:
        project = tomllib.loads(texts.get("pyproject.toml", "")).get("project", {})
    except tomllib.TOMLDecodeError:
        project = {}
    named = project.get("license")
    if isinstance(named, dict):
        named = named.get("text") if len(named.get("text", "")) < 40 else None
    if not named:
        told = re.search(r"^License(?:-Expression)?: (?!UNKNOWN)(.{1,60})$", texts.get("PKG-INFO", ""), re.M)
        named = told and told[1].strip()
    if named:
        return str(named)
    for path in sorted(texts):
        if re.match(r"(LICEN[CS]E|COPYING)[^/]*$", path, re.I):
            for pattern, spdx in LICENCES:
                if re.search(pattern, texts[path]):
                    return spdx
    return None


def shape(node: ast.AST) -> str:
    """What a function does, whatever it is called, documented or laid out as."""
    copy = ast.parse(ast.unparse(node)).body[0]
    assert isinstance(copy, ast.FunctionDef | ast.AsyncFunctionDef)
    first = copy.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and len(copy.body) > 1:
        copy.body = copy.body[1:]
    copy.decorator_list = []
    copy.name = ""
    return ast.dump(copy)
