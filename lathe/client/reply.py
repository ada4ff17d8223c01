"""A streamed reply, chunk by chunk: events for who listens, and at its end a completion."""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lathe.errors import UpstreamError
from lathe.text.tool_arguments import parse_arguments, read_value
from lathe.text.tool_calls import (
    ArgumentText,
    CallFinished,
    CallStarted,
    Content,
    Event,
    Reasoning,
    parse,
)
from lathe.types import Completion, FinishReason, Message, TokenLogprob, Tool, ToolCall

REASONS: Mapping[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "stop",
    "abort": "abort",
}


@dataclass
class CallDraft:
    """A call whose arguments are still coming."""

    id: str
    name: str
    arguments: str = ""


@dataclass(eq=False)
class ReplyReader:
    """Reads one reply. `emit` hears its events; calls are finished when the reply is."""

    tools: Sequence[Tool]
    emit: Callable[[Event], None]
    finish_reason: str | None = None
    num_tokens: tuple[int, int] | None = None
    num_cached_tokens: int = 0
    num_reasoning_tokens: int = 0
    content: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    drafts: dict[int, CallDraft] = field(default_factory=dict)
    prompt_token_ids: list[int] | None = None
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    is_exact: bool = True
    weights_version: int = 0
    weights_updates: tuple[tuple[int, int], ...] = ()

    @property
    def has_begun(self) -> bool:
        return bool(self.content or self.reasoning or self.drafts or self.token_ids)

    def take(self, chunk: Mapping[str, Any]) -> None:
        """The next chunk. Raises UpstreamError for one that can't be understood."""
        try:
            self._take(chunk)
        except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
            raise UpstreamError(f"The server's reply can't be understood: {error!r}") from error

    def _take(self, chunk: Mapping[str, Any]) -> None:
        if usage := chunk.get("usage"):
            self._count(usage)
        choices = chunk.get("choices") or []
        if self.prompt_token_ids is None and chunk.get("prompt_token_ids") is not None:  # vLLM
            self.prompt_token_ids = list(chunk["prompt_token_ids"])
        if not choices:
            return
        choice = choices[0]
        self._take_ids(choice)
        self._take_delta(choice.get("delta") or choice.get("message") or {})
        self.finish_reason = choice.get("finish_reason") or self.finish_reason

    def _take_delta(self, delta: Mapping[str, Any]) -> None:
        thought = delta.get("reasoning_content") or delta.get("reasoning")
        if isinstance(thought, str) and thought:
            self.reasoning.append(thought)
            self.emit(Reasoning(thought))
        if text := delta.get("content"):
            self.content.append(text)
            self.emit(Content(text))
        for call in delta.get("tool_calls") or []:
            self._take_call(call)

    def _take_call(self, call: Mapping[str, Any]) -> None:
        """A piece of a call. Some servers say its index never, some its id and name in every piece."""
        function = call.get("function") or {}
        index = call.get("index")
        if index is None:
            known = {draft.id for draft in self.drafts.values()}
            last = max(self.drafts, default=-1)
            index = last + 1 if function.get("name") and call.get("id") not in known else max(last, 0)
        if index not in self.drafts:
            id = call.get("id") or f"call_{uuid.uuid4().hex[:24]}"
            self.drafts[index] = CallDraft(id, function.get("name") or "")
            self.emit(CallStarted(index, id, self.drafts[index].name))
        arguments = function.get("arguments")
        if isinstance(arguments, Mapping):
            raise ValueError("a call's arguments are no text")
        if arguments:
            self.drafts[index].arguments += arguments
            self.emit(ArgumentText(index, arguments))

    def _take_ids(self, choice: Mapping[str, Any]) -> None:
        if choice.get("prompt_token_ids") is not None:
            self.prompt_token_ids = list(choice["prompt_token_ids"])
        ids = choice.get("token_ids") or []
        logprobs = choice.get("token_logprobs")
        if logprobs is None:
            content = (choice.get("logprobs") or {}).get("content") or []
            logprobs = [entry["logprob"] for entry in content]
        self.token_ids += map(int, ids)
        self.logprobs += map(float, logprobs)
        self.is_exact = self.is_exact and choice.get("is_exact") is not False
        self.weights_version = choice.get("weights_version") or self.weights_version
        if choice.get("weights_updates"):
            self.weights_updates = tuple((int(at), int(version)) for at, version in choice["weights_updates"])

    def _count(self, usage: Mapping[str, Any]) -> None:
        self.num_tokens = (int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0))
        self.num_cached_tokens = int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)
        details = usage.get("completion_tokens_details") or {}
        self.num_reasoning_tokens = int(details.get("reasoning_tokens") or 0)

    # The end

    def finish(self) -> Completion:
        """The whole reply. Raises UpstreamError when the stream ended before it did."""
        if self.finish_reason is None:
            raise UpstreamError("The server closed the connection before the reply was complete.")
        reason = REASONS.get(self.finish_reason, "stop")
        message = Message(
            "assistant",
            "".join(self.content),
            tool_calls=tuple(self._calls(reason)),
            reasoning="".join(self.reasoning) or None,
        )
        completion = self._completion(message, reason)
        if not completion.is_exact and not message.tool_calls and self.tools and reason != "length":
            completion = replace(completion, message=self._with_leaked(message))
        if completion.message.tool_calls and reason == "stop":
            completion = replace(completion, finish_reason="tool_calls")
        return completion

    def _calls(self, reason: FinishReason) -> list[ToolCall]:
        """The complete calls. What a limit cut is none; other broken JSON is shown to the model as it is."""
        calls = []
        for index, draft in sorted(self.drafts.items()):
            is_cut = reason in ("length", "abort") and index == max(self.drafts)
            if is_cut and not isinstance(read_value(draft.arguments), dict):
                continue
            calls.append(ToolCall(draft.name, parse_arguments(draft.arguments), draft.id))
            self.emit(CallFinished(index, calls[-1]))
        return calls

    def _with_leaked(self, message: Message) -> Message:
        """Servers that don't know Qwen3-Coder's forgetful ways leave its calls in the text."""
        if "<function=" not in message.content and "<tool_call>" not in message.content:
            return message
        found = parse(message.content, self.tools, end_of_turn=True)
        for index, call in enumerate(found.tool_calls):
            self.emit(CallStarted(index, call.id, call.name))
            self.emit(CallFinished(index, call))
        return replace(found, reasoning=message.reasoning) if found.tool_calls else message

    def _completion(self, message: Message, reason: FinishReason) -> Completion:
        ids, prompt = tuple(self.token_ids), self.prompt_token_ids
        has_all = (
            prompt is not None and len(ids) == len(self.logprobs) and all(map(math.isfinite, self.logprobs))
        )
        if not (has_all and self.is_exact):
            return Completion(
                message,
                (),
                (),
                (),
                reason,
                num_cached_tokens=self.num_cached_tokens,
                num_reasoning_tokens=self.num_reasoning_tokens,
                is_exact=False,
                counted=self.num_tokens,
            )
        logprobs = tuple(TokenLogprob(*pair) for pair in zip(ids, self.logprobs, strict=True))
        return Completion(
            message,
            tuple(prompt or ()),
            ids,
            logprobs,
            reason,
            num_cached_tokens=self.num_cached_tokens,
            weights_version=self.weights_version,
            weights_updates=self.weights_updates,
            num_reasoning_tokens=self.num_reasoning_tokens,
        )
