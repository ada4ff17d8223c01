"""What is kept of a command's output: its head and its tail."""

from __future__ import annotations


class Capture:
    """Takes bytes as they come and keeps at most `max_bytes` of them: the first half and the last half.

    The newest bytes can be up to twice that in memory, never more, however much comes.
    """

    def __init__(self, max_bytes: int):
        self.max_head = max_bytes - max_bytes // 2
        self.max_tail = max_bytes // 2
        self.head = bytearray()
        self.tail = bytearray()
        self.num_bytes = 0

    def add(self, data: bytes) -> None:
        self.num_bytes += len(data)
        room = self.max_head - len(self.head)
        if room > 0:
            self.head += data[:room]
            data = data[room:]
        if data:
            self.tail += data
            if len(self.tail) > 2 * self.max_tail:
                del self.tail[: len(self.tail) - self.max_tail]

    @property
    def num_dropped(self) -> int:
        return max(0, self.num_bytes - len(self.head) - self.max_tail)

    def text(self) -> str:
        """The output, with a line where its middle was left out."""
        tail = self.tail[max(0, len(self.tail) - self.max_tail) :]
        if not self.num_dropped:
            return (self.head + tail).decode("utf-8", "replace")
        note = f"\n[… {self.num_dropped} bytes left out …]\n"
        return self.head.decode("utf-8", "replace") + note + tail.decode("utf-8", "replace")
