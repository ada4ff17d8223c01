"""A quick start: what can be done while Python imports, and what need not be done."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from threading import Thread


def preload_torch() -> None:
    """Starts to load PyTorch's libraries on a thread, while this one goes on to other imports.

    Linking them takes 0.2 s without any Python; `import torch` finds them in memory, or waits for the rest.
    Does nothing where they lie elsewhere than in PyTorch's Linux wheels: `import torch` is there to complain.
    """
    spec = find_spec("torch")
    if sys.platform != "linux" or spec is None or spec.origin is None:
        return
    folder = Path(spec.origin).parent / "lib"
    # Called as a foreign function, dlopen lets other Python threads run; ctypes.CDLL(path) would not.
    dlopen = ctypes.CDLL(None).dlopen
    dlopen.restype, dlopen.argtypes = ctypes.c_void_p, (ctypes.c_char_p, ctypes.c_int)

    def link() -> None:
        # In the order and the scopes of torch/__init__.py.
        for name, scope in (("libtorch_global_deps.so", os.RTLD_GLOBAL), ("libtorch_cpu.so", os.RTLD_LOCAL)):
            if not dlopen(os.fsencode(folder / name), os.RTLD_NOW | scope):
                return

    Thread(target=link, name="lathe-preload").start()


@contextmanager
def no_collections() -> Iterator[None]:
    """Imports and vocabularies make a million objects that stay: while they are made, and ever after, looking
    through them for garbage is time lost."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
