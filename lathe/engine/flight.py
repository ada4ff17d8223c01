"""Replies on their way: between the engine, which reports ids, and a reader, who wants words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

from lathe.engine.grammar import Matcher
from lathe.engine.reply import Chunk, Reply
from lathe.engine.sequence import Sampled
from lathe.engine.stats import EngineStats
from lathe.errors import LatheError
from lathe.text import reasoning
from lathe.text.tokenizer import Tokenizer
from lathe.text.tool_calls import Dialect, ToolCallParser
from lathe.types import SamplingParams, Tool

MAX_PROMPT_END = 32  # tokens; enough for <think> in any tokenizer, and white space


class TokenSource(Protocol):
    """What is asked of an engine: the real one, or a double that says exact words."""

    max_context: int
    vocab_size: int
    eos_token_ids: frozenset[int]

    def check(self, sampling: SamplingParams) -> None: ...
    def submit(
        self,
        prompt_token_ids: tuple[int, ...],
        sampling: SamplingParams,
        report: Callable[[Sampled], None],
        matcher: Matcher | None = None,
    ) -> Any: ...
    def cancel(self, sequence: Any) -> None: ...
    def abort_all(self) -> None: ...
    def describe(self) -> str: ...
    def stats(self) -> EngineStats: ...
    def close(self) -> None: ...


class StepFailed(LatheError):
    """A bug or a lack of memory ended the step of this reply. The engine's log has the traceback."""


class Flight:
    """The `n` replies to each of some prompts, numbered 0, 1, 2 … prompt by prompt, until all have ended.

    `report(number, sampled)` is called on the engine's thread; whoever owns the flight hands each report to
    `read` on its own. Calls are looked for only where `tools` were offered, a thought where the model
    `thinks`. `match` gives a matcher for the reply to a prompt, where a grammar was asked for.
    """

    def __init__(
        self,
        engine: TokenSource,
        tokenizer: Tokenizer,
        prompts: Sequence[tuple[int, ...]],
        sampling: SamplingParams,
        report: Callable[[int, Sampled], None],
        *,
        tools: Sequence[Tool] = (),
        dialect: Dialect | None = None,
        thinks: bool = False,
        match: Callable[[tuple[int, ...]], Matcher | None] = lambda _: None,
    ):
        self._engine = engine
        self._replies: list[Reply] = []
        self._sequences: list[Any] = []
        for prompt in prompts:
            prompt_end = tokenizer.decode(prompt[-MAX_PROMPT_END:]) if thinks else ""
            for copy in range(sampling.n):
                number = len(self._replies)
                self._replies.append(
                    Reply(
                        number,
                        tokenizer,
                        sampling,
                        prompt_token_ids=prompt,
                        eos_token_ids=engine.eos_token_ids,
                        parser=ToolCallParser(tools, dialect) if dialect else None,
                        reasoning=reasoning.parser_after(prompt_end) if thinks else None,
                    )
                )
                seed = None if sampling.seed is None else sampling.seed + copy
                try:
                    matcher = match(prompt)
                    held = () if matcher is None else (matcher,)  # a source of tokens may know no grammars
                    sequence = engine.submit(
                        prompt, replace(sampling, seed=seed, n=1), partial(report, number), *held
                    )
                except BaseException:
                    self.cancel()
                    raise
                self._sequences.append(sequence)

    @property
    def num_open(self) -> int:
        """Replies that have not ended."""
        return sum(not reply.ended for reply in self._replies)

    def read(self, number: int, sampled: Sampled) -> Chunk | None:
        """What a report means. None for what still arrives after a stop string ended the reply.
        Raises StepFailed when a step failed, and EngineClosed when the engine was shut down."""
        reply = self._replies[number]
        if reply.ended:
            return None
        if isinstance(sampled.error, LatheError):
            raise sampled.error
        if sampled.error is not None:
            # Each reply gets an error of its own: one shared by all would collect a traceback from each.
            raise StepFailed(f"a step of the engine failed: {sampled.error!r}")
        chunk = reply.push(sampled)
        if chunk.completion is not None and sampled.finish_reason is None:
            self._engine.cancel(self._sequences[number])
        return chunk

    def cancel(self) -> None:
        """End what still runs; nobody reads it any more."""
        for reply, sequence in zip(self._replies, self._sequences, strict=False):
            if not reply.ended:
                self._engine.cancel(sequence)
