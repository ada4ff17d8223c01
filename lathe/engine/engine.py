"""The engine: continuous batching of token sequences through one model, on a thread of its own.

`submit` takes prompt ids and a function to report to; `_step` = schedule, run, sample, report.
Text is none of its business: tokenizing, stop strings and tool calls live in `reply.py` and `llm.py`.
"""

from __future__ import annotations

import atexit
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

import torch

from lathe.engine.kv_cache import (
    PAGE_SIZE,
    KVCache,
    PagePool,
    available_memory,
    bytes_per_token,
    pages_for,
)
from lathe.engine.runner import Runner
from lathe.engine.sampler import check_sampling, sample
from lathe.engine.scheduler import Scheduler
from lathe.engine.sequence import Sampled, Sequence
from lathe.engine.stats import EngineStats
from lathe.errors import InvalidRequest, LatheError, PromptTooLong, UserError
from lathe.model.transformer import Transformer
from lathe.types import FinishReason, SamplingParams, TokenLogprob

logger = logging.getLogger("lathe.engine")


@dataclass(frozen=True)
class EngineConfig:
    """`max_context` and `kv_memory_bytes` are found from the model and the free memory when None."""

    max_num_seqs: int = 64
    max_context: int | None = None
    kv_memory_bytes: int | None = None
    kv_memory_share: float = 0.5  # of what is free after the weights are loaded
    prefill_chunk: int = 512
    # While others decode, a prompt is read in smaller pieces, so that their next token is not held up.
    prefill_chunk_when_busy: int = 128


class EngineClosed(LatheError):
    """The engine was shut down before the reply was complete."""


class Engine:
    """Runs many sequences at once. Thread-safe: `submit` and `cancel` may be called from anywhere."""

    def __init__(
        self, model: Transformer, *, eos_token_ids: tuple[int, ...] = (), config: EngineConfig | None = None
    ):
        self.config = config or EngineConfig()
        self.eos_token_ids = frozenset(eos_token_ids)
        self.weights_version = 0
        self.vocab_size = model.config.vocab_size
        weight = next(model.parameters())
        # Weights may be kept in a narrow format (FP8) that arithmetic does not run in; norms never are.
        dtype = model.norm.weight.dtype
        limit = self.config.max_context or model.config.max_position_embeddings
        num_pages = _num_pages(model, limit, dtype, weight.device, self.config)
        self.max_context = min(limit, num_pages * PAGE_SIZE)
        if self.config.max_context and self.max_context < self.config.max_context:
            raise UserError(
                f"A context of {self.config.max_context} tokens was asked for, but the free memory holds "
                f"{self.max_context}. Ask for less, or close what else uses the memory."
            )
        self.pool = PagePool(num_pages)
        self.runner = Runner(
            model.eval(), KVCache(model.config, num_pages, dtype=dtype, device=weight.device)
        )
        self.scheduler = Scheduler(
            self.pool,
            max_num_seqs=self.config.max_num_seqs,
            prefill_chunk=self.config.prefill_chunk,
            prefill_chunk_when_busy=self.config.prefill_chunk_when_busy,
        )
        self._submitted: list[Sequence] = []
        self._wake = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="lathe-engine", daemon=True)
        self._thread.start()
        # A script may end without closing; a thread inside PyTorch must not outlive the interpreter.
        atexit.register(self.close)

    def submit(
        self,
        prompt_token_ids: tuple[int, ...],
        sampling: SamplingParams,
        report: Callable[[Sampled], None],
    ) -> Sequence:
        """Queue one reply. Raises PromptTooLong or InvalidRequest before anything is queued.

        `report` is called on the engine's thread, once a token, and must not block; a reply's last report
        says why it ended. `max_tokens` beyond the context's end is as good as None.
        """
        check_sampling(sampling)
        if len(prompt_token_ids) >= self.max_context:
            raise PromptTooLong(len(prompt_token_ids), self.max_context)
        if not prompt_token_ids:
            raise InvalidRequest("The prompt is empty: there is no token to continue from.")
        if not 0 <= min(prompt_token_ids) <= max(prompt_token_ids) < self.vocab_size:
            # Inside a step it would end everybody's reply, and on a GPU the whole process.
            raise InvalidRequest(f"A token id of the prompt is outside the model's {self.vocab_size} ids.")
        room = self.max_context - len(prompt_token_ids)
        max_new_tokens = room if sampling.max_tokens is None else min(sampling.max_tokens, room)
        sequence = Sequence(prompt_token_ids, sampling, max_new_tokens, report)
        with self._wake:
            if self._closing:
                raise EngineClosed("the engine is shut down")
            self._submitted.append(sequence)
            self._wake.notify()
        return sequence

    def cancel(self, sequence: Sequence) -> None:
        """End a reply that nobody waits for. Its pages are free before the next step; it reports no more."""
        with self._wake:
            sequence.cancelled = True
            self._wake.notify()

    def close(self) -> None:
        """Stop the thread. Replies in the making end with EngineClosed."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()
        atexit.unregister(self.close)

    def describe(self) -> str:
        """One line for a person: how much context the memory gives."""
        cache = self.runner.cache
        return (
            f"{self.max_context:,} tokens of context; the cache holds {cache.num_slots:,} tokens "
            f"of all requests together, in up to {cache.num_bytes / 1e9:.1f} GB"
        )

    @property
    def num_running(self) -> int:
        return len(self.scheduler.running)

    @property
    def num_waiting(self) -> int:
        return len(self.scheduler.waiting) + len(self._submitted)

    def stats(self) -> EngineStats:
        """The numbers of this moment, without waiting for the step that runs."""
        return EngineStats(
            num_running=self.num_running,
            num_waiting=self.num_waiting,
            num_pages=self.pool.num_pages,
            num_free_pages=self.pool.num_free,
        )

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._closing or self._submitted or self.scheduler.has_work):
                    self._wake.wait()
                for sequence in self._submitted:
                    self.scheduler.add(sequence)
                self._submitted = []
                closing = self._closing
            if closing:
                self._end_all(EngineClosed("the engine was shut down"))
                return
            try:
                self._step()
            except Exception as error:  # the boundary: a bug ends the replies it hit, not the server
                logger.exception("a step failed; its replies end with an error")
                self._end_all(error)

    def _step(self) -> None:
        for sequence in [s for s in (*self.scheduler.running, *self.scheduler.waiting) if s.cancelled]:
            self.scheduler.remove(sequence)
        shares = self.scheduler.schedule()
        if not shares:
            return
        logits = self.runner.run(shares)
        samplers = [share.sequence for share in shares if share.samples]
        for share in shares:
            share.sequence.num_computed += share.num_tokens
        for sequence, token in zip(samplers, sample(logits, samplers), strict=True):
            self._append(sequence, token)

    def _append(self, sequence: Sequence, token: TokenLogprob) -> None:
        sequence.token_ids.append(token.token_id)
        finish_reason = self._finish_reason(sequence, token.token_id)
        if finish_reason is not None:
            self.scheduler.remove(sequence)
        self._report(sequence, Sampled(token, finish_reason, weights_version=self.weights_version))

    def _finish_reason(self, sequence: Sequence, token_id: int) -> FinishReason | None:
        sampling = sequence.sampling
        if token_id in sampling.stop_token_ids:
            return "stop"
        if token_id in self.eos_token_ids and not sampling.ignore_eos:
            return "stop"
        return "length" if sequence.num_new >= sequence.max_new_tokens else None

    def _end_all(self, error: Exception) -> None:
        # What was submitted since the step began is none of it: another thread may be adding to that list.
        for sequence in [*self.scheduler.running, *self.scheduler.waiting]:
            self.scheduler.remove(sequence)
            self._report(sequence, Sampled(error=error))

    def _report(self, sequence: Sequence, sampled: Sampled) -> None:
        if sequence.cancelled:
            return
        try:
            sequence.report(sampled)
        except Exception:  # the boundary: a listener whose event loop has closed is nobody else's trouble
            logger.exception("a reply was cancelled: its report could not be delivered")
            sequence.cancelled = True


def _num_pages(
    model: Transformer, max_context: int, dtype: torch.dtype, device: torch.device, config: EngineConfig
) -> int:
    """As many pages as the memory share holds, but no more than all sequences could ever use."""
    page_bytes = bytes_per_token(model.config, dtype) * PAGE_SIZE
    memory = config.kv_memory_bytes
    if memory is None:
        memory = int(available_memory(device) * config.kv_memory_share)
    num_pages = min(memory // page_bytes, pages_for(max_context) * config.max_num_seqs)
    if num_pages < 1:
        raise UserError(
            f"No memory is left for the context: a page of {PAGE_SIZE} tokens takes {page_bytes:,} bytes and "
            f"{memory:,} are free. Use a smaller model or a narrower type."
        )
    return num_pages
