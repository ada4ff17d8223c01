"""Who holds which pages, and which of them hold the beginning of a prompt that may come again.

A full page is known by a key that stands for every token up to its end (a chain of hashes, as in vLLM), so a
new prompt finds the longest beginning that was ever computed and reads only the rest. Pages are shared by
counting holders; one that nobody holds keeps its content until its memory is needed, the least recently used
first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np

from lathe.engine.kv_cache import PAGE_SIZE, PagePool

Key = bytes


def page_keys(
    token_ids: Sequence[int], num_pages: int, root: Key = b"", known: Sequence[Key] = ()
) -> list[Key]:
    """The keys of the first `num_pages` pages of these tokens; `known` are the first of them.

    `root` stands for everything else that the keys and values depend on.
    """
    keys = list(known)
    first = len(keys)
    ids = np.asarray(token_ids[first * PAGE_SIZE : num_pages * PAGE_SIZE], dtype=np.int64)
    for page in ids.reshape(-1, PAGE_SIZE):
        keys.append(blake2b(page.tobytes(), key=(keys[-1] if keys else root), digest_size=16).digest())
    return keys


class PrefixCache:
    """Hands out pages and takes them back. `num_free` counts what could be had: free pages, and kept ones
    that nobody holds."""

    def __init__(self, num_pages: int):
        self._pool = PagePool(num_pages)
        self._num_holders = [0] * num_pages
        self._key_of: dict[int, Key] = {}
        self._page_of: dict[Key, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()  # kept, held by nobody; least recently used first

    @property
    def num_pages(self) -> int:
        return self._pool.num_pages

    @property
    def num_free(self) -> int:
        return self._pool.num_free + len(self._idle)

    @property
    def num_idle(self) -> int:
        """Pages that nobody holds, and whose content can be found again."""
        return len(self._idle)

    @property
    def num_kept(self) -> int:
        """Pages whose content can be found again."""
        return len(self._key_of)

    def take(self, count: int, after: int | None = None) -> list[int]:
        """`count` pages for one holder, right after page `after` where that is free. Raises MemoryError."""
        while self._pool.num_free < count and self._idle:
            page, _ = self._idle.popitem(last=False)
            self._forget(page)
            self._pool.give_back([page])
        pages = self._pool.take(count, after)
        for page in pages:
            self._num_holders[page] = 1
        return pages

    def find(self, keys: Sequence[Key]) -> list[int]:
        """The pages of the longest known beginning of `keys`, now held once more."""
        pages = []
        for key in keys:
            page = self._page_of.get(key)
            if page is None:
                break
            self._idle.pop(page, None)
            self._num_holders[page] += 1
            pages.append(page)
        return pages

    def keep(self, page: int, key: Key) -> None:
        """The page, which somebody holds, is full: others may find it by `key`."""
        if key not in self._page_of and page not in self._key_of:
            self._page_of[key] = page
            self._key_of[page] = key

    def give_back(self, pages: Sequence[int]) -> None:
        """One holder less for each. Of a chain, the end is dropped before its beginning."""
        free = []
        for page in reversed(pages):
            self._num_holders[page] -= 1
            if self._num_holders[page] == 0:
                if page in self._key_of:
                    self._idle[page] = None
                else:
                    free.append(page)
        self._pool.give_back(free)

    def forget_all(self) -> None:
        """Nothing that was computed so far may be found again: the weights have changed."""
        self._pool.give_back(list(self._idle))
        self._idle.clear()
        self._key_of.clear()
        self._page_of.clear()

    def check(self) -> None:
        """Raises AssertionError when a page is lost, held wrongly or listed twice."""
        self._pool.check()
        assert self._page_of == {key: page for page, key in self._key_of.items()}
        assert all(page in self._key_of and self._num_holders[page] == 0 for page in self._idle)
        num_held = sum(holders > 0 for holders in self._num_holders)
        assert num_held + self.num_free == self.num_pages, "a page is lost"

    def _forget(self, page: int) -> None:
        del self._page_of[self._key_of.pop(page)]
