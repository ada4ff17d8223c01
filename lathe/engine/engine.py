"""The engine: continuous batching of token sequences through one model, on a thread of its own.

`submit` takes prompt ids and a function to report to; `_step` = schedule, run, sample, report.
All that touches the model or the cache happens on that thread; other threads leave word in `_wake`'s care.
Text is none of its business: tokenizing, stop strings and tool calls live in `reply.py` and `llm.py`.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from lathe.engine.compiled import CompiledRunner, cache_dtype, can_run
from lathe.engine.grammar import Matcher
from lathe.engine.kv_cache import (
    PAGE_SIZE,
    KVCache,
    available_memory,
    bytes_per_token,
    pages_for,
)
from lathe.engine.prefix_cache import PrefixCache
from lathe.engine.runner import Runner
from lathe.engine.sampler import check_sampling, report_token, sample, sample_rows
from lathe.engine.scheduler import Scheduler, Share
from lathe.engine.sequence import Sampled, Sequence
from lathe.engine.speculation import Gate
from lathe.engine.stats import EngineStats
from lathe.engine.updates import Running, WeightUpdate, check_weights, put_weights
from lathe.errors import InvalidRequest, LatheError, PromptTooLong, UserError
from lathe.kernels.cpu.library import load as cpu_kernels
from lathe.model.transformer import Transformer
from lathe.types import FinishReason, SamplingParams, TokenLogprob

logger = logging.getLogger("lathe.engine")


@dataclass(frozen=True)
class EngineConfig:
    """`max_context` and `kv_memory_bytes` are found from the model and the free memory when None.

    `deterministic` makes every reply so, not only those that ask for it. `max_drafts` is the most tokens that
    are guessed at once (0: never), and `max_draft_rows` the most that a step reads while it guesses: a CPU
    computes up to eight rows for little more than one. `compiled`: computed in the compiled kernels, where
    this machine has them and they know the weights' types; else in PyTorch.
    """

    max_num_seqs: int = 64
    max_context: int | None = None
    kv_memory_bytes: int | None = None
    kv_memory_share: float = 0.5  # of what is free after the weights are loaded
    prefill_chunk: int = 512
    # While others decode, a prompt is read in smaller pieces, so that their next token is not held up.
    prefill_chunk_when_busy: int = 128
    prefix_cache: bool = True
    deterministic: bool = False
    max_drafts: int = 7
    max_draft_rows: int = 8
    compiled: bool = True


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
        self.library = cpu_kernels() if self.config.compiled and can_run(model) else None
        # Weights may be kept in a narrow format (FP8) that arithmetic does not run in; norms never are.
        dtype = cache_dtype(model) if self.library else model.norm.weight.dtype
        limit = self.config.max_context or model.config.max_position_embeddings
        num_pages = _num_pages(model, limit, dtype, weight.device, self.config)
        self.max_context = min(limit, num_pages * PAGE_SIZE)
        if self.config.max_context and self.max_context < self.config.max_context:
            raise UserError(
                f"A context of {self.config.max_context} tokens was asked for, but the free memory holds "
                f"{self.max_context}. Ask for less, or close what else uses the memory."
            )
        self.pool = PrefixCache(num_pages)
        self.gate = Gate()
        cache = KVCache(model.config, num_pages, dtype=dtype, device=weight.device)
        self.runner: Runner | CompiledRunner = (
            CompiledRunner(model.eval(), cache, self.library) if self.library else Runner(model.eval(), cache)
        )
        self.scheduler = Scheduler(
            self.pool,
            max_num_seqs=self.config.max_num_seqs,
            prefill_chunk=self.config.prefill_chunk,
            prefill_chunk_when_busy=self.config.prefill_chunk_when_busy,
            prefix_cache=self.config.prefix_cache,
            draft=self._draft,
        )
        self._is_invariant: bool | None = None  # known once somebody asked for it
        self._submitted: list[Sequence] = []
        self._updates: deque[WeightUpdate] = deque()
        self._aborting = False
        self._wake = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="lathe-engine", daemon=True)
        self._thread.start()
        # A script may end without closing; a thread inside PyTorch must not outlive the interpreter.
        atexit.register(self.close)

    def check(self, sampling: SamplingParams) -> None:
        """Raises InvalidRequest for what `submit` would refuse, whatever the prompt."""
        check_sampling(sampling)

    def submit(
        self,
        prompt_token_ids: tuple[int, ...],
        sampling: SamplingParams,
        report: Callable[[Sampled], None],
        matcher: Matcher | None = None,
    ) -> Sequence:
        """Queue one reply. Raises PromptTooLong or InvalidRequest before anything is queued.

        A `sampling.grammar` comes with the `matcher` that was compiled for it (see `grammar.Grammars`): the
        engine knows no vocabulary.

        `report` is called on the engine's thread, once a token, and must not block; a reply's last report
        says why it ended. `max_tokens` beyond the context's end is as good as None.
        """
        check_sampling(sampling)
        if self.config.deterministic:
            sampling = replace(sampling, deterministic=True)
        if sampling.grammar is not None and matcher is None:
            raise InvalidRequest(
                "A grammar needs its matcher, which LLM compiles from the tokenizer's words."
            )
        if len(prompt_token_ids) >= self.max_context:
            raise PromptTooLong(len(prompt_token_ids), self.max_context)
        if not prompt_token_ids:
            raise InvalidRequest("The prompt is empty: there is no token to continue from.")
        if not 0 <= min(prompt_token_ids) <= max(prompt_token_ids) < self.vocab_size:
            # Inside a step it would end everybody's reply, and on a GPU the whole process.
            raise InvalidRequest(f"A token id of the prompt is outside the model's {self.vocab_size} ids.")
        room = self.max_context - len(prompt_token_ids)
        max_new_tokens = room if sampling.max_tokens is None else min(sampling.max_tokens, room)
        sequence = Sequence(prompt_token_ids, sampling, max_new_tokens, report, matcher)
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

    def abort_all(self) -> None:
        """End every reply now, with what it has: its last report says "abort"."""
        with self._wake:
            self._aborting = True
            self._wake.notify()

    def update_weights(
        self, weights: Mapping[str, Tensor], *, version: int | None = None, running: Running = "finish"
    ) -> int:
        """Replace weights, all or some, by their names in the model's state_dict. Blocks until they serve.

        Replies in the making finish with the old weights while new ones wait; or, with "continue", go on at
        once: what they hold is read anew by the new weights, so that every token's log-probability is that of
        one version. The version is `version`, or one more than before. Raises InvalidRequest before anything
        is changed.
        """
        check_weights(self.runner.model, weights)
        update = WeightUpdate(weights, version, running)
        with self._wake:
            if self._closing:
                raise EngineClosed("the engine is shut down")
            self._updates.append(update)
            self._wake.notify()
        return update.done.result()

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
            num_free_pages=self.pool.num_free - self.pool.num_idle,
            num_cached_pages=self.pool.num_idle,
            num_draft_tokens=self.gate.num_proposed,
            num_accepted_tokens=self.gate.num_accepted,
        )

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (
                    self._closing
                    or self._aborting
                    or self._submitted
                    or self._updates
                    or self.scheduler.has_work
                ):
                    self._wake.wait()
                for sequence in self._submitted:
                    self.scheduler.add(sequence)
                self._submitted = []
                closing, aborting, self._aborting = self._closing, self._aborting, False
            if closing:
                self._end_all(Sampled(error=EngineClosed("the engine was shut down")))
                for update in self._updates:
                    update.done.set_exception(EngineClosed("the engine was shut down"))
                return
            try:
                if aborting:
                    self._end_all(Sampled(finish_reason="abort", weights_version=self.weights_version))
                self._update()
                self._step()
            except Exception as error:  # the boundary: a bug ends the replies it hit, not the server
                logger.exception("a step failed; its replies end with an error")
                self._end_all(Sampled(error=error))

    def _update(self) -> None:
        """Put new weights in place, if some wait and their moment has come."""
        while self._updates:
            update = self._updates[0]
            if update.running == "finish" and (self.scheduler.running or self._has_begun()):
                break
            for sequence in reversed(self.scheduler.running):
                self.scheduler.give_way(sequence)
            self.pool.forget_all()
            self._updates.popleft()
            try:
                put_weights(self.runner.model, update.weights)
                self.runner.forget_weights()
            except Exception as error:  # told to who asked for it; what the model holds now is theirs to mend
                update.done.set_exception(error)
                continue
            self.weights_version = self.weights_version + 1 if update.version is None else update.version
            update.done.set_result(self.weights_version)
        self.scheduler.admits = not self._updates

    def _has_begun(self) -> bool:
        return any(sequence.num_cached is not None for sequence in self.scheduler.waiting)

    def _step(self) -> None:
        for sequence in [s for s in (*self.scheduler.running, *self.scheduler.waiting) if s.cancelled]:
            self.scheduler.remove(sequence)
        shares = self.scheduler.schedule()
        if not shares:
            return
        invariant = any(share.sequence.sampling.deterministic for share in shares)
        if invariant and not self._can_be_invariant():
            self._refuse_deterministic()
            return
        started = time.perf_counter()
        logits_RV = self.runner.run(shares, invariant=invariant)
        firsts = list(accumulate((share.num_rows for share in shares), initial=0))
        if all(share.num_tokens == 1 for share in shares):
            num_guessing = sum(bool(share.drafts) for share in shares)
            self.gate.note_step(time.perf_counter() - started, num_guessing)
        tokens = self._draw_at_once(shares, firsts, logits_RV)
        for share, (first, last) in zip(shares, pairwise(firsts), strict=True):
            self._take(share, tokens.get(share.sequence), logits_RV, first, last)

    def _draw_at_once(
        self, shares: list[Share], firsts: list[int], logits_RV: Tensor
    ) -> dict[Sequence, TokenLogprob]:
        """The next tokens of sequences that draw one, without a grammar: between two steps a call counts."""
        if self.library is None:
            return {}
        rows = [
            (next_first - 1, share.sequence)
            for share, next_first in zip(shares, firsts[1:], strict=True)
            if share.samples and share.sequence.draws_freely and not share.drafts
        ]
        tokens = sample_rows(logits_RV, rows, self.library) if rows else []
        return {sequence: token for (_, sequence), token in zip(rows, tokens, strict=True)}

    def _take(
        self, share: Share, token: TokenLogprob | None, logits_RV: Tensor, first: int, last: int
    ) -> None:
        """What a step found out for one sequence, whose rows are [first, last): scores of its prompt, and the
        tokens that come next, of which one may be drawn already."""
        sequence, samples = share.sequence, share.samples
        if share.scores_prompt:
            self._score_prompt(sequence, logits_RV[first:last])
        self.scheduler.computed(sequence, share.num_tokens)
        if not samples:
            return
        if sequence.max_new_tokens == 0:
            self.scheduler.remove(sequence)
            self._report(sequence, self._sampled(sequence, None, "length"))
        elif token is not None:
            self._append(sequence, token)
        else:
            self._sample(share, logits_RV[last - 1 - len(share.drafts) : last])

    def _sample(self, share: Share, rows_RV: Tensor) -> None:
        """The next token, and those after it that were guessed."""
        sequence = share.sequence
        num_accepted = 0
        for logits_V, draft in zip(rows_RV, (*share.drafts, None), strict=True):
            try:
                token = sample(logits_V, sequence, self.library)
            except LatheError as error:
                self._end(sequence, error)
                break
            if self._append(sequence, token) or token.token_id != draft:
                break
            # The guess was right, so the step has read this token, too.
            self.scheduler.computed(sequence, 1)
            num_accepted += 1
        if share.drafts:
            sequence.lookup.note(len(share.drafts), num_accepted)
            self.gate.note_guess(len(share.drafts), num_accepted)

    def _score_prompt(self, sequence: Sequence, rows_RV: Tensor) -> None:
        """Each row scores the token that follows it. Nothing precedes the first."""
        scores, prompt = sequence.prompt_logprobs, sequence.prompt_token_ids
        if not scores:
            scores.append(None)
        first, wanted = sequence.num_computed + 1, sequence.sampling.prompt_logprobs or 0
        for place, logits_V in enumerate(rows_RV, start=first):
            if place == len(scores) and place < len(prompt):
                scores.append(report_token(prompt[place], logits_V, wanted, self.library))

    def _draft(self, sequence: Sequence, num_decoding: int) -> tuple[int, ...]:
        """Tokens that the sequence may be about to say; none where guessing does not pay."""
        room = sequence.max_new_tokens - sequence.num_new - 1
        most = min(self.config.max_drafts, self.config.max_draft_rows // num_decoding - 1, room)
        if most < 1 or not self.gate.is_open:
            return ()
        return sequence.lookup.propose(sequence.token_ids, most)

    def _can_be_invariant(self) -> bool:
        if self._is_invariant is None:
            self._is_invariant = self.runner.is_invariant()
        return self._is_invariant

    def _refuse_deterministic(self) -> None:
        error = InvalidRequest(
            "deterministic is not possible here: this machine's matrix products give a row other bits in "
            "another batch. Leave it out; with a seed or at temperature 0, replies differ at near-ties only."
        )
        for sequence in [*self.scheduler.running, *self.scheduler.waiting]:
            if sequence.sampling.deterministic:
                self._end(sequence, error)

    def _append(self, sequence: Sequence, token: TokenLogprob) -> bool:
        """The sequence goes on with this token. True if the reply ends with it."""
        sequence.token_ids.append(token.token_id)
        finish_reason = self._finish_reason(sequence, token.token_id)
        if finish_reason is not None:
            self.scheduler.remove(sequence)
        self._report(sequence, self._sampled(sequence, token, finish_reason))
        return finish_reason is not None

    def _sampled(
        self, sequence: Sequence, token: TokenLogprob | None, finish_reason: FinishReason | None
    ) -> Sampled:
        is_first = sequence.num_new <= 1
        return Sampled(
            token,
            finish_reason,
            num_cached_tokens=sequence.num_cached or 0,
            weights_version=self.weights_version,
            prompt_logprobs=tuple(sequence.prompt_logprobs) if is_first else (),
        )

    def _finish_reason(self, sequence: Sequence, token_id: int) -> FinishReason | None:
        sampling = sequence.sampling
        if token_id in sampling.stop_token_ids:
            return "stop"
        if token_id in self.eos_token_ids and not sampling.ignore_eos:
            return "stop"
        if sequence.matcher is not None and sequence.matcher.is_complete:
            return "stop"
        return "length" if sequence.num_new >= sequence.max_new_tokens else None

    def _end(self, sequence: Sequence, error: Exception) -> None:
        self.scheduler.remove(sequence)
        self._report(sequence, Sampled(error=error))

    def _end_all(self, last: Sampled) -> None:
        # What was submitted since the step began is none of it: another thread may be adding to that list.
        for sequence in [*self.scheduler.running, *self.scheduler.waiting]:
            self.scheduler.remove(sequence)
            self._report(sequence, last)

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
