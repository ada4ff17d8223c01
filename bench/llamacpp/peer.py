"""llama.cpp in a process of its own, driven through peer.cpp."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from llamacpp.build import built

Ids = Sequence[Sequence[int]]  # one row a sequence, all of one length


class Peer:
    """A loaded model that computes when it is asked to, and else sleeps. See peer.cpp for `options`."""

    def __init__(self, path: Path, threads: int, *options: str):
        command = [built("peer"), path, str(threads), *options]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.vocab_size = int(self._line())

    @property
    def pid(self) -> int:
        return self.process.pid

    def measure(self, prompts: Ids, following: Ids) -> tuple[float, float]:
        """Seconds to read all prompts, and seconds of the steps that read what follows, one token each."""
        self._ask("time", prompts, following)
        prefill_s, decode_s = map(float, self._line().split())
        return prefill_s, decode_s

    def greedy(self, prompts: Ids, following: Ids) -> list[list[int]]:
        """The likeliest token behind each prompt and behind each token that follows."""
        self._ask("greedy", prompts, following)
        ids = list(map(int, self._line().split()))
        count = len(following[0]) + 1
        return [ids[start : start + count] for start in range(0, len(ids), count)]

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """float32 [len(ids), vocabulary]: each token's row scores the one behind it."""
        self._send(f"logits {len(ids)} {' '.join(map(str, ids))}")
        num_bytes = 4 * len(ids) * self.vocab_size
        raw = self.process.stdout.read(num_bytes)
        if len(raw) < num_bytes:
            raise self._ended()
        return np.frombuffer(bytearray(raw), "<f4").reshape(len(ids), self.vocab_size)  # may be written to

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()  # it may be in the midst of a measurement, when this one was interrupted
        self.process.wait()

    def _ask(self, what: str, prompts: Ids, following: Ids) -> None:
        shape = (len(prompts), len(prompts[0]), len(following[0]) + 1)
        numbers = [*shape, *(id for ids in (*prompts, *following) for id in ids)]
        self._send(f"{what} {' '.join(map(str, numbers))}")

    def _send(self, request: str) -> None:
        self.process.stdin.write(request.encode() + b"\n")
        self.process.stdin.flush()

    def _line(self) -> str:
        line = self.process.stdout.readline().decode()
        if not line:
            raise self._ended()
        return line

    def _ended(self) -> RuntimeError:
        return RuntimeError(f"llama.cpp's process ended with code {self.process.wait()}")
