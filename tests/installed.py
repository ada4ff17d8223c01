"""Files of packages that the tests need: vocabularies and a small model come as wheels."""

import importlib.metadata
from pathlib import Path


def file_of(package: str, name: str) -> Path:
    files = importlib.metadata.files(package) or []
    return Path(next(file for file in files if file.name == name).locate()).resolve()
