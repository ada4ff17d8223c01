"""A model over HTTP: `types.Model` on any server that speaks OpenAI's chat completions.

Lathe's server gives the ids that were read and sampled, and goes on from those that it is given: the
conversation here is token for token the one there. vLLM gives ids, too. Of any other server only words are
known, and its completions say so (`is_exact`).
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable, Mapping
from ipaddress import ip_address
from typing import Any

import httpx

from lathe.client.refusals import RETRIED, Busy, error_of, refusal
from lathe.client.reply import ReplyReader
from lathe.client.wire import Kind, request_json
from lathe.errors import LatheError, ModelNotFound, UpstreamError, UserError
from lathe.types import Completion, SamplingParams, Trajectory

CONNECT_TIMEOUT_S = 10.0
FIRST_WAIT_S = 0.5
MAX_WAIT_S = 30.0


class ChatClient:
    """The model `model` of the server at `base_url`, with or without its /v1; None: the first that it serves.

    `timeout_s` is the longest pause in a reply: a long prompt on a busy server may take minutes. What may
    pass (no connection, 429, 5xx) is tried `max_retries` times more, with growing pauses, as long as nothing
    of the reply has been heard. A server on this machine that was never there is not waited for. Close it
    with `aclose`, or use `async with`. It belongs to one event loop.
    """

    def __init__(
        self,
        base_url: str,
        model: str | None = None,
        api_key: str | None = None,
        *,
        timeout_s: float = 600.0,
        max_retries: int = 4,
        first_wait_s: float = FIRST_WAIT_S,
        headers: Mapping[str, str] | None = None,
    ):
        self.url = base_of(base_url)
        self.model = model
        self.max_context: int | None = None
        self.kind: Kind | None = None
        self.timeout_s = timeout_s
        self.max_retries = max_retries
        self.first_wait_s = first_wait_s
        self._client = httpx.AsyncClient(
            base_url=self.url,
            headers={**(headers or {}), **key_header(api_key)},
            timeout=httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
        )
        self._finding = asyncio.Lock()
        self._was_reached = False

    async def __aenter__(self) -> ChatClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._client.aclose()

    # What is served

    async def models(self) -> list[dict[str, Any]]:
        """The entries of /v1/models; none where a server has no such list."""
        return await self._retried(self._models)

    async def _models(self) -> list[dict[str, Any]]:
        response = await self._client.get("models")
        if response.status_code in (404, 405, 501):
            return []
        self._refuse(response.status_code, response.text, response.headers)
        try:
            entries = response.json().get("data") or []
        except (ValueError, AttributeError):
            return []
        return [entry for entry in entries if isinstance(entry, dict) and entry.get("id")]

    async def find(self) -> None:
        """Ask the server what it is and which model it serves, once. `model`, `kind` and `max_context` are
        known then. Raises ModelNotFound when it has not the model, or none was named and it lists none."""
        async with self._finding:
            if self.kind is None:
                await self._find()

    async def _find(self) -> None:
        entries = await self.models()
        named = [entry for entry in entries if self.model in (None, entry["id"])]
        if self.model is None and not named:
            raise ModelNotFound(f"{self.url} does not say which models it has. Name one.")
        # Some servers know more names than they list; they will say so themselves.
        entry = named[0] if named else (entries[0] if len(entries) == 1 else {})
        self.model = self.model or entry["id"]
        length = entry.get("max_model_len") or (entry.get("meta") or {}).get("n_ctx")
        self.max_context = length if isinstance(length, int) else None
        owner = entry.get("owned_by")
        self.kind = owner if owner in ("lathe", "vllm") else "openai"

    # Asking

    async def complete(
        self,
        trajectory: Trajectory,
        sampling: SamplingParams | None = None,
        *,
        on_event: Callable[[Any], None] | None = None,
    ) -> Completion:
        """One answer (see `types.Model`). Raises PromptTooLong; UserError for what no retry could mend;
        UpstreamError when the server failed again and again, or in the middle of its reply."""
        await self.find()
        assert self.kind is not None
        body = request_json(trajectory, sampling, self.model, self.kind)
        return await self._retried(lambda: self._ask(body, trajectory, on_event))

    async def _ask(
        self, body: dict[str, Any], trajectory: Trajectory, on_event: Callable[[Any], None] | None
    ) -> Completion:
        reader = ReplyReader(trajectory.tools, on_event or (lambda event: None))
        try:
            # Half a surrogate pair, which a model's JSON can hold, is no UTF-8, and servers refuse it.
            data = json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")
            kind = {"Content-Type": "application/json"}
            async with self._client.stream(
                "POST", "chat/completions", content=data, headers=kind
            ) as response:
                if response.status_code != 200:
                    await response.aread()
                    self._refuse(response.status_code, response.text, response.headers)
                async for chunk in chunks_of(response):
                    if error := error_of(chunk, url=self.url, max_context=self.max_context):
                        raise error
                    reader.take(chunk)
        except httpx.HTTPError as error:
            if reader.finish_reason is not None:
                return reader.finish()  # all was said
            if isinstance(error, httpx.ReadTimeout):
                raise UpstreamError(f"{self.url} said nothing for {self.timeout_s:g} s.") from error
            if reader.has_begun:
                message = f"{self.url} broke off in the middle of its reply ({why(error)})."
                raise UpstreamError(message) from error
            raise
        return reader.finish()

    def _refuse(self, status: int, text: str, headers: Mapping[str, str]) -> None:
        """Raises what a status other than 200 means."""
        if status == 200:
            return
        error = refusal(status, text, url=self.url, model=self.model, max_context=self.max_context)
        if isinstance(error, UpstreamError) and status in RETRIED:
            raise Busy(error, wait_asked(headers))
        raise error

    async def _retried(self, ask: Callable[[], Any]) -> Any:
        """Asks until there is an answer, as often as is allowed."""
        wait_s = self.first_wait_s
        for attempt in range(self.max_retries + 1):
            try:
                answer = await ask()
                self._was_reached = True
                return answer
            except Busy as busy:
                self._was_reached = True
                error: LatheError = busy.error
                asked_s = busy.wait_s
            except httpx.HTTPError as failure:
                if isinstance(failure, httpx.ConnectError) and self._is_missing():
                    raise UpstreamError(
                        f"{self.url} can't be reached ({why(failure)}): no server listens there. Start one, "
                        "as with `lathe serve MODEL`, or give the address and port that it shows."
                    ) from failure
                error = UpstreamError(f"{self.url} can't be reached ({why(failure)}). Is it running?")
                asked_s = None
            if attempt == self.max_retries:
                raise error
            # Many clients that failed together should not come back together.
            pause_s = wait_s * random.uniform(0.5, 1.0) if asked_s is None else asked_s
            await asyncio.sleep(min(pause_s, MAX_WAIT_S))
            wait_s *= 2
        raise AssertionError("the last attempt returns or raises")

    def _is_missing(self) -> bool:
        """Whether a refused connection means that there is no server, and not that it is being restarted."""
        return not self._was_reached and is_loopback(self.url)


async def chunks_of(response: httpx.Response) -> AsyncIterator[Any]:
    """The JSON of a reply's server-sent events, up to [DONE]. A server that does not stream gives one."""
    if "event-stream" not in response.headers.get("content-type", ""):
        await response.aread()
        yield parsed(response.text)
        return
    async for line in lines_of(response):
        if not line.startswith(b"data:"):
            continue
        data = line.removeprefix(b"data:").strip().decode("utf-8", "replace")
        if data == "[DONE]":
            return
        if data:
            yield parsed(data)


async def lines_of(response: httpx.Response) -> AsyncIterator[bytes]:
    """Lines that end with a newline and nothing else: JSON may hold Unicode's other line ends as they are."""
    rest = b""
    async for data in response.aiter_bytes():
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            yield line
    yield rest


def parsed(data: str) -> Any:
    try:
        chunk = json.loads(data)
    except ValueError as error:
        raise UpstreamError(f"The server's reply is no JSON: {data[:200]!r}") from error
    if not isinstance(chunk, dict):
        raise UpstreamError(f"The server's reply is no JSON object: {data[:200]!r}")
    return chunk


def base_of(url: str) -> str:
    """The address of the API, which ends with /v1 unless another path was given."""
    url = url.rstrip("/")
    if not url.startswith(("http://", "https://")):
        raise UserError(f"{url!a} is no address: begin it with http:// or https://.")
    has_path = "/" in url.split("://", 1)[1]
    return f"{url}/" if has_path else f"{url}/v1/"


def is_loopback(url: str) -> bool:
    """Whether an address is this machine's own, where no network between can be at fault for a while."""
    host = httpx.URL(url).host
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def key_header(api_key: str | None) -> dict[str, str]:
    if not api_key:
        return {}
    if not (api_key.isascii() and api_key.isprintable()):
        raise UserError("The API key holds characters that no header can carry.")
    return {"Authorization": f"Bearer {api_key}"}


def wait_asked(headers: Mapping[str, str]) -> float | None:
    """The seconds of Retry-After, where it says seconds."""
    try:
        return max(float(headers.get("retry-after", "")), 0.0)
    except ValueError:
        return None


def why(error: Exception) -> str:
    return str(error) or type(error).__name__
