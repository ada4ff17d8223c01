"""A file as memory: its pages are read when they are touched, and can be given back."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

NORESERVE = 0x4000  # Linux's MAP_NORESERVE, which Python's mmap has no name for before 3.13


def map_file(path: Path) -> mmap.mmap:
    """The file's bytes, writable, as torch.frombuffer wants them: what is written is copied, never saved.

    Raises OSError, and ValueError for an empty file.
    """
    with path.open("rb") as file:
        if sys.platform != "linux":
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        # Linux sets memory aside for whatever may be written, and refuses to map a file that is larger than
        # the machine's; nobody means to write to all of a checkpoint.
        return mmap.mmap(
            file.fileno(),
            0,
            flags=mmap.MAP_PRIVATE | NORESERVE,
            prot=mmap.PROT_READ | mmap.PROT_WRITE,
        )


def give_back(data: mmap.mmap, start: int, end: int) -> None:
    """Gives the whole pages between two positions back to the system; touched again, they are read again.

    Only for parts that nothing wrote to.
    """
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    last = end // mmap.PAGESIZE * mmap.PAGESIZE
    if first < last and hasattr(mmap, "MADV_DONTNEED"):
        data.madvise(mmap.MADV_DONTNEED, first, last - first)
