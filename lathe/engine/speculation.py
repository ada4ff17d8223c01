"""Speculation by prompt lookup: guess that a reply goes on as the same words went on before.

Agents copy: a file that was read is written again with one line changed. The tokens that followed the newest
earlier occurrence of the last few are proposed, the model reads them all in one step, and those that it would
have drawn itself count (Saxena 2023, "Prompt Lookup Decoding"). Each is drawn as it would have been without a
guess, by the same generator, so a guess changes the time and nothing else.

Reading more tokens in a step costs more, much more where each wakes other experts. So it must pay: a sequence
whose guesses fail waits, longer each time, and what a step with guesses costs is measured.
"""

from __future__ import annotations

from dataclasses import dataclass, field

NGRAM = 3  # tokens that must have been said before
# A failed guess is followed by this many plain tokens, twice as many after each further one.
FIRST_WAIT, LONGEST_WAIT = 4, 256
WINDOW = 32  # guesses


@dataclass
class Lookup:
    """What one sequence said before: where each run of NGRAM tokens was last followed by something."""

    ends: dict[tuple[int, ...], int] = field(default_factory=dict)
    num_seen: int = 0  # tokens whose runs are noted
    wait: int = 0  # plain tokens to draw before the next guess
    next_wait: int = FIRST_WAIT

    def propose(self, token_ids: list[int], count: int) -> tuple[int, ...]:
        """Up to `count` tokens that may come next. Nothing when the last tokens are new."""
        last = len(token_ids)
        # The run that ends with the newest token is noted later: it must not find itself.
        for end in range(max(NGRAM, self.num_seen), last):
            self.ends[tuple(token_ids[end - NGRAM : end])] = end
        self.num_seen = max(NGRAM, last)
        if self.wait > 0:
            self.wait -= 1
            return ()
        start = self.ends.get(tuple(token_ids[-NGRAM:])) if last > NGRAM else None
        return () if start is None else tuple(token_ids[start : start + count])

    def note(self, num_proposed: int, num_accepted: int) -> None:
        """How a guess went. One that was right in half of its tokens is worth another at once."""
        if 2 * num_accepted >= num_proposed:
            self.wait, self.next_wait = 0, FIRST_WAIT
        else:
            self.wait, self.next_wait = self.next_wait, min(2 * self.next_wait, LONGEST_WAIT)


@dataclass
class Gate:
    """Whether guesses pay on this machine and model: tokens gained against time lost, as measured.

    A verdict is passed on WINDOW guesses together. Times are of steps that only decode, in seconds.
    """

    num_proposed: int = 0
    num_accepted: int = 0
    closed_for: int = 0  # plain steps until the next try
    plain_s: float | None = None  # a plain step, on a slowly moving average
    _num_steps: int = 0
    _steps_s: float = 0.0
    _num_guesses: int = 0
    _num_right: int = 0

    @property
    def is_open(self) -> bool:
        return self.closed_for == 0

    def note_step(self, seconds: float, num_guessing: int) -> None:
        """A step that only decoded, for sequences of which so many guessed."""
        if num_guessing:
            self._num_steps += 1
            self._steps_s += seconds
        else:
            self.plain_s = seconds if self.plain_s is None else self.plain_s + 0.05 * (seconds - self.plain_s)
            self.closed_for = max(0, self.closed_for - 1)

    def note_guess(self, num_proposed: int, num_accepted: int) -> None:
        """How one sequence's guess in such a step went."""
        self.num_proposed += num_proposed
        self.num_accepted += num_accepted
        self._num_guesses += 1
        self._num_right += num_accepted
        if self._num_guesses < WINDOW or self.plain_s is None or not self._num_steps:
            return
        tokens_a_guess = 1 + self._num_right / self._num_guesses
        if self._steps_s / self._num_steps > self.plain_s * tokens_a_guess:
            self.closed_for = LONGEST_WAIT
        self._num_steps, self._steps_s, self._num_guesses, self._num_right = 0, 0.0, 0, 0
