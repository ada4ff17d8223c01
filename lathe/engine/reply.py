"""From sampled ids back to words: whole characters, thoughts, stop strings and tool calls, as they stream.

The engine knows ids only. A `Reply` reads them one by one and says what they mean in `Chunk`s; the last
chunk carries the `Completion`, whose ids are exactly those that the engine sampled up to the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from lathe.engine.sequence import Sampled
from lathe.text.reasoning import ReasoningParser
from lathe.text.tokenizer import StreamDecoder, Tokenizer
from lathe.text.tool_calls import CallFinished, Content, Event, Reasoning, ToolCallParser
from lathe.types import Completion, FinishReason, Message, SamplingParams, TokenLogprob, ToolCall


@dataclass(frozen=True)
class Chunk:
    """A piece of one reply. `index` says which of `n`; `completion` comes with the last piece only.

    `num_cached_tokens` and `prompt_logprobs` are the completion's, and known from the first piece on; but
    some engines that are asked over HTTP say only at the end how much was cached. `weights_version` is that
    of the weights that drew this piece. `is_exact` is the reply's so far.
    """

    index: int
    events: tuple[Event, ...]
    logprobs: tuple[TokenLogprob, ...]
    completion: Completion | None = None
    num_cached_tokens: int = 0
    prompt_logprobs: tuple[TokenLogprob | None, ...] = ()
    weights_version: int = 0
    is_exact: bool = True

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, Content))


class StopStrings:
    """Finds the first stop string in text that arrives in pieces, and holds back what may begin one.

    `found` is that string, None before.
    """

    def __init__(self, stops: tuple[str, ...]):
        self.stops = tuple(stop for stop in stops if stop)
        self.found: str | None = None
        self._held = ""

    def feed(self, text: str) -> str:
        """The text that is certain to come before any stop string. Nothing once one was found."""
        if self.found or not self.stops:
            return "" if self.found else text
        held = self._held + text
        places = [(place, len(stop)) for stop in self.stops if (place := held.find(stop)) >= 0]
        if places:
            place, size = min(places)
            self.found = held[place : place + size]
            self._held = ""
            return held[:place]
        keep = next((size for size in range(self._longest(held), 0, -1) if self._may_begin(held[-size:])), 0)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def finish(self) -> str:
        """What was held back and turned out to be text."""
        held, self._held = self._held, ""
        return held

    def _longest(self, held: str) -> int:
        return min(len(held), max(len(stop) for stop in self.stops) - 1)

    def _may_begin(self, suffix: str) -> bool:
        return any(stop.startswith(suffix) for stop in self.stops)


class Reply:
    """Reads one sequence's tokens.

    `parser` is None where no tools were offered, `reasoning` where the model does not think: tags are then
    plain text. Stop strings and calls are looked for in the answer, not in the thought.
    """

    def __init__(
        self,
        index: int,
        tokenizer: Tokenizer,
        sampling: SamplingParams,
        *,
        prompt_token_ids: tuple[int, ...],
        eos_token_ids: frozenset[int],
        parser: ToolCallParser | None,
        reasoning: ReasoningParser | None = None,
    ):
        self.index = index
        self.ended = False
        self._sampling = sampling
        self._prompt_token_ids = prompt_token_ids
        self._hidden_ids = eos_token_ids | set(sampling.stop_token_ids)
        self._decoder = StreamDecoder(tokenizer, skip_special=True)
        self._stops = StopStrings(sampling.stop)
        self._parser = parser
        self._reasoning = reasoning
        self._first: Sampled | None = None
        self._num_cached_tokens = 0
        self._is_exact = True
        self._logprobs: list[TokenLogprob] = []
        self._versions: list[int] = []
        self._num_reasoning_tokens = 0
        self._thought: list[str] = []
        self._content: list[str] = []
        self._calls: list[ToolCall] = []

    def push(self, sampled: Sampled) -> Chunk:
        """Takes the next token. The chunk has a completion when the reply ends with it, for the engine's
        reason or because a stop string is complete."""
        self._first = self._first or sampled
        self._num_cached_tokens = max(self._num_cached_tokens, sampled.num_cached_tokens)
        self._is_exact = self._is_exact and sampled.is_exact
        token, finish_reason = sampled.token, sampled.finish_reason
        text = ""
        is_end_mark = False
        if token is not None:
            self._logprobs.append(token)
            self._versions.append(sampled.weights_version)
            is_end_mark = finish_reason == "stop" and token.token_id in self._hidden_ids
            text = "" if is_end_mark else self._decoder.push(token.token_id)
        if finish_reason is not None:
            text += self._decoder.finish()
        thought, text = self._split(text, is_end_mark, finish_reason)
        text = self._stops.feed(text)
        if self._stops.found:
            finish_reason = "stop"
        elif finish_reason is not None:
            text += self._stops.finish()
        events = self._events(thought, text, finish_reason)
        completion = None if finish_reason is None else self._complete(finish_reason)
        return Chunk(
            self.index,
            tuple(events),
            () if token is None else (token,),
            completion,
            self._num_cached_tokens,
            self._first.prompt_logprobs,
            sampled.weights_version,
            self._is_exact,
        )

    def _split(self, text: str, is_end_mark: bool, finish_reason: FinishReason | None) -> tuple[str, str]:
        """The thought and the answer in a piece of text. Counts the tokens that the thought took."""
        if self._reasoning is None:
            return "", text
        was_inside = self._reasoning.inside
        thought, answer = self._reasoning.feed(text)
        if finish_reason is not None:
            last_thought, last_answer = self._reasoning.finish()
            thought, answer = thought + last_thought, answer + last_answer
        if (was_inside or self._reasoning.inside) and not is_end_mark:
            self._num_reasoning_tokens = len(self._logprobs)
        return thought, answer

    def _events(self, thought: str, text: str, finish_reason: FinishReason | None) -> list[Event]:
        events: list[Event] = [Reasoning(thought)] if thought else []
        if self._parser is None:
            events += [Content(text)] if text else []
        else:
            events += self._parser.feed(text) if text else []
            if finish_reason is not None:
                ended_itself = finish_reason == "stop" and self._stops.found is None
                events += self._parser.finish(end_of_turn=ended_itself)
        for event in events:
            if isinstance(event, Reasoning):
                self._thought.append(event.text)
            elif isinstance(event, Content):
                self._content.append(event.text)
            elif isinstance(event, CallFinished):
                self._calls.append(event.call)
        return events

    def _complete(self, finish_reason: FinishReason) -> Completion:
        assert self._first is not None, "a reply ends with a report"
        self.ended = True
        if finish_reason == "stop" and self._calls:
            finish_reason = "tool_calls"
        message = Message(
            "assistant",
            "".join(self._content),
            tool_calls=tuple(self._calls),
            reasoning="".join(self._thought) or None,
        )
        return Completion(
            message=message,
            prompt_token_ids=self._prompt_token_ids,
            token_ids=tuple(entry.token_id for entry in self._logprobs),
            logprobs=tuple(self._logprobs),
            finish_reason=finish_reason,
            num_cached_tokens=self._num_cached_tokens,
            weights_version=self._first.weights_version,
            prompt_logprobs=self._first.prompt_logprobs,
            stop_string=self._stops.found,
            num_reasoning_tokens=self._num_reasoning_tokens,
            is_exact=self._is_exact,
            weights_updates=weights_updates(self._versions),
        )


def weights_updates(versions: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Where the weights that draw a reply's tokens change, and to which version."""
    changes = enumerate(pairwise(versions), 1)
    return tuple((place, version) for place, (before, version) in changes if version != before)
