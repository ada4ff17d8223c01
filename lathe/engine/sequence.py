"""One reply in the making, as the engine sees it: token ids, pages, and where it stands."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch

from lathe.engine.grammar import Matcher
from lathe.engine.kv_cache import PAGE_SIZE
from lathe.engine.prefix_cache import Key, page_keys
from lathe.engine.speculation import Lookup
from lathe.kernels.attention import Span
from lathe.types import FinishReason, SamplingParams, TokenLogprob


@dataclass(frozen=True)
class Sampled:
    """What the engine reports after a step: a token, why the reply ended, or what went wrong.

    A reply that is ended from outside ("abort") has a reason and no token. `num_cached_tokens` is how many of
    the prompt's tokens were not computed for this reply; `prompt_logprobs` comes with the first token.
    `is_exact` is False where the reply so far holds ids or log-probabilities that another engine kept back.
    """

    token: TokenLogprob | None = None
    finish_reason: FinishReason | None = None
    error: BaseException | None = None
    num_cached_tokens: int = 0
    weights_version: int = 0
    prompt_logprobs: tuple[TokenLogprob | None, ...] = ()
    is_exact: bool = True

    @property
    def is_last(self) -> bool:
        return self.finish_reason is not None or self.error is not None


class History:
    """Which tokens a sequence holds and how often its reply said them, kept up to date for the penalties."""

    def __init__(self, vocab_size: int, device: torch.device):
        self.seen_V = torch.zeros(vocab_size, dtype=torch.bool, device=device)
        self.counts_V = torch.zeros(vocab_size, device=device)
        self._num_noted = 0

    def note(self, sequence: Sequence) -> None:
        """Take in the tokens that came since the last call."""
        prompt_end = max(len(sequence.prompt_token_ids), self._num_noted)
        new = torch.tensor(sequence.token_ids[self._num_noted :], device=self.seen_V.device, dtype=torch.long)
        said = torch.tensor(sequence.token_ids[prompt_end:], device=self.seen_V.device, dtype=torch.long)
        self.seen_V[new] = True
        self.counts_V.index_add_(0, said, torch.ones(len(said), device=said.device))
        self._num_noted = len(sequence.token_ids)


@dataclass(eq=False)
class Sequence:
    """`token_ids` is the prompt and the reply so far; the cache holds the first `num_computed` of them.

    `num_cached` of these were found in the cache when the sequence was first admitted.
    `matcher` is the reply's place in its grammar, if it has one; it stays when the sequence has to give way.
    """

    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams
    max_new_tokens: int
    report: Callable[[Sampled], None]
    matcher: Matcher | None = None
    token_ids: list[int] = field(init=False)
    pages: list[int] = field(default_factory=list)
    num_computed: int = 0
    num_cached: int | None = None
    cancelled: bool = False
    history: History | None = None
    lookup: Lookup = field(default_factory=Lookup)
    prompt_logprobs: list[TokenLogprob | None] = field(default_factory=list)
    _keys: list[Key] = field(default_factory=list)
    _runs: list[tuple[int, int]] = field(default_factory=list)  # of neighbouring pages
    _num_in_runs: int = 0
    # One generator a sequence: what is drawn never depends on who else is in the batch.
    random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.token_ids = list(self.prompt_token_ids)
        seed = self.sampling.seed
        # As text: Random forgets an integer's sign, and the seeds -1 and 1 of two of `n` replies were one.
        self.random = random.Random(None if seed is None else str(seed))

    @property
    def num_waiting(self) -> int:
        """Tokens that the model has not read yet: 1 while decoding, more while the prompt is read."""
        return len(self.token_ids) - self.num_computed

    @property
    def num_new(self) -> int:
        return len(self.token_ids) - len(self.prompt_token_ids)

    @property
    def is_reading(self) -> bool:
        """Whether the prompt, or what was said before the sequence had to give way, is still being read."""
        return self.num_waiting > 1 or self.num_new == 0

    @property
    def draws_freely(self) -> bool:
        """Whether it draws tokens, and no grammar has a say."""
        return self.matcher is None and self.max_new_tokens > 0

    @property
    def scores_prompt(self) -> bool:
        """Whether log-probabilities of prompt tokens are wanted and not known yet."""
        wanted = self.sampling.prompt_logprobs is not None
        return wanted and len(self.prompt_logprobs) < len(self.prompt_token_ids)

    def keys(self, num_pages: int) -> list[Key]:
        """What the cache knows the first `num_pages` full pages by."""
        if len(self._keys) < num_pages:
            # What is computed for a deterministic reply has other last bits.
            root = b"deterministic" if self.sampling.deterministic else b""
            self._keys = page_keys(self.token_ids, num_pages, root, self._keys)
        return self._keys[:num_pages]

    def hold(self, pages: Iterable[int]) -> None:
        """More pages, behind those it has."""
        self.pages += pages

    def let_go(self) -> list[int]:
        """All pages; it keeps none, and has computed nothing."""
        pages, self.pages = self.pages, []
        self._runs, self._num_in_runs, self.num_computed = [], 0, 0
        return pages

    def slots(self, first: int, last: int) -> list[int]:
        """The cache slots of positions [first, last)."""
        return [self.pages[p // PAGE_SIZE] * PAGE_SIZE + p % PAGE_SIZE for p in range(first, last)]

    def span(self, start: int, num_queries: int) -> Span:
        """This sequence's share of a step whose `num_queries` tokens stand at `start` in the packed axis."""
        for page in self.pages[self._num_in_runs :]:
            if self._runs and self._runs[-1][1] == page:
                self._runs[-1] = (self._runs[-1][0], page + 1)
            else:
                self._runs.append((page, page + 1))
        self._num_in_runs = len(self.pages)
        slots, missing = [], self.num_computed + num_queries
        for first_page, last_page in self._runs:
            count = min(missing, (last_page - first_page) * PAGE_SIZE)
            if count <= 0:
                break
            slots.append((first_page * PAGE_SIZE, first_page * PAGE_SIZE + count))
            missing -= count
        return Span(start, num_queries, tuple(slots))
