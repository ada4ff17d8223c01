"""What kind of server answers at a URL: found out with requests for one token, before anyone is served."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from lathe.engine.upstream_forms import Completions, Events, Form, LlamaCpp, Piece, PlainText, explain
from lathe.errors import UpstreamError, UserError
from lathe.text.tokenizer import Tokenizer
from lathe.types import SamplingParams

PROBE_TIMEOUT_S = 60.0  # a server that has just started may compile its kernels first
PROBE_TEXT = "The capital of France is"


@dataclass(frozen=True)
class Found:
    """The form to ask in, and how long a context the upstream says that it has. None: it does not say."""

    form: Form
    max_context: int | None


def base_of(url: str) -> str:
    """The server's address, of which clients are often given the /v1."""
    base = url.rstrip("/").removesuffix("/v1")
    if not base.startswith(("http://", "https://")):
        raise UserError(f"--upstream {url!a} is no address: begin it with http:// or https://.")
    return base


def headers_of(api_key: str | None) -> dict[str, str]:
    if not api_key:
        return {}
    if not (api_key.isascii() and api_key.isprintable()):
        raise UserError("--upstream-key holds characters that no header can carry.")
    return {"Authorization": f"Bearer {api_key}"}


def find_form(
    url: str,
    tokenizer: Tokenizer,
    *,
    eos_token_ids: frozenset[int],
    api_key: str | None = None,
    model: str | None = None,
) -> Found:
    """Asks the server at `url` what it is. Raises UserError when it can't be reached, refuses the key, gives
    an answer of no form that is known here, or plainly has another tokenizer."""
    try:
        options: dict[str, Any] = {"base_url": base_of(url), "headers": headers_of(api_key)}
        with httpx.Client(**options, timeout=PROBE_TIMEOUT_S) as client:
            return _find(client, url, tokenizer, eos_token_ids, model)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        reason = str(error) or type(error).__name__
        raise UserError(f"The upstream {url} can't be reached ({reason}). Is it running?") from error
    except (UpstreamError, AttributeError, KeyError, TypeError) as error:  # not at all what was expected
        raise UserError(f"The upstream {url} answers in a way that is not known here: {error}") from error


def _find(
    client: httpx.Client, url: str, tokenizer: Tokenizer, ends: frozenset[int], model: str | None
) -> Found:
    entry = _model_entry(client, url, model)
    name = model or entry.get("id")
    max_context = entry.get("max_model_len")
    props = _json(client.get("/props"))
    settings = props.get("default_generation_settings")
    forms: list[Form]
    if isinstance(settings, dict):
        max_context = settings.get("n_ctx") or max_context
        forms = [LlamaCpp(tokenizer)]
    else:
        forms = [
            Completions(name, ends, is_lathe=entry.get("owned_by") == "lathe"),
            PlainText(tokenizer, name, ends, takes_ids=True),
            PlainText(tokenizer, name, ends, takes_ids=False),
        ]
    reasons: list[str] = []
    for form in forms:
        reason = _try(client, url, form, tokenizer)
        if reason is None:
            return Found(form, max_context)
        reasons.append(f"{form.name}: {reason}")
    raise UserError(f"The upstream {url} gives no usable answer. {' '.join(dict.fromkeys(reasons))}")


def _model_entry(client: httpx.Client, url: str, model: str | None) -> Mapping[str, Any]:
    response = client.get("/v1/models")
    _refuse_wrong_key(response, url)
    entries = [entry for entry in _json(response).get("data") or [] if isinstance(entry, dict)]
    named = [entry for entry in entries if entry.get("id") == model] if model else entries
    if model and entries and not named:
        names = ", ".join(str(entry.get("id")) for entry in entries[:10])
        raise UserError(f"The upstream {url} has no model {model!a}. --upstream-model may be: {names}.")
    return named[0] if named else {}


def _try(client: httpx.Client, url: str, form: Form, tokenizer: Tokenizer) -> str | None:
    """Asks for one token. What is wrong with the answer, or None."""
    sampling = SamplingParams(temperature=0.0)
    body = form.body(tuple(tokenizer.encode(PROBE_TEXT)), sampling, 1)
    read = form.reader(sampling)
    events, pieces = Events(), list[Piece]()
    said = ""
    with client.stream("POST", form.path, json=body) as response:
        _refuse_wrong_key(response, url)
        if response.status_code != 200:
            response.read()
            return f"status {response.status_code}, {explain(response.text)}"
        try:
            for data in response.iter_bytes():
                for event in events.feed(data):
                    choice = (event.get("choices") or [{}])[0]
                    said += str(choice.get("text") or event.get("content") or "")
                    pieces.append(read(event))
        except UpstreamError as error:
            return str(error)
    ids = [token.token_id for piece in pieces for token in piece.tokens]
    if not any(piece.finish_reason for piece in pieces):
        return "the stream ended without a finish_reason."
    if form.is_exact and not ids:
        return "it streams no token ids."
    meant = tokenizer.decode(ids, skip_special=True)
    if form.is_exact and said and "\ufffd" not in said + meant and said != meant:
        raise UserError(
            f"The upstream {url} has another tokenizer: a token that it reads as {said!a} is {meant!a} here. "
            "Give MODEL as the model that the upstream serves."
        )
    return None


def _refuse_wrong_key(response: httpx.Response, url: str) -> None:
    if response.status_code in (401, 403):
        raise UserError(f"The upstream {url} refuses the key. Give the right one with --upstream-key.")


def _json(response: httpx.Response) -> dict[str, Any]:
    """The object that a response holds; nothing where there is none, as of routes that a server lacks."""
    try:
        found = response.json() if response.status_code == 200 else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
