"""Lathe: the whole Qwen3-Coder system in one Python package."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lathe.auto import AutoModelForCausalLM as AutoModelForCausalLM
    from lathe.auto import AutoTokenizer as AutoTokenizer
    from lathe.engine.llm import LLM as LLM

__version__ = "0.1.0"

_HOMES = {
    "LLM": "lathe.engine.llm",
    "AutoModelForCausalLM": "lathe.auto",
    "AutoTokenizer": "lathe.auto",
}

__all__ = ["LLM", "AutoModelForCausalLM", "AutoTokenizer", "__version__"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import lathe` costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'lathe' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
