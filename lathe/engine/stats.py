"""What an engine has on its hands at one moment: plain numbers for whoever watches it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineStats:
    """Sequences and pages of the key-value cache, counted together.

    `num_free_pages` hold nothing; `num_cached_pages` hold what ended replies left for later prompts, and are
    given up as soon as they are needed. The rest are read by running sequences. An engine without a cache of
    its own has 0 pages. Draft tokens were guessed by speculation since the start; accepted ones were right.
    """

    num_running: int = 0
    num_waiting: int = 0
    num_pages: int = 0
    num_free_pages: int = 0
    num_cached_pages: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0

    @property
    def num_used_pages(self) -> int:
        return self.num_pages - self.num_free_pages - self.num_cached_pages
