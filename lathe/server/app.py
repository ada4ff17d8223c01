"""The HTTP server: routes, doors and errors. What a dialect says is in its own module (chat.py)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Response
from fastapi.openapi.utils import get_openapi

import lathe
from lathe.engine.llm import LLM
from lathe.server import chat, completions, errors, infill, messages, metrics, page, responses, tokens
from lathe.server.chat_schema import Health, ModelList, ServedModel
from lathe.server.errors import BadRequest, json_response
from lathe.server.guards import LimitBody, RequireKey, SoundRoute
from lathe.server.recorder import Recorder
from lathe.server.service import Service
from lathe.server.wire import ErrorReply

# As at Anthropic. Four times the text of a million tokens; what is longer would only be encoded and refused.
MAX_BODY_BYTES = 32 * 2**20


def create_app(
    llm: LLM,
    *,
    api_key: str | None = None,
    aliases: Iterable[str] = (),
    record: Path | None = None,
    max_body_bytes: int = MAX_BODY_BYTES,
) -> FastAPI:
    """An app that serves one model, also by the names in `aliases`. With `api_key`, every path asks for it
    but /health and the page at /. With `record`, every conversation is written into that folder."""
    app = FastAPI(
        title="Lathe",
        version=lathe.__version__,
        description="An endpoint that speaks OpenAI's and Anthropic's dialects.",
        docs_url=None,  # its page loads scripts from a public CDN
        redoc_url=None,
    )
    app.router.route_class = SoundRoute
    recorder = None if record is None else Recorder(record, model=llm.model_id)
    app.state.service = service = Service(llm, aliases, recorder)

    @app.get("/health", response_model=Health)
    async def health() -> Response:
        """Whether the server answers. Needs no key."""
        return json_response({"status": "ok"})

    @app.get("/v1/models", response_model=ModelList)
    async def list_models() -> Response:
        """The served model, once for each of its names, and the context that its cache gives."""
        models = [describe_model(service, name) for name in service.names]
        return json_response({"object": "list", "data": models})

    @app.get("/v1/models/{model_id:path}", response_model=ServedModel, responses={404: {"model": ErrorReply}})
    async def get_model(model_id: str) -> Response:
        """The same, for a client that asks by name."""
        if model_id in service.names:
            return json_response(describe_model(service, model_id))
        message = f"There is no model {model_id!a} here; this server has {', '.join(service.names)}."
        return json_response(errors.error_body(message, param="model", code="model_not_found"), 404)

    chat.install(app, service)
    messages.install(app, service)
    responses.install(app, service)
    completions.install(app, service)
    infill.install(app, service)
    tokens.install(app, service)
    metrics.install(app, service.metrics)
    page.install(app)
    errors.install(app)
    app.add_middleware(LimitBody, max_bytes=max_body_bytes)
    if api_key is not None:
        if not api_key:
            raise BadRequest("The API key is empty: leave --api-key out, or give one.")
        app.add_middleware(RequireKey, api_key=api_key)
    app.openapi = lambda: describe_api(app, needs_key=api_key is not None)  # type: ignore[method-assign]
    return app


def describe_model(service: Service, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": service.started,
        "owned_by": "lathe",
        "max_model_len": service.llm.max_context,
    }


def describe_api(app: FastAPI, *, needs_key: bool) -> dict[str, Any]:
    """FastAPI's OpenAPI document, made true: our errors are 400s in their dialect's shape, and the key is
    named."""
    if app.openapi_schema:
        return app.openapi_schema
    document = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes
    )
    for path, operations in document["paths"].items():
        for operation in operations.values():
            operation["responses"].pop("422", None)
            if needs_key and path != "/health":
                operation["security"] = [{"key": []}]
                reply = "MessagesErrorReply" if errors.is_anthropic(path) else "ErrorReply"
                schema = {"$ref": f"#/components/schemas/{reply}"}
                operation["responses"]["401"] = {
                    "description": "Wrong or missing API key",
                    "content": {"application/json": {"schema": schema}},
                }
    schemas = document["components"]["schemas"]
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    if needs_key:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    app.openapi_schema = document
    return document
