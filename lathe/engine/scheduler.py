"""Who runs next: sequences join and leave at every step, and long prompts are read in pieces."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from lathe.engine.kv_cache import PagePool, pages_for
from lathe.engine.sequence import Sequence

# Pages are taken a stretch at a time, so that a growing sequence stays in one piece.
STRETCH = 16


@dataclass(frozen=True)
class Share:
    """One sequence's part of a step: its next `num_tokens` tokens are read."""

    sequence: Sequence
    num_tokens: int

    @property
    def samples(self) -> bool:
        """Whether the step reaches the newest token, so that the next one can be drawn."""
        return self.num_tokens == self.sequence.num_waiting


class Scheduler:
    """First come, first served. Decoding goes before reading prompts; the youngest gives way when pages
    run out and is computed anew later."""

    def __init__(
        self, pool: PagePool, *, max_num_seqs: int, prefill_chunk: int, prefill_chunk_when_busy: int
    ):
        self.pool = pool
        self.max_num_seqs = max_num_seqs
        self.prefill_chunk = prefill_chunk
        self.prefill_chunk_when_busy = prefill_chunk_when_busy
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence that ended or was cancelled; its pages are free at once."""
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        self._release(sequence)

    def schedule(self) -> list[Share]:
        """The next step. Never empty while there is work: one sequence always fits, by the engine's limit."""
        shares: list[Share] = []
        for sequence in [s for s in self.running if s.num_waiting == 1]:
            if sequence in self.running and self._grow(sequence, 1):
                shares.append(Share(sequence, 1))
        # A sequence that gave way to an older one after its share was planned is no longer running.
        shares = [share for share in shares if share.sequence in self.running]
        budget = self.prefill_chunk_when_busy if shares else self.prefill_chunk
        for sequence in [s for s in self.running if s.num_waiting > 1]:
            budget -= self._read_prompt(sequence, budget, shares)
        while budget > 0 and self.waiting and len(self.running) < self.max_num_seqs:
            sequence = self.waiting[0]
            # Its whole prompt must find room, or it would read half of it and give way again.
            if self._missing_pages(sequence, sequence.num_waiting) > self.pool.num_free:
                break
            self.running.append(self.waiting.popleft())
            budget -= self._read_prompt(sequence, budget, shares)
        return [share for share in shares if share.sequence in self.running]

    def _read_prompt(self, sequence: Sequence, budget: int, shares: list[Share]) -> int:
        num_tokens = min(sequence.num_waiting, budget)
        if num_tokens <= 0 or sequence not in self.running or not self._grow(sequence, num_tokens):
            return 0
        shares.append(Share(sequence, num_tokens))
        return num_tokens

    def _missing_pages(self, sequence: Sequence, num_tokens: int) -> int:
        return pages_for(sequence.num_computed + num_tokens) - len(sequence.pages)

    def _grow(self, sequence: Sequence, num_tokens: int) -> bool:
        """Make room for the next `num_tokens`. False when the sequence itself had to give way."""
        missing = self._missing_pages(sequence, num_tokens)
        if missing <= 0:
            return True
        while missing > self.pool.num_free:
            youngest = self.running[-1]
            self._preempt(youngest)
            if youngest is sequence:
                return False
        last_position = len(sequence.prompt_token_ids) + sequence.max_new_tokens
        useful = pages_for(last_position) - len(sequence.pages)
        count = max(missing, min(missing + STRETCH, useful, self.pool.num_free))
        sequence.pages += self.pool.take(count, after=sequence.pages[-1] if sequence.pages else None)
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._release(sequence)
        sequence.num_computed = 0
        self.waiting.appendleft(sequence)

    def _release(self, sequence: Sequence) -> None:
        self.pool.give_back(sequence.pages)
        sequence.pages = []
