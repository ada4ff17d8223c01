"""Who runs next: sequences join and leave at every step, and long prompts are read in pieces."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from lathe.engine.kv_cache import PAGE_SIZE, pages_for
from lathe.engine.prefix_cache import Key, PrefixCache
from lathe.engine.sequence import Sequence

# Pages are taken a stretch at a time, so that a growing sequence stays in one piece.
STRETCH = 16
# Tokens of a step whose scores over the whole vocabulary are all wanted: 0.6 MB each for Qwen's.
SCORED_CHUNK = 64


@dataclass(frozen=True)
class Share:
    """One sequence's part of a step: its next `num_tokens` tokens are read, and then perhaps `drafts`, tokens
    that it may be about to say."""

    sequence: Sequence
    num_tokens: int
    drafts: tuple[int, ...] = ()

    @property
    def samples(self) -> bool:
        """Whether the step reaches the newest token, so that the next one can be drawn."""
        return self.num_tokens == self.sequence.num_waiting

    @property
    def scores_prompt(self) -> bool:
        """Whether the log-probabilities of prompt tokens are wanted from this step."""
        return self.sequence.scores_prompt

    @property
    def num_rows(self) -> int:
        """How many of the tokens that are read, counted from the last, need scores of what follows them."""
        if self.scores_prompt:
            return self.num_tokens
        return 1 + len(self.drafts) if self.samples else 0


class Scheduler:
    """First come, first served. Decoding goes before reading prompts; the youngest gives way when pages
    run out and is computed anew later, but for what the prefix cache still knows.

    `draft(sequence, num_decoding)` guesses the next tokens of one that decodes.
    """

    def __init__(
        self,
        pool: PrefixCache,
        *,
        max_num_seqs: int,
        prefill_chunk: int,
        prefill_chunk_when_busy: int,
        prefix_cache: bool = True,
        draft: Callable[[Sequence, int], tuple[int, ...]] = lambda sequence, num_decoding: (),
    ):
        self.pool = pool
        self.max_num_seqs = max_num_seqs
        self.prefill_chunk = prefill_chunk
        self.prefill_chunk_when_busy = prefill_chunk_when_busy
        self.prefix_cache = prefix_cache
        self.draft = draft
        self.admits = True  # whether sequences that have not begun may start
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    @property
    def has_work(self) -> bool:
        return bool(self.running or self._may_start())

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence that ended or was cancelled; its pages are free at once."""
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        self.pool.give_back(sequence.let_go())

    def schedule(self) -> list[Share]:
        """The next step. Never empty while there is work: one sequence always fits, by the engine's limit."""
        shares: list[Share] = []
        decoding = [s for s in self.running if not s.is_reading]
        for sequence in decoding:
            if sequence not in self.running:  # it gave way to an older one
                continue
            drafts = self.draft(sequence, len(decoding))
            if self._missing_pages(sequence, 1 + len(drafts)) > self.pool.num_free:
                drafts = ()  # nobody gives way to a guess
            if self._grow(sequence, 1 + len(drafts)):
                shares.append(Share(sequence, 1, drafts))
        # A sequence that gave way to an older one after its share was planned is no longer running.
        shares = [share for share in shares if share.sequence in self.running]
        budget = self.prefill_chunk_when_busy if shares else self.prefill_chunk
        for sequence in [s for s in self.running if s.is_reading]:
            budget -= self._read_prompt(sequence, budget, shares)
        self._admit(budget, shares)
        return [share for share in shares if share.sequence in self.running]

    def computed(self, sequence: Sequence, num_tokens: int) -> None:
        """The cache holds that many more of the sequence's tokens; what fills a page can be found again."""
        num_full = sequence.num_computed // PAGE_SIZE
        sequence.num_computed += num_tokens
        last = sequence.num_computed // PAGE_SIZE
        if self.prefix_cache and last > num_full:
            for page, key in zip(sequence.pages[num_full:last], sequence.keys(last)[num_full:], strict=True):
                self.pool.keep(page, key)

    def give_way(self, sequence: Sequence) -> None:
        """Stop running a sequence; it goes on before all others that wait."""
        self.running.remove(sequence)
        self.pool.give_back(sequence.let_go())
        self.waiting.appendleft(sequence)

    def _admit(self, budget: int, shares: list[Share]) -> None:
        being_read = {key for s in self.running if s.is_reading and (key := self._next_key(s)) is not None}
        for sequence in self._may_start():
            if budget <= 0 or len(self.running) >= self.max_num_seqs:
                return
            self._find_prefix(sequence)
            next_key = self._next_key(sequence)
            if next_key in being_read:
                # Somebody is reading the same beginning: what is ready soon need not be computed twice.
                self.pool.give_back(sequence.let_go())
                continue
            # Its whole prompt must find room, or it would read half of it and give way again.
            if self._missing_pages(sequence, sequence.num_waiting) > self.pool.num_free:
                self.pool.give_back(sequence.let_go())
                return
            if sequence.num_cached is None:
                sequence.num_cached = sequence.num_computed
            if next_key is not None:
                being_read.add(next_key)
            self.waiting.remove(sequence)
            self.running.append(sequence)
            budget -= self._read_prompt(sequence, budget, shares)

    def _may_start(self) -> list[Sequence]:
        return [s for s in self.waiting if self.admits or s.num_cached is not None]

    def _find_prefix(self, sequence: Sequence) -> None:
        """Hold what is known of the sequence's beginning, but not its last token: a reply begins there."""
        if self.prefix_cache and not sequence.scores_prompt:
            pages = self.pool.find(sequence.keys((len(sequence.token_ids) - 1) // PAGE_SIZE))
            sequence.hold(pages)
            sequence.num_computed = len(pages) * PAGE_SIZE

    def _next_key(self, sequence: Sequence) -> Key | None:
        """The key of the page that the sequence computes next, None if others could not use it whole."""
        place = sequence.num_computed // PAGE_SIZE
        if not self.prefix_cache or place >= len(sequence.token_ids) // PAGE_SIZE:
            return None
        return sequence.keys(place + 1)[place]

    def _read_prompt(self, sequence: Sequence, budget: int, shares: list[Share]) -> int:
        share = Share(sequence, min(sequence.num_waiting, budget))
        if share.scores_prompt:
            share = Share(sequence, min(share.num_tokens, SCORED_CHUNK))
        if (
            share.num_tokens <= 0
            or sequence not in self.running
            or not self._grow(sequence, share.num_tokens)
        ):
            return 0
        shares.append(share)
        return share.num_tokens

    def _missing_pages(self, sequence: Sequence, num_tokens: int) -> int:
        return pages_for(sequence.num_computed + num_tokens) - len(sequence.pages)

    def _grow(self, sequence: Sequence, num_tokens: int) -> bool:
        """Make room for the next `num_tokens`. False when the sequence itself had to give way."""
        missing = self._missing_pages(sequence, num_tokens)
        if missing <= 0:
            return True
        while missing > self.pool.num_free:
            youngest = self.running[-1]
            self.give_way(youngest)
            if youngest is sequence:
                return False
        last_position = len(sequence.prompt_token_ids) + sequence.max_new_tokens
        useful = pages_for(last_position) - len(sequence.pages)
        count = max(missing, min(missing + STRETCH, useful, self.pool.num_free))
        sequence.hold(self.pool.take(count, after=sequence.pages[-1] if sequence.pages else None))
        return True
