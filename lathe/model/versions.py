"""A model's weights from a process that trains it to those that serve it, through a folder.

    version-00012/   a checkpoint as any other: config.json, model.safetensors
    latest           the number of the version that is to be served

Whoever reads sees a version when it is whole, and `latest` never names one that is not.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from lathe.errors import CheckpointError
from lathe.model.checkpoint import open_checkpoint, save_model
from lathe.model.config import ModelConfig
from lathe.model.transformer import Transformer
from lathe.model.weights import open_weights, read_weights

LATEST = "latest"


def publish(model: Transformer, folder: Path | str, version: int, *, keep: int = 2) -> Path:
    """Writes the weights as this version, which is the latest from now on.

    Of the ones before, `keep` - 1 are left: a reader may be at the last. Later ones go: a run that went back
    to an earlier state publishes its numbers again. One process writes to a folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / _name(version)
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=folder) as staging:
        save_model(model, Path(staging) / path.name)
        if path.exists():
            path.rename(Path(staging) / "old")
        (Path(staging) / path.name).rename(path)
        (Path(staging) / LATEST).write_text(str(version))
        (Path(staging) / LATEST).replace(folder / LATEST)
    versions = sorted(int(each.name.removeprefix("version-")) for each in folder.glob("version-*"))
    kept = [each for each in versions if each <= version][-keep:]
    for each in versions:
        if each not in kept:
            shutil.rmtree(folder / _name(each), ignore_errors=True)
    return path


def latest_version(folder: Path | str) -> int | None:
    """The number of the version to be served; None where nothing was published yet."""
    try:
        return int((Path(folder) / LATEST).read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{Path(folder) / LATEST} names no version: {error}") from None


def read_version(folder: Path | str, version: int, config: ModelConfig) -> dict[str, Tensor]:
    """A version's weights by their names in the model, mapped from the file where possible: they are read
    when they are copied. Raises CheckpointError where it is gone, or is no model of this shape."""
    checkpoint = open_checkpoint(Path(folder) / _name(version))
    wanted, found = (replace(each, dtype=config.dtype).to_hf() for each in (config, checkpoint.config))
    if wanted != found:
        different = min(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        raise CheckpointError(
            f"{checkpoint.path} is another model: its {different} is {found.get(different)}, "
            f"and {wanted.get(different)} is served."
        )
    model = Transformer(checkpoint.config, device="meta", dtype=getattr(torch, checkpoint.config.dtype))
    return read_weights(open_weights(checkpoint.path, model), model, torch.device("cpu"), None)


def _name(version: int) -> str:
    return f"version-{version:05d}"
