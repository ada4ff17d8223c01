"""What went wrong, in the shape that the client reads who asked.

OpenAI's, {"error": {message, type, param, code}}, is the one that all errors are made in; `in_dialect` gives
those of /v1/messages Anthropic's, {"type": "error", "error": {type, message}}. A request's path decides.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Route

from lathe.engine.engine import EngineClosed
from lathe.errors import InvalidRequest, PromptTooLong, UpstreamError, UserError

log = logging.getLogger(__name__)

ANTHROPIC_KINDS = {
    401: "authentication_error",
    404: "not_found_error",
    413: "request_too_large",
    500: "api_error",
    502: "api_error",
    503: "overloaded_error",
}


class BadRequest(InvalidRequest):
    """A request refused because of one of its fields. `param` is its path, as in "messages.0.content"."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.param = param
        self.code = code


def encode_json(payload: Any) -> bytes:
    # A model may write the escape \ud800 into a call's JSON. The lone surrogate that it means is no
    # UTF-8; backslashreplace turns it into the six characters \ud800, which is JSON's own escape for it.
    text = json.dumps(payload, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace")


def json_response(payload: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(encode_json(payload), status, headers, media_type="application/json")


def error_body(
    message: str, kind: str = "invalid_request_error", param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def is_anthropic(path: str) -> bool:
    """Whether errors of this path have Anthropic's shape."""
    return path == "/v1/messages" or path.startswith("/v1/messages/")


def in_dialect(path: str, status: int, body: dict[str, Any]) -> dict[str, Any]:
    """A body of `error_body` as the path's dialect writes errors."""
    if not is_anthropic(path):
        return body
    kind = ANTHROPIC_KINDS.get(status, "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": body["error"]["message"]}}


def error_response(
    path: str, status: int, body: dict[str, Any], headers: Mapping[str, str] | None = None
) -> Response:
    return json_response(in_dialect(path, status, body), status, headers)


def describe(error: Exception, path: str = "") -> tuple[int, dict[str, Any]]:
    """An error's status and body, in the path's dialect. A bug says nothing about itself: its traceback
    belongs in our log."""
    status, body = _describe(error)
    if isinstance(error, PromptTooLong) and is_anthropic(path):
        # Claude Code reads these two numbers to learn by how much it has to shorten the conversation.
        numbers = f"{error.num_prompt_tokens} tokens > {error.max_context - 1} maximum"
        body = error_body(f"prompt is too long: {numbers}. {error}")
    return status, in_dialect(path, status, body)


def _describe(error: Exception) -> tuple[int, dict[str, Any]]:
    match error:
        case PromptTooLong():
            return 400, error_body(str(error), param="messages", code="context_length_exceeded")
        case BadRequest():
            return 400, error_body(str(error), param=error.param, code=error.code)
        case UserError():
            return 400, error_body(str(error))
        case RecursionError():
            return 400, error_body("The request is nested too deeply.")
        case EngineClosed():
            message = "The server stopped before the reply was complete. Send the request again."
            return 503, error_body(message, "server_error", code="aborted")
        case UpstreamError():
            return 502, error_body(str(error), "server_error", code="upstream_error")
    message = "The server failed on this request. Its log has the traceback."
    return 500, error_body(message, "server_error", code="internal_error")


def describe_late(error: Exception, path: str = "") -> dict[str, Any]:
    """The body of an error that ends a stream: its status line has left long ago, so that only the log can
    take the traceback."""
    status, body = describe(error, path)
    if status >= 500:
        log.error("a streamed reply failed", exc_info=error)
    return body


def install(app: FastAPI) -> None:
    """Make every error of the app leave it in the shape of the dialect that was asked."""

    async def on_error(request: Request, error: Exception) -> Response:
        status, body = describe(error, request.url.path)
        return json_response(body, status)

    async def on_invalid_fields(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        message, param = explain_fields(error.errors())
        return error_response(request.url.path, 400, error_body(message, param=param))

    async def on_http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code = {404: "not_found", 405: "method_not_allowed", 413: "request_too_large"}.get(error.status_code)
        message = str(error.detail)
        if error.status_code in (404, 405) and message in ("Not Found", "Method Not Allowed"):
            asked = f"{request.method} {request.url.path}"
            message = f"There is no {asked}. This server has {', '.join(list_routes(app))}."
        body = error_body(message, code=code)
        return error_response(request.url.path, error.status_code, body, error.headers)

    for kind in (UserError, RecursionError, EngineClosed, UpstreamError):
        app.add_exception_handler(kind, on_error)
    app.add_exception_handler(RequestValidationError, on_invalid_fields)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(Exception, on_error)  # and Starlette raises it again, so that it is logged


def explain_fields(errors: Sequence[Any]) -> tuple[str, str | None]:
    """The first field that pydantic found wrong: a sentence, and the field's path.

    The value itself is left out: it may be long or private.
    """
    if tuple(errors[0]["loc"]) == ("body",):
        return "The body must be a JSON object, sent with the header Content-Type: application/json.", None
    # A union reports an error for each of its members; the one that got deepest is the one that was meant.
    field = errors[0]["loc"][1]
    paths = [(field_path(error["loc"]), error["msg"]) for error in errors if error["loc"][1] == field]
    path = max((path for path, _ in paths), key=len)
    wanted = " or ".join(dict.fromkeys(message for other, message in paths if other == path))
    return f"{'.'.join(path)}: {wanted}.", ".".join(path)


def field_path(loc: Sequence[str | int]) -> tuple[str, ...]:
    """A location without the names of a union's members (str, list[ContentPart], ToolChoice)."""
    names = [str(part) for part in loc[1:] if isinstance(part, int) or part == part.lower()]
    return tuple(name for name in names if name not in ("str", "dict[str,any]") and "[" not in name)


def list_routes(app: FastAPI) -> list[str]:
    routes = [route for route in app.routes if isinstance(route, Route)]
    return [
        f"{method} {route.path}" for route in routes for method in sorted((route.methods or set()) - {"HEAD"})
    ]
