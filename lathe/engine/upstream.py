"""Another server's engine in the place of ours: prompts go there as ids, and sampled ids come back.

All requests stream on one thread with one asyncio loop. What surrounds an engine (template, parsers, stop
strings, records) is ours, and knows of no difference.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from lathe.engine.engine import EngineClosed
from lathe.engine.grammar import Matcher
from lathe.engine.llm import LLM
from lathe.engine.loading import default_sampling, eos_token_ids, load_template, load_tokenizer
from lathe.engine.sampler import check_sampling
from lathe.engine.sequence import Sampled
from lathe.engine.stats import EngineStats
from lathe.engine.upstream_forms import Events, Form, Piece, explain, stop_ids
from lathe.engine.upstream_probe import base_of, find_form, headers_of
from lathe.errors import InvalidRequest, LatheError, PromptTooLong, UpstreamError, UserError
from lathe.model import hub
from lathe.model.checkpoint import open_checkpoint
from lathe.types import FinishReason, SamplingParams, TokenLogprob

logger = logging.getLogger("lathe.engine")

# Between two events. The first token of a long prompt on a busy cluster may take minutes.
TIMEOUT_S = 600.0
CONNECT_TIMEOUT_S = 10.0


def open_upstream(
    name: str | Path,
    url: str,
    *,
    api_key: str | None = None,
    model: str | None = None,
    max_context: int | None = None,
    exact: bool = False,
) -> LLM:
    """The model behind `url`, with the tokenizer, template and sampling defaults of the one named `name`,
    whose weights are neither loaded nor fetched. `model` is what the upstream calls it.

    Raises UserError when the upstream can't be used, has less context than was asked for, or gives text alone
    where `exact` tokens are needed; without `exact`, the log warns of that.
    """
    checkpoint = open_checkpoint(hub.resolve(str(name), weights=False), weights=False)
    tokenizer = load_tokenizer(checkpoint)
    ends = frozenset(eos_token_ids(checkpoint, tokenizer))
    found = find_form(url, tokenizer, eos_token_ids=ends, api_key=api_key, model=model)
    if max_context and found.max_context and max_context > found.max_context:
        raise UserError(
            f"--max-context is {max_context}, but the upstream {url} has a context of {found.max_context}."
        )
    if not found.form.is_exact:
        kind = f"The upstream {url} answers with text alone"
        if exact:
            raise UserError(
                f"{kind}, so which tokens it sampled, and how likely they were, can't be known or recorded. "
                "Leave --record out, or ask one that gives token ids: vLLM, llama.cpp's server, or Lathe."
            )
        logger.warning("%s: it is tokenized again here, and has no log-probabilities", kind)
    engine = UpstreamEngine(
        url,
        found.form,
        eos_token_ids=ends,
        vocab_size=checkpoint.config.vocab_size,
        max_context=max_context or found.max_context or checkpoint.config.max_position_embeddings,
        api_key=api_key,
    )
    return LLM.from_parts(
        engine=engine,
        tokenizer=tokenizer,
        template=load_template(checkpoint, tokenizer),
        model_id=str(name).rstrip("/"),
        default_sampling=default_sampling(checkpoint.generation_config),
    )


@dataclass(eq=False)
class Request:
    """One reply in the making. `last` is what a reply says that was ended from this side."""

    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams
    max_new_tokens: int
    report: Callable[[Sampled], None]
    task: asyncio.Task[None] | None = None
    last: Sampled | None = None


class UpstreamEngine:
    """A `TokenSource` that asks another server. Thread-safe, as the real engine is.

    `is_exact`: the ids and log-probabilities that it reports are those that were sampled. Where the upstream
    is not, or leaves some out, `Sampled.is_exact` says so. `timeout_s` is the longest pause between events.
    """

    weights_version = 0  # no upstream tells

    def __init__(
        self,
        url: str,
        form: Form,
        *,
        eos_token_ids: frozenset[int],
        vocab_size: int,
        max_context: int,
        api_key: str | None = None,
        timeout_s: float = TIMEOUT_S,
    ):
        self.url = base_of(url)
        self.form = form
        self.eos_token_ids = eos_token_ids
        self.vocab_size = vocab_size
        self.max_context = max_context
        self._client = httpx.AsyncClient(
            base_url=self.url,
            headers=headers_of(api_key),
            timeout=httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
        )
        self._open: set[Request] = set()  # touched on the loop's thread alone, but for its size
        self._lock = threading.Lock()
        self._closing = False
        self._stop = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="lathe-upstream", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    @property
    def is_exact(self) -> bool:
        return self.form.is_exact

    def check(self, sampling: SamplingParams) -> None:
        """Raises InvalidRequest for what the upstream can't do, naming it."""
        check_sampling(sampling)
        self.form.check(sampling)

    def submit(
        self,
        prompt_token_ids: tuple[int, ...],
        sampling: SamplingParams,
        report: Callable[[Sampled], None],
        matcher: Matcher | None = None,  # grammars are refused
    ) -> Request:
        """Ask for one reply. Raises PromptTooLong, or InvalidRequest for what the upstream can't do.

        `report` is called on the engine's thread and must not block; a reply's last report says why it ended.
        """
        self.check(sampling)
        if len(prompt_token_ids) >= self.max_context:
            raise PromptTooLong(len(prompt_token_ids), self.max_context)
        if not prompt_token_ids:
            raise InvalidRequest("The prompt is empty: there is no token to continue from.")
        room = self.max_context - len(prompt_token_ids)
        max_new_tokens = room if sampling.max_tokens is None else min(sampling.max_tokens, room)
        request = Request(prompt_token_ids, sampling, max_new_tokens, report)
        with self._lock:
            if self._closing:
                raise EngineClosed("the engine is shut down")
            self._loop.call_soon_threadsafe(self._start, request)
        return request

    def cancel(self, sequence: Request) -> None:
        """End a reply that nobody waits for. Its connection is closed, by which the upstream notices."""
        self._tell(self._end, sequence, None)

    def abort_all(self) -> None:
        """End every reply now, with what it has: its last report says "abort"."""
        self._tell(self._end_all, Sampled(finish_reason="abort"))

    def close(self) -> None:
        """Stop the thread. Replies in the making end with EngineClosed."""
        with self._lock:
            if not self._closing:
                self._closing = True
                self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        atexit.unregister(self.close)

    def describe(self) -> str:
        """One line for a person: who is asked, and how."""
        return f"{self.max_context:,} tokens of context; upstream {self.url}, {self.form.name}"

    def stats(self) -> EngineStats:
        """Replies in the making; which of them wait there, and the upstream's cache, are not known here."""
        return EngineStats(num_running=len(self._open))

    def _tell(self, what: Callable[..., None], *arguments: Any) -> None:
        """Call a function on the loop's thread, in the order of telling."""
        with self._lock:
            if not self._closing:
                self._loop.call_soon_threadsafe(what, *arguments)

    # On the loop's thread

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        async with self._client:
            await self._stop.wait()
            tasks = [request.task for request in self._open if request.task is not None]
            self._end_all(Sampled(error=EngineClosed("the engine was shut down")))
            await asyncio.gather(*tasks, return_exceptions=True)

    def _start(self, request: Request) -> None:
        self._open.add(request)
        request.task = self._loop.create_task(self._ask(request))
        request.task.add_done_callback(lambda task: self._ended(request, task))

    def _end(self, request: Request, last: Sampled | None) -> None:
        if request.task is not None and request.task.cancel():
            request.last = last

    def _end_all(self, last: Sampled) -> None:
        for request in self._open:
            self._end(request, last)

    def _ended(self, request: Request, task: asyncio.Task[None]) -> None:
        """The boundary: whatever ended a request is told to who waits for it."""
        self._open.discard(request)
        if task.cancelled():
            if request.last is not None:
                self._report(request, request.last)
            return
        error = task.exception()
        if isinstance(error, httpx.TimeoutException):
            error = UpstreamError(f"The upstream said nothing for too long ({type(error).__name__}).")
        elif isinstance(error, (httpx.HTTPError, httpx.StreamError)):
            reason = str(error) or type(error).__name__
            error = UpstreamError(f"The upstream failed before the reply was complete ({reason}).")
        elif error is not None and not isinstance(error, LatheError):
            logger.error("an upstream's answer could not be read", exc_info=error)
            error = UpstreamError(f"The upstream's answer could not be read ({error!r}).")
        if error is not None:
            self._report(request, Sampled(error=error))

    def _report(self, request: Request, sampled: Sampled) -> None:
        try:
            request.report(sampled)
        except Exception:  # a listener whose event loop has closed is nobody else's trouble
            logger.exception("a reply was cancelled: its report could not be delivered")
            self._end(request, None)

    async def _ask(self, request: Request) -> None:
        """One request, from its JSON to its last report."""
        # None of the forms can ask for no token at all.
        body = self.form.body(request.prompt_token_ids, request.sampling, max(request.max_new_tokens, 1))
        reply = _Reply(self, request)
        async with self._client.stream("POST", self.form.path, json=body) as response:
            if response.status_code != 200:
                await response.aread()
                raise UpstreamError(
                    f"The upstream refused the request ({response.status_code}): {explain(response.text)}"
                )
            events, read = Events(), self.form.reader(request.sampling)
            try:
                async for data in response.aiter_bytes():
                    if any(reply.take(read(event)) for event in events.feed(data)):
                        break
            except (httpx.HTTPError, UpstreamError):
                if reply.last is None:
                    raise  # else only the count of what was cached is lost
        if reply.last is None:
            raise UpstreamError("The upstream closed the connection before the reply was complete.")
        self._report(request, reply.last)


class _Reply:
    """One reply as its pieces come. `last` is held back until the upstream has said all: what it counted
    comes after the last token."""

    def __init__(self, engine: UpstreamEngine, request: Request):
        self.last: Sampled | None = None
        self._engine = engine
        self._request = request
        self._ends = stop_ids(request.sampling, engine.eos_token_ids)
        self._num_new = 0
        self._num_cached = 0
        self._is_exact = True

    def take(self, piece: Piece) -> bool:
        """Reports the piece's tokens. True when the reply has ended here, and the upstream goes on."""
        self._num_cached = max(self._num_cached, piece.num_cached_tokens)
        self._is_exact = self._is_exact and piece.is_exact
        if self.last is not None:
            self.last = self._sampled(self.last.token, self.last.finish_reason)
            return False
        if self._request.max_new_tokens == 0:
            self.last = self._sampled(None, "length")
            return True
        for place, token in enumerate(piece.tokens, start=1):
            reason = self._reason(token.token_id)
            if reason is None and place == len(piece.tokens):
                reason = piece.finish_reason
            sampled = self._sampled(token, reason)
            if reason is not None:
                self.last = sampled
                return piece.finish_reason is None
            self._engine._report(self._request, sampled)
        if piece.finish_reason is not None:
            # The upstream ended the turn and gave no token for it: then the reply has none.
            self.last = self._sampled(None, piece.finish_reason)
        return False

    def _reason(self, token_id: int) -> FinishReason | None:
        if not 0 <= token_id < self._engine.vocab_size:
            raise UpstreamError(
                f"The upstream sampled the token id {token_id}; the model that is named here has "
                f"{self._engine.vocab_size} ids. Do they serve the same model?"
            )
        self._num_new += 1
        if token_id in self._ends:
            return "stop"
        return "length" if self._num_new >= self._request.max_new_tokens else None

    def _sampled(self, token: TokenLogprob | None, reason: FinishReason | None) -> Sampled:
        return Sampled(token, reason, num_cached_tokens=self._num_cached, is_exact=self._is_exact)
