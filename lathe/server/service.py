"""Between the dialects and the model: what every request passes, whatever JSON it came in.

A dialect reads its JSON into a `Trajectory` and `SamplingParams` and calls `prepare`; then it writes what
`stream` or `complete` give it as its own JSON. Logs, records and measurements live here, once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field

from lathe.engine.engine import EngineClosed
from lathe.engine.llm import LLM, Chunk
from lathe.errors import PromptTooLong, UserError
from lathe.server.errors import BadRequest
from lathe.server.metrics import Metrics
from lathe.server.recorder import Recorder, recording
from lathe.types import Completion, SamplingParams, Trajectory

log = logging.getLogger(__name__)

# After its engine has ended a reply, its last event must still be written.
WRITE_OUT_S = 5.0


@dataclass(frozen=True)
class Turn:
    """One request, understood: what the model reads, and how its reply is drawn.

    A raw completion has a trajectory without messages. `dialect` is the word for logs and metrics.
    `started` is when its JSON had been read, on the monotonic clock. `session` is the client's name for what
    the request belongs to, if it has one.
    """

    dialect: str
    trajectory: Trajectory
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams
    started: float = field(default_factory=time.monotonic)
    created: int = field(default_factory=lambda: int(time.time()))
    session: str | None = None


class Service:
    """One served model, as the dialects ask it. `aliases` are names that it goes by beside its own. With a
    recorder, conversations are written down, and go on from their exact tokens."""

    def __init__(self, llm: LLM, aliases: Iterable[str] = (), recorder: Recorder | None = None):
        self.llm = llm
        self.recorder = recorder
        self.names = tuple(dict.fromkeys([llm.model_id, *aliases]))
        if not all(name.strip() for name in self.names):
            raise UserError("An alias is empty: leave --alias out, or give it a name.")
        self.metrics = Metrics(llm.engine.stats, model_id=llm.model_id, max_context=llm.max_context)
        self.started = int(time.time())
        self.is_draining = False
        self._num_open = 0
        self._is_idle = asyncio.Event()
        self._is_idle.set()

    async def drain(self, grace_s: float) -> None:
        """Take no more requests; give replies in the making `grace_s` to end, then end them with what they
        have. Returns when none is left."""
        self.is_draining = True
        await self._wait_for_replies(grace_s)
        if self._num_open:
            log.info("%d replies are cut because the server stops", self._num_open)
            self.llm.engine.abort_all()
            await self._wait_for_replies(WRITE_OUT_S)

    async def _wait_for_replies(self, limit_s: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._is_idle.wait(), limit_s)

    def _refuse_while_draining(self) -> None:
        if self.is_draining:
            raise EngineClosed("the server is stopping")

    @property
    def model_id(self) -> str:
        """The served model's own name."""
        return self.llm.model_id

    def answers_to(self, name: str | None) -> str:
        """The name that a reply carries when a request asked for `name`: that one if it is an alias, else the
        model's own. Clients have names of other models built in, and there is only one to ask."""
        return name if name in self.names else self.model_id

    async def prepare(
        self, dialect: str, trajectory: Trajectory, sampling: SamplingParams, *, session: str | None = None
    ) -> Turn:
        """The turn of a conversation. Raises TemplateError, InvalidRequest or GrammarError.

        All that can be wrong with a request is found here, while a status can still say so. In a thread:
        200,000 tokens take a second to encode, and other clients' events would wait.
        """
        self._refuse_while_draining()
        self.llm.engine.check(sampling)
        started = time.monotonic()
        if self.recorder is None:
            prompt = await asyncio.to_thread(self.llm.encode, trajectory)
        else:
            trajectory, prompt = await asyncio.to_thread(
                self.recorder.prepare, trajectory, session, self.llm.encode
            )
        await asyncio.to_thread(self.llm.matcher, prompt, sampling, chat=bool(trajectory.messages))
        return Turn(dialect, trajectory, prompt, sampling, started, session=session)

    async def count_tokens(self, trajectory: Trajectory) -> int:
        """How long the conversation's prompt is. Asks the tokenizer and the template, never the engine."""
        return await asyncio.to_thread(self.llm.count_tokens, trajectory)

    def prepare_raw(
        self,
        dialect: str,
        prompt: Sequence[int],
        sampling: SamplingParams,
        *,
        param: str,
        started: float,
        session: str | None = None,
    ) -> Turn:
        """The turn of a raw prompt, which the request's field `param` gave. Raises BadRequest for one that
        the engine would refuse: a stream's status line has left by then."""
        self._refuse_while_draining()
        llm = self.llm
        llm.engine.check(sampling)
        if not prompt:
            raise BadRequest(f"{param} is empty: there is no token to continue from.", param=param)
        if len(prompt) >= llm.max_context:
            error = PromptTooLong(len(prompt), llm.max_context)
            raise BadRequest(str(error), param=param, code="context_length_exceeded")
        check_token_ids(llm, prompt, param)
        return Turn(dialect, Trajectory(()), tuple(prompt), sampling, started, session=session)

    async def stream(self, turn: Turn) -> AsyncGenerator[Chunk, None]:
        """The reply's chunks, of all `n`, as they are sampled. Closing the iterator ends the reply."""
        completions: list[Completion] = []
        chunks = self.llm.stream_tokens(
            turn.prompt_token_ids,
            turn.sampling,
            tools=turn.trajectory.tools,
            chat=bool(turn.trajectory.messages),
        )
        self._num_open += 1
        self._is_idle.clear()
        try:
            with (
                self.metrics.watch(turn.dialect, len(turn.prompt_token_ids), turn.started) as see,
                recording(self.recorder, turn) as write,
            ):
                async with aclosing(chunks):
                    async for chunk in chunks:
                        see(chunk)
                        await write(chunk)
                        if chunk.completion is not None:
                            completions.append(chunk.completion)
                        yield chunk
            log_turn(turn, completions)
        finally:
            self._num_open -= 1
            if not self._num_open:
                self._is_idle.set()

    async def stream_together(self, turns: Sequence[Turn]) -> AsyncGenerator[tuple[int, Chunk], None]:
        """The chunks of several turns as they come, each with its turn's place in `turns`. An error of one,
        or closing the iterator, ends the replies of all."""
        reports: asyncio.Queue[tuple[int, Chunk] | Exception | None] = asyncio.Queue()

        async def forward(place: int, turn: Turn) -> None:
            try:
                async with aclosing(self.stream(turn)) as chunks:
                    async for chunk in chunks:
                        reports.put_nowait((place, chunk))
                reports.put_nowait(None)
            except Exception as error:  # raised again by the reader
                reports.put_nowait(error)

        tasks = [asyncio.create_task(forward(place, turn)) for place, turn in enumerate(turns)]
        num_open = len(turns)
        try:
            while num_open:
                match await reports.get():
                    case None:
                        num_open -= 1
                    case Exception() as error:
                        raise error
                    case place, chunk:
                        yield place, chunk
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def complete(self, turn: Turn) -> list[Completion]:
        """The whole replies, in the order of their numbers."""
        completions: dict[int, Completion] = {}
        async with aclosing(self.stream(turn)) as chunks:
            async for chunk in chunks:
                if chunk.completion is not None:
                    completions[chunk.index] = chunk.completion
        return [completions[index] for index in sorted(completions)]


def check_token_ids(llm: LLM, token_ids: Sequence[int], param: str) -> None:
    """Raises BadRequest for an id that the model has no row for."""
    highest = max(token_ids, default=0)
    if highest >= llm.engine.vocab_size:
        message = f"{param} has the token id {highest}; this model has {llm.engine.vocab_size} ids."
        raise BadRequest(message, param=param)


def num_sampled(completions: Sequence[Completion]) -> int:
    """Tokens of all replies together. The prompt's are counted once, however many replies it got."""
    return sum(len(completion.token_ids) for completion in completions)


def num_reasoning(completions: Sequence[Completion]) -> int:
    """Those of them that were spent on thoughts."""
    return sum(completion.num_reasoning_tokens for completion in completions)


def log_turn(turn: Turn, completions: Sequence[Completion]) -> None:
    """One line a request: what it cost, and how it ended."""
    count = num_sampled(completions)
    reasons = ",".join(dict.fromkeys(completion.finish_reason for completion in completions))
    seconds = time.monotonic() - turn.started
    log.info(
        "%s  prompt %d (%d cached)  reply %d  %s  %.1f s  %.1f tok/s",
        turn.dialect,
        len(turn.prompt_token_ids),
        completions[0].num_cached_tokens,
        count,
        reasons,
        seconds,
        count / max(seconds, 1e-9),
    )
