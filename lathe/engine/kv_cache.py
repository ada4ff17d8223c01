"""The paged key-value cache: how much memory it takes, and who holds which pages.

A page is `PAGE_SIZE` consecutive slots; a slot holds one token's keys and values in every layer.
Pages are handed out from the lowest run that is long enough, a stretch at a time, so that a sequence's
slots are mostly neighbours and attention reads them without gathering.
"""

from __future__ import annotations

import bisect
import math
from pathlib import Path

import psutil
import torch
from torch import Tensor

from lathe.kernels.cpu.memory import aligned_empty
from lathe.kernels.cpu.table import PAGE_SIZE
from lathe.model.config import ModelConfig


def pages_for(num_tokens: int) -> int:
    """How many pages hold that many tokens."""
    return -(-num_tokens // PAGE_SIZE)


class KVCache:
    """Keys and values of all layers, each [layers, slots, kv heads, head dim]."""

    def __init__(self, config: ModelConfig, num_pages: int, *, dtype: torch.dtype, device: torch.device):
        self.num_slots = num_pages * PAGE_SIZE
        shape = (config.num_layers, self.num_slots, config.num_kv_heads, config.head_dim)
        self.keys, self.values = (_empty(shape, dtype, device) for _ in range(2))

    @property
    def num_bytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    def write(self, layer: int, slots_T: Tensor, k_TKd: Tensor, v_TKd: Tensor) -> None:
        self.keys[layer].index_copy_(0, slots_T, k_TKd)
        self.values[layer].index_copy_(0, slots_T, v_TKd)


def _empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Not zeroed: on a CPU the system gives memory to a page when it is first written."""
    if device.type != "cpu":
        return torch.empty(shape, dtype=dtype, device=device)
    return aligned_empty(math.prod(shape) * dtype.itemsize).view(dtype).view(shape)


class PagePool:
    """The free pages, as a sorted list of runs [first, last + 1)."""

    def __init__(self, num_pages: int):
        self.num_pages = num_pages
        self.num_free = num_pages
        self._runs: list[tuple[int, int]] = [(0, num_pages)]

    def take(self, count: int, after: int | None = None) -> list[int]:
        """`count` pages: right after page `after` where they are free, else the first run that is long
        enough, else the longest runs there are. Raises MemoryError when fewer are free."""
        if count > self.num_free:
            raise MemoryError(f"{count} pages asked for, {self.num_free} free")
        pages: list[int] = []
        while len(pages) < count:
            wanted = count - len(pages)
            index = self._best_run(wanted, after)
            first, last = self._runs[index]
            taken = min(wanted, last - first)
            pages.extend(range(first, first + taken))
            if first + taken == last:
                del self._runs[index]
            else:
                self._runs[index] = (first + taken, last)
            after = pages[-1]
        self.num_free -= count
        return pages

    def _best_run(self, wanted: int, after: int | None) -> int:
        if after is not None:
            index = bisect.bisect_left(self._runs, (after + 1, 0))
            if index < len(self._runs) and self._runs[index][0] == after + 1:
                return index
        for index, (first, last) in enumerate(self._runs):
            if last - first >= wanted:
                return index
        return max(range(len(self._runs)), key=lambda index: self._runs[index][1] - self._runs[index][0])

    def give_back(self, pages: list[int]) -> None:
        for page in pages:
            index = bisect.bisect_left(self._runs, (page, 0))
            first, last = page, page + 1
            if index < len(self._runs) and self._runs[index][0] == last:
                last = self._runs.pop(index)[1]
            if index > 0 and self._runs[index - 1][1] == first:
                index -= 1
                first = self._runs.pop(index)[0]
            self._runs.insert(index, (first, last))
        self.num_free += len(pages)

    def check(self) -> None:
        """Raises AssertionError when a page is lost, listed twice or out of range."""
        assert sum(last - first for first, last in self._runs) == self.num_free
        edges = [edge for run in self._runs for edge in run]
        assert edges == sorted(set(edges)), "runs overlap or were not joined"
        assert not edges or (edges[0] >= 0 and edges[-1] <= self.num_pages)


def bytes_per_token(config: ModelConfig, dtype: torch.dtype) -> int:
    """Keys and values of one token in all layers."""
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim * dtype.itemsize


def available_memory(device: torch.device) -> int:
    """Bytes that a process may still take: of the GPU, or of the machine within its control group's limit."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    available = psutil.virtual_memory().available
    for limit_file, usage_file in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            limit, usage = (Path(file).read_text().strip() for file in (limit_file, usage_file))
        except OSError:
            continue
        if limit != "max":
            available = min(available, int(limit) - int(usage))
    return max(available, 0)
