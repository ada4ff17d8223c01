"""The ids of texts that were encoded lately: a conversation is rendered anew for each of its turns, and all
but its last messages was encoded for the turn before."""

from __future__ import annotations

import threading
from array import array
from collections import OrderedDict


class KnownTexts:
    """Keeps at most `max_chars` characters, those that were asked for last. Thread-safe."""

    def __init__(self, max_chars: int = 16_000_000):
        self.max_chars = max_chars
        self.num_chars = 0
        self._ids: OrderedDict[str, array[int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, text: str) -> list[int] | None:
        with self._lock:
            ids = self._ids.get(text)
            if ids is None:
                return None
            self._ids.move_to_end(text)
        return ids.tolist()

    def put(self, text: str, ids: list[int]) -> None:
        """One text can't drive out all others: very long ones are not kept."""
        if len(text) > self.max_chars // 8:
            return
        kept = array("i", ids)
        with self._lock:
            if text not in self._ids:
                self.num_chars += len(text)
            self._ids[text] = kept
            while self.num_chars > self.max_chars:
                oldest, _ = self._ids.popitem(last=False)
                self.num_chars -= len(oldest)
