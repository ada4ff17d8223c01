"""Memory for large weights, which the system may serve in huge pages."""

from __future__ import annotations

import mmap
from collections.abc import Iterable

import torch
from torch import Tensor

HUGE_PAGE = 1 << 21  # bytes, on x86 and on ARM with pages of 4 KB
ALIGNMENT = 64  # a cache line, and the widest vector


def aligned_empty(num_bytes: int) -> Tensor:
    """uint8 [num_bytes] that starts at a multiple of 64; its content is arbitrary, and it can be written.

    From 2 MB on it starts at a huge page, and Linux is asked to serve it in such: reading weights from pages
    of 4 KB costs a fifth of the bandwidth and more. The memory is the system's until it is first written.
    """
    if num_bytes < HUGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        memory = torch.empty(num_bytes + ALIGNMENT, dtype=torch.uint8)
        start = -memory.data_ptr() % ALIGNMENT
        return memory[start : start + num_bytes]
    # private: shared anonymous memory, which is Python's default, is a file system's and gets no huge pages
    data = mmap.mmap(-1, num_bytes + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory = torch.frombuffer(data, dtype=torch.uint8)
    start = -memory.data_ptr() % HUGE_PAGE
    # whole ones only: half a huge page at the end of each of some hundred matrices adds up
    data.madvise(mmap.MADV_HUGEPAGE, start, num_bytes // HUGE_PAGE * HUGE_PAGE)
    return memory[start : start + num_bytes]


class Arena:
    """One stretch of memory for the many matrices of a model, so that small ones lie in huge pages, too.

    It lives as long as any tensor that was taken from it.
    """

    def __init__(self, sizes: Iterable[int]):
        """Room for tensors of these sizes in bytes."""
        self.left = aligned_empty(sum(_aligned(size) for size in sizes))

    def take(self, num_bytes: int) -> Tensor:
        """uint8 [num_bytes] that starts at a multiple of 64."""
        taken, self.left = self.left[:num_bytes], self.left[_aligned(num_bytes) :]
        return taken


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT
