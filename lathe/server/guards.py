"""What a request passes before the app reads its fields: the API key, the size of the body, sound JSON."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic_core import from_json
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lathe.engine.engine import EngineClosed
from lathe.server.errors import error_body, error_response

OPEN_PATHS = ("/health", "/")


class RequireKey:
    """Refuse with 401 every request without the key, but for /health and the chat page, which asks for it."""

    def __init__(self, app: ASGIApp, api_key: str):
        self.app = app
        self.api_key = api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS or self.is_known(Headers(scope=scope)):
            return await self.app(scope, receive, send)
        message = (
            "Wrong or missing API key. Send it as the header Authorization: Bearer KEY, or x-api-key: KEY."
        )
        body = error_body(message, "authentication_error", code="invalid_api_key")
        response = error_response(scope["path"], 401, body, {"WWW-Authenticate": "Bearer"})
        return await response(scope, receive, send)

    def is_known(self, headers: Headers) -> bool:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        bearer = token.strip() if scheme.lower() == "bearer" else ""
        offered = [bearer, headers.get("x-api-key", "")]
        # Equal time for every wrong key: a plain == tells by its time how many characters were right.
        return any(hmac.compare_digest(key.encode("latin-1"), self.api_key) for key in offered)


class LimitBody:
    """Refuse with 413 a body of more than `max_bytes`, also one that does not announce its length."""

    def __init__(self, app: ASGIApp, max_bytes: int):
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        num_received = 0
        announced = Headers(scope=scope).get("content-length", "0")

        async def receive_within_limit() -> Message:
            nonlocal num_received
            if announced.isdecimal() and int(announced) > self.max_bytes:
                raise self.too_large()
            message = await receive()
            num_received += len(message.get("body", b""))
            if num_received > self.max_bytes:
                raise self.too_large()
            return message

        return await self.app(scope, receive_within_limit, send)

    def too_large(self) -> HTTPException:
        return HTTPException(413, f"The body is larger than this server's limit of {self.max_bytes} bytes.")


class SoundRequest(Request):
    """Python's own JSON reader lets through what breaks later: lone surrogates, NaN, a thousand levels."""

    async def json(self) -> Any:
        if not hasattr(self, "_json"):  # where Starlette keeps it, too
            try:
                self._json = from_json(await self.body(), allow_inf_nan=False)
            except ValueError as error:
                raise HTTPException(400, f"The body is no valid JSON: {error}.") from error
        return self._json


class SoundRoute(APIRoute):
    """A route that reads its body as a SoundRequest, and says so when the server stops before it answered."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_sound(request: Request) -> Response:
            try:
                return await handle(SoundRequest(request.scope, request.receive))
            except asyncio.CancelledError:  # uvicorn's word that the grace period for stopping is over
                raise EngineClosed("the server is stopping") from None

        return handle_sound
