"""Work for a client who may leave: server-sent events, and stopping as soon as nobody listens."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from fastapi import Request, Response
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from lathe.server.errors import encode_json, json_response
from lathe.server.wire import ErrorReply

log = logging.getLogger(__name__)

T = TypeVar("T")

DONE = b"data: [DONE]\n\n"


def refusals(error: type[BaseModel] = ErrorReply) -> dict[int | str, dict[str, Any]]:
    """What a route that reads a body may answer instead, for the OpenAPI document."""
    return {
        400: {
            "model": error,
            "description": "The request is wrong, too long, or asks for what is not served",
        },
        413: {"model": error, "description": "The body is larger than the server's limit"},
        503: {"model": error, "description": "The server stopped before the reply was complete"},
    }


def reply_or_events(
    whole: type[BaseModel], event: str, error: type[BaseModel] = ErrorReply
) -> dict[int | str, dict[str, Any]]:
    """What a route that can stream answers, for the OpenAPI document."""
    data = {"type": "string", "description": event}
    schema = {"type": "object", "required": ["data"], "properties": {"data": data}}
    streamed = {
        "model": whole,
        "description": "The whole reply, or its server-sent events when stream is true",
        "content": {"text/event-stream": {"schema": schema}},
    }
    return {200: streamed, **refusals(error)}


class ClientGone(Exception):
    """The client closed its connection before it had its answer."""


def sse(payload: Any, event: str | None = None) -> bytes:
    """One server-sent event. `event` is its name, in the dialects that name them."""
    name = b"" if event is None else b"event: " + event.encode() + b"\n"
    return name + b"data: " + encode_json(payload) + b"\n\n"


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled as soon as the client disconnects (then raises ClientGone).

    To be called when the request's body has been read: what `receive` has left is the disconnect.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        # Only when the cancelled work has unwound are its pages free; wait for that.
        await asyncio.gather(working, leaving, return_exceptions=True)


async def answer(request: Request, work: Coroutine[Any, Any, Any]) -> Response:
    """The JSON that `work` gives, or nothing when the client has left before."""
    try:
        return json_response(await while_connected(request.receive, work))
    except ClientGone:
        log.info("a client left before its reply was complete")
        return Response(status_code=499)  # nobody reads it; nginx's number for this


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Sends server-sent events as the generator yields them, and closes the generator with the connection.

    Starlette's own StreamingResponse leaves a generator that waits in `send` to the garbage collector;
    a reply that nobody reads would go on filling the cache until then.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None]):
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self.events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_all() -> None:
            async with aclosing(self.events) as events:
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                async for event in events:
                    await send({"type": "http.response.body", "body": event, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})

        try:
            await while_connected(receive, send_all())
        except (ClientGone, OSError):
            log.info("a client left before its stream was complete")
        except asyncio.CancelledError:
            log.info("a stream was cut because the server stops")
