"""A model with its words: checkpoint, tokenizer, chat template and engine behind one face.

`LLM` is what `import lathe` is for, what the server serves, and one of the two kinds of `types.Model`
(the other reaches a server over HTTP).
"""

from __future__ import annotations

import asyncio
import logging
import queue
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal

import torch

from lathe.engine.engine import Engine, EngineConfig
from lathe.engine.flight import MAX_PROMPT_END, Flight, TokenSource
from lathe.engine.grammar import Grammars, Matcher
from lathe.engine.loading import (
    check_memory,
    default_quantize,
    default_sampling,
    eos_token_ids,
    load_template,
    load_tokenizer,
)
from lathe.engine.reply import Chunk
from lathe.engine.sequence import Sampled
from lathe.errors import InvalidRequest, PromptTooLong, UserError
from lathe.kernels.cpu import library
from lathe.model import hub
from lathe.model.checkpoint import check_quantize, default_dtype, load_model, open_checkpoint
from lathe.model.packing import Loss, Quantize
from lathe.text.chat_template import ChatTemplate
from lathe.text.messages import ToolLike, to_messages, to_tools
from lathe.text.schema_grammar import after_thought
from lathe.text.tokenizer import Tokenizer
from lathe.types import Completion, Message, SamplingParams, Tool, Trajectory

Conversation = Sequence[Message | Mapping[str, Any]]
Progress = Callable[[int, int], None]


class LLM:
    """A loaded model. `name` is an alias, a folder, a .gguf file or a hub id (see `model/hub.py`).

    `device` is "auto" (a GPU where there is one), or a name that PyTorch knows. `dtype=None` means float32
    on a CPU, where narrower arithmetic is slower, and the checkpoint's own type on a GPU.
    `yarn=4.0` stretches the context window by that factor (see `ModelConfig.with_yarn`).
    `quantize` is how a CPU holds the weights: "q4", "q8", "keep" for the file's own bits, None for `dtype`,
    or "auto"; see model/packing.py. `pack_cache` is a folder for quantized weights. `loss` says what it cost.
    """

    loss: Loss | None = None

    def __init__(
        self,
        name: str | Path = "smollm2",
        *,
        device: str = "auto",
        dtype: torch.dtype | None = None,
        yarn: float | None = None,
        keep_fp8: bool = False,
        quantize: Quantize | Literal["auto"] | None = "auto",
        pack_cache: Path | None = None,
        engine_config: EngineConfig | None = None,
        progress: Progress | None = None,
    ):
        checkpoint = open_checkpoint(hub.resolve(str(name), progress=progress))
        if yarn is not None:
            checkpoint = replace(checkpoint, config=checkpoint.config.with_yarn(yarn))
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = dtype or default_dtype(checkpoint, torch.device(device))
        if torch.device(device).type == "cpu" and library.load() is None:
            logging.getLogger(__name__).warning("Slow: %s", library.why_not())
        if quantize == "auto":
            quantize = default_quantize(dtype, torch.device(device))
        if quantize is not None:
            check_quantize(quantize, dtype, torch.device(device), keep_fp8)
            self.loss = Loss()
        elif pack_cache is not None:
            raise UserError("A folder for quantized weights was named, and none are quantized: say how, too.")
        check_memory(checkpoint, dtype, torch.device(device), keep_fp8, quantize, pack_cache)
        tokenizer = load_tokenizer(checkpoint)
        # On a thread that ends: an OpenMP pool belongs to the thread that used it. With two alive (the engine
        # has its own) neither waits actively any more, and decoding takes twice as long.
        with ThreadPoolExecutor(1) as loader:
            options: dict[str, Any] = {"dtype": dtype, "device": device, "keep_fp8": keep_fp8}
            options |= {"quantize": quantize, "loss": self.loss, "cache": pack_cache}
            model = loader.submit(load_model, checkpoint, progress=progress, **options).result()
        self._assemble(
            engine=Engine(model, eos_token_ids=eos_token_ids(checkpoint, tokenizer), config=engine_config),
            tokenizer=tokenizer,
            template=load_template(checkpoint, tokenizer),
            model_id=str(name).rstrip("/"),
            default_sampling=default_sampling(checkpoint.generation_config),
        )

    @classmethod
    def from_parts(
        cls,
        *,
        engine: TokenSource,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        model_id: str,
        default_sampling: SamplingParams | None = None,
    ) -> LLM:
        """Around a model that is in memory already, as a trainer's is."""
        llm = cls.__new__(cls)
        llm._assemble(engine, tokenizer, template, model_id, default_sampling or SamplingParams())
        return llm

    def _assemble(
        self,
        engine: TokenSource,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        model_id: str,
        default_sampling: SamplingParams,
    ) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self.grammars = Grammars(tokenizer, engine.eos_token_ids)
        self.template = template
        self.model_id = model_id
        self.default_sampling = default_sampling

    @property
    def max_context(self) -> int:
        return self.engine.max_context

    def close(self) -> None:
        """Stop the engine. Replies in the making end with an error."""
        self.engine.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # What the model reads

    def encode(self, trajectory: Trajectory) -> tuple[int, ...]:
        """The prompt's ids: those that the trajectory already holds, then what is new in its messages.

        Sampled tokens stand as they were sampled; they are never made from text again. A template that
        rewrites earlier turns (some drop old reasoning) gives another prompt, which `Trajectory.extend`
        refuses. Raises PromptTooLong before anything is queued.
        """
        ids = self._encode(trajectory, len(trajectory.messages), add_generation_prompt=True)
        if trajectory.token_ids:
            ids = self._continued(trajectory, ids)
        if len(ids) >= self.max_context:
            raise PromptTooLong(len(ids), self.max_context)
        return ids

    def count_tokens(self, trajectory: Trajectory) -> int:
        """How many ids the messages' prompt has, also one that no context could hold."""
        return len(self._encode(trajectory, len(trajectory.messages), add_generation_prompt=True))

    def _encode(self, trajectory: Trajectory, num_messages: int, **options: Any) -> tuple[int, ...]:
        messages = trajectory.messages[:num_messages]
        options = {**trajectory.template_kwargs, **options}
        return tuple(self.template.encode(self.tokenizer, messages, trajectory.tools, **options))

    def _continued(self, trajectory: Trajectory, ids: tuple[int, ...]) -> tuple[int, ...]:
        """`ids` with the part that was read and sampled before as it was then."""
        spoken = [place for place, message in enumerate(trajectory.messages) if message.role == "assistant"]
        if not spoken:
            return ids
        read = self._encode(trajectory, spoken[-1] + 1, add_generation_prompt=False)
        ends = self.engine.eos_token_ids
        # A turn ends with its end mark, which a reply that was cut lacks, and what the template puts behind.
        end = next((place for place in reversed(range(len(read))) if read[place] in ends), None)
        if end is None or ids[: len(read)] != read:
            return ids
        has_end = trajectory.token_ids[-1] in ends
        return trajectory.token_ids + ids[end + 1 if has_end else end :]

    # The protocol of a Model

    async def complete(
        self,
        trajectory: Trajectory,
        sampling: SamplingParams | None = None,
        *,
        on_event: Callable[[Any], None] | None = None,
    ) -> Completion:
        """One answer to a conversation. `on_event` hears its events as they come (see `types.Model`)."""
        completion = None
        async for chunk in self.stream(trajectory, replace(sampling or self.default_sampling, n=1)):
            completion = chunk.completion
            if on_event is not None:
                for event in chunk.events:
                    on_event(event)
        assert completion is not None, "a stream ends with its completion"
        return completion

    async def stream(
        self, trajectory: Trajectory, sampling: SamplingParams | None = None
    ) -> AsyncGenerator[Chunk, None]:
        """The pieces of `n` answers, as they are sampled. Closing the iterator cancels what still runs."""
        chunks = self.stream_tokens(self.encode(trajectory), sampling, tools=trajectory.tools, chat=True)
        async with aclosing(chunks):
            async for chunk in chunks:
                yield chunk

    async def stream_tokens(
        self,
        prompt_token_ids: tuple[int, ...],
        sampling: SamplingParams | None = None,
        *,
        tools: Sequence[Tool] = (),
        chat: bool = False,
    ) -> AsyncGenerator[Chunk, None]:
        """The same from ids. Calls are looked for only where tools were offered, a thought only after a
        prompt that the chat template wrote (`chat`).
        """
        loop = asyncio.get_running_loop()
        reports: asyncio.Queue[tuple[int, Sampled]] = asyncio.Queue()

        def report(index: int, sampled: Sampled) -> None:
            loop.call_soon_threadsafe(reports.put_nowait, (index, sampled))

        flight = self._flight([prompt_token_ids], sampling or self.default_sampling, tools, chat, report)
        try:
            while flight.num_open:
                chunk = flight.read(*await reports.get())
                if chunk is not None:
                    yield chunk
        finally:
            flight.cancel()

    def _flight(
        self,
        prompts: Sequence[tuple[int, ...]],
        sampling: SamplingParams,
        tools: Sequence[Tool],
        chat: bool,
        report: Callable[[int, Sampled], None],
    ) -> Flight:
        return Flight(
            self.engine,
            self.tokenizer,
            prompts,
            sampling,
            report,
            tools=tools,
            dialect=self.template.dialect if tools else None,
            thinks=chat and self.template.thinks,
            match=lambda prompt: self.matcher(prompt, sampling, chat=chat),
        )

    def matcher(
        self, prompt_token_ids: tuple[int, ...], sampling: SamplingParams, *, chat: bool
    ) -> Matcher | None:
        """What holds the reply to the grammar that was asked for; None if none was. A thinking model thinks
        freely before.

        Raises GrammarError when the grammar can't be compiled. The first one takes seconds: a server calls
        this before it answers, and not where others wait.
        """
        grammar = sampling.grammar
        if grammar is None:
            return None
        if chat and self.template.thinks:
            grammar = after_thought(grammar, self.tokenizer.decode(prompt_token_ids[-MAX_PROMPT_END:]))
        return self.grammars.matcher(grammar)

    # The library's face, without asyncio

    def chat(
        self,
        messages: Conversation,
        tools: Sequence[ToolLike] = (),
        sampling: SamplingParams | None = None,
        **options: Any,
    ) -> Completion:
        """Answer a conversation. `options` are fields of SamplingParams, such as max_tokens=100."""
        return self.chat_many([messages], tools, self._one(sampling, options))[0]

    def generate(
        self, prompt: str | Sequence[int], sampling: SamplingParams | None = None, **options: Any
    ) -> Completion:
        """Continue raw text (in which control tokens count as such) or token ids."""
        return self.generate_many([prompt], self._one(sampling, options))[0]

    def chat_many(
        self,
        conversations: Sequence[Conversation],
        tools: Sequence[ToolLike] = (),
        sampling: SamplingParams | None = None,
        **options: Any,
    ) -> list[Completion]:
        """Answer conversations in one batch; with `n`, that many of the first, then of the second …"""
        offered = to_tools(tools)
        prompts = [self.encode(Trajectory(to_messages(turns), offered)) for turns in conversations]
        return _completions(self._stream(prompts, self._sampling(sampling, options), offered, chat=True))

    def generate_many(
        self,
        prompts: Sequence[str | Sequence[int]],
        sampling: SamplingParams | None = None,
        **options: Any,
    ) -> list[Completion]:
        """Continue prompts in one batch, in the order of `chat_many`."""
        ids = [self._prompt_ids(prompt) for prompt in prompts]
        return _completions(self._stream(ids, self._sampling(sampling, options)))

    def stream_chat(
        self,
        messages: Conversation,
        tools: Sequence[ToolLike] = (),
        sampling: SamplingParams | None = None,
        **options: Any,
    ) -> Iterator[Chunk]:
        """Answer piece by piece: `for chunk in llm.stream_chat(messages): print(chunk.text, end="")`."""
        trajectory = Trajectory(to_messages(messages), to_tools(tools))
        prompts, sampling = [self.encode(trajectory)], self._sampling(sampling, options)
        return self._stream(prompts, sampling, trajectory.tools, chat=True)

    def stream_generate(
        self, prompt: str | Sequence[int], sampling: SamplingParams | None = None, **options: Any
    ) -> Iterator[Chunk]:
        """Continue raw text or token ids, piece by piece."""
        return self._stream([self._prompt_ids(prompt)], self._sampling(sampling, options))

    def _sampling(self, sampling: SamplingParams | None, options: dict[str, Any]) -> SamplingParams:
        unknown = options.keys() - {field.name for field in fields(SamplingParams)}
        if unknown:
            raise InvalidRequest(f"{', '.join(sorted(unknown))}: no such field of SamplingParams.")
        if isinstance(options.get("stop"), str):
            options = {**options, "stop": (options["stop"],)}
        return replace(sampling or self.default_sampling, **options)

    def _one(self, sampling: SamplingParams | None, options: dict[str, Any]) -> SamplingParams:
        sampling = self._sampling(sampling, options)
        if sampling.n != 1:
            raise InvalidRequest(f"n is {sampling.n}: use chat_many or generate_many for several answers.")
        return sampling

    def _prompt_ids(self, prompt: str | Sequence[int]) -> tuple[int, ...]:
        if isinstance(prompt, str):
            # Raw text is the one place where a user may write control tokens: that is what it is for.
            return tuple(self.tokenizer.encode(prompt, allow_special=True))
        return tuple(int(token_id) for token_id in prompt)

    def _stream(
        self,
        prompts: list[tuple[int, ...]],
        sampling: SamplingParams,
        tools: Sequence[Tool] = (),
        *,
        chat: bool = False,
    ) -> Iterator[Chunk]:
        reports: queue.SimpleQueue[tuple[int, Sampled]] = queue.SimpleQueue()

        def report(index: int, sampled: Sampled) -> None:
            reports.put((index, sampled))

        flight = self._flight(prompts, sampling, tools, chat, report)
        try:
            while flight.num_open:
                chunk = flight.read(*reports.get())
                if chunk is not None:
                    yield chunk
        finally:
            flight.cancel()


def _completions(chunks: Iterator[Chunk]) -> list[Completion]:
    by_index = {chunk.index: chunk.completion for chunk in chunks if chunk.completion is not None}
    return [by_index[index] for index in sorted(by_index)]
