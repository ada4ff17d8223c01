"""Doubles for tests: a model that says exact words, a machine that fails at exact moments. Everything around
those is the real thing."""

from __future__ import annotations

import bisect
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from lathe.engine.grammar import Matcher
from lathe.engine.llm import LLM
from lathe.engine.sequence import Sampled
from lathe.engine.stats import EngineStats
from lathe.errors import InfrastructureError, PromptTooLong
from lathe.sandbox.pool import Pool
from lathe.sandbox.spec import SandboxSpec
from lathe.text.byte_level import BYTE_TO_CHAR, SpecialToken, Vocabulary
from lathe.text.chat_template import ChatTemplate
from lathe.text.tokenizer import Tokenizer
from lathe.types import FinishReason, SamplingParams, Sandbox, TokenLogprob

QWEN_MARKS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>", "<|fim_prefix|>",
    "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<tool_response>",
    "</tool_response>", "<think>", "</think>",
)  # fmt: skip


@dataclass(eq=False)
class _Line:
    """A reply being spoken."""

    token_ids: list[int]
    report: Callable[[Sampled], None]
    max_tokens: int | None
    num_cached_tokens: int
    prompt_logprobs: tuple[TokenLogprob | None, ...] = ()
    cancelled: bool = False
    aborted: bool = False


class ScriptedEngine:
    """Speaks the next reply of its script to each request, one token at a time, with probability 1.

    A reply of None, or the script's end, means: say nothing and end the turn. `answer` chooses the reply by
    the prompt's text instead. `prompts` records what was asked. `delay_s` is the pause before each token.
    With `prefix_cache`, `num_cached_tokens` records for each prompt what an endless cache would have: the
    longest beginning that it shares with an earlier conversation, but for the last token, which is always
    read.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        replies: Iterable[str | None],
        *,
        answer: Callable[[str], str | None] | None = None,
        prefix_cache: bool = False,
        max_context: int = 32_768,
        delay_s: float = 0.0,
    ):
        self.tokenizer = tokenizer
        self.max_context = max_context
        self.vocab_size = tokenizer.vocab_size
        self.eos_token_ids = frozenset({tokenizer.special_tokens["<|im_end|>"]})
        self.prompts: list[tuple[int, ...]] = []
        self.num_cached_tokens: list[int] = []
        self.num_open = 0
        self._replies = iter(replies)
        self._answer = answer
        self._prefix_cache = prefix_cache
        self._conversations: list[tuple[int, ...]] = []  # sorted, so that the most alike are neighbours
        self._delay_s = delay_s
        self._lines: list[_Line] = []
        self._lock = threading.Lock()
        self._closed = threading.Event()

    def check(self, sampling: SamplingParams) -> None:
        """A script is spoken as it is written, whatever was asked for."""

    def submit(
        self,
        prompt_token_ids: tuple[int, ...],
        sampling: SamplingParams,
        report: Callable[[Sampled], None],
        matcher: Matcher | None = None,  # a script is spoken as it is written
    ) -> _Line:
        if len(prompt_token_ids) >= self.max_context:
            raise PromptTooLong(len(prompt_token_ids), self.max_context)
        with self._lock:
            self.num_open += 1
            self.prompts.append(prompt_token_ids)
            reply = self._reply_to(prompt_token_ids)
            ids = self.tokenizer.encode(reply, allow_special=True) + sorted(self.eos_token_ids)
            num_cached = self._num_cached(prompt_token_ids)
            self.num_cached_tokens.append(num_cached)
            if self._prefix_cache:
                bisect.insort(self._conversations, (*prompt_token_ids, *ids))
        ends = [place for place, token_id in enumerate(ids) if token_id in sampling.stop_token_ids]
        ids = ids[: ends[0] + 1] if ends else ids
        known = certain(prompt_token_ids, sampling.prompt_logprobs)
        line = _Line(ids, report, sampling.max_tokens, num_cached, known)
        with self._lock:
            self._lines.append(line)
        threading.Thread(target=self._speak, args=(line,), daemon=True).start()
        return line

    def cancel(self, sequence: _Line) -> None:
        sequence.cancelled = True

    def abort_all(self) -> None:
        with self._lock:
            for line in self._lines:
                line.aborted = True

    def describe(self) -> str:
        return f"{self.max_context:,} tokens of context"

    def stats(self) -> EngineStats:
        return EngineStats(num_running=self.num_open)

    def close(self) -> None:
        self._closed.set()

    def _reply_to(self, prompt: tuple[int, ...]) -> str:
        reply = self._answer(self.tokenizer.decode(prompt)) if self._answer else next(self._replies, None)
        return reply or ""

    def _num_cached(self, prompt: tuple[int, ...]) -> int:
        place = bisect.bisect(self._conversations, prompt)
        neighbours = self._conversations[max(place - 1, 0) : place + 1]
        return min(max((num_shared(prompt, other) for other in neighbours), default=0), len(prompt) - 1)

    def _speak(self, line: _Line) -> None:
        sampled = partial(
            Sampled, num_cached_tokens=line.num_cached_tokens, prompt_logprobs=line.prompt_logprobs
        )
        if line.max_tokens == 0:
            line.report(sampled(None, "length"))
            line.token_ids = []
        for place, token_id in enumerate(line.token_ids):
            if self._closed.wait(self._delay_s) or line.cancelled:
                break
            if line.aborted:
                line.report(Sampled(finish_reason="abort"))
                break
            is_cut = place + 1 == line.max_tokens
            is_end = place + 1 == len(line.token_ids)
            reason: FinishReason | None = "stop" if is_end else "length" if is_cut else None
            token = TokenLogprob(token_id, 0.0, ((token_id, 0.0),))
            line.report(sampled(token, reason))
            if reason:
                break
        with self._lock:
            self.num_open -= 1
            self._lines.remove(line)


class ScriptedModel(LLM):
    """A model that says exactly these replies, in order: `ScriptedModel("echo hi", None)`.

    A reply may hold control tokens, as a real model's does (`<tool_call>` …). With a tiny byte-level
    tokenizer and the built-in chat template unless others are given. Clients that ask for more than their
    conversation (a title, a summary) need `answer`, which is given the prompt as text.
    """

    engine: ScriptedEngine

    def __init__(
        self,
        *replies: str | None,
        answer: Callable[[str], str | None] | None = None,
        tokenizer: Tokenizer | None = None,
        template: ChatTemplate | None = None,
        prefix_cache: bool = False,
        max_context: int = 32_768,
        delay_s: float = 0.0,
    ):
        tokenizer = tokenizer or tiny_tokenizer()
        self._assemble(
            engine=ScriptedEngine(
                tokenizer,
                replies,
                answer=answer,
                prefix_cache=prefix_cache,
                max_context=max_context,
                delay_s=delay_s,
            ),
            tokenizer=tokenizer,
            template=template or ChatTemplate.builtin(),
            model_id="scripted",
            default_sampling=SamplingParams(),
        )


def certain(prompt: tuple[int, ...], asked: int | None) -> tuple[TokenLogprob | None, ...]:
    """A prompt's log-probabilities to a model that knew it by heart; none unless they were asked for."""
    if asked is None:
        return ()
    return (None, *(TokenLogprob(token_id, 0.0, ((token_id, 0.0),)) for token_id in prompt[1:]))


def num_shared(ids: tuple[int, ...], others: tuple[int, ...]) -> int:
    """How many tokens two conversations have in common from their beginning."""
    pairs = enumerate(zip(ids, others, strict=False))
    return next((place for place, (one, other) in pairs if one != other), min(len(ids), len(others)))


def tiny_tokenizer() -> Tokenizer:
    """Every byte is a token, and Qwen's control tokens come after: 256 + 15 ids."""
    marks = [
        SpecialToken(256 + place, text, special=text.startswith("<|"))
        for place, text in enumerate(QWEN_MARKS)
    ]
    return Tokenizer(
        Vocabulary(
            tokens={char: byte for byte, char in BYTE_TO_CHAR.items()},
            merges=[],
            special=tuple(marks),
            pre_tokenizer={
                "type": "ByteLevel",
                "add_prefix_space": False,
                "trim_offsets": False,
                "use_regex": True,
            },
            eos_token="<|im_end|>",
        )
    )


class FaultyPool:
    """A pool whose machine fails when it is told to: `fails` is asked before each call into it, by its name
    ("create", "exec", "read" …), and a yes is an InfrastructureError. `num_calls` counts them."""

    def __init__(self, pool: Pool, fails: Callable[[str], bool]):
        self._pool = pool
        self._fails = fails
        self.num_calls = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    async def create(self, spec: SandboxSpec | None = None, **options: Any) -> Sandbox:
        self.check("create")
        return cast(Sandbox, FaultySandbox(await self._pool.create(spec, **options), self))

    def check(self, name: str) -> None:
        self.num_calls += 1
        if self._fails(name):
            raise InfrastructureError(f"a fault was injected into {name}")


class FaultySandbox:
    """A real sandbox in a FaultyPool. Closing it never fails: tests leave nothing behind."""

    CALLS = frozenset(
        {
            "exec",
            "python",
            "start",
            "shell",
            "read",
            "write",
            "list",
            "upload",
            "download",
            "snapshot",
            "fork",
        }
    )

    def __init__(self, box: Sandbox, pool: FaultyPool):
        self._box = box
        self._pool = pool

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._box, name)
        if name not in self.CALLS:
            return found

        async def call(*args: Any, **kwargs: Any) -> Any:
            self._pool.check(name)
            return await found(*args, **kwargs)

        return call
