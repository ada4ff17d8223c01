"""A real server on a real socket, in a thread of the test's own process."""

import functools
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import anthropic
import openai
from fastapi import FastAPI

from lathe.engine.llm import LLM
from lathe.server import run
from lathe.server.app import create_app
from lathe.testing import ScriptedModel
from lathe.text.chat_template import ChatTemplate

QWEN3_TEMPLATE = Path(__file__).parent / "text" / "templates" / "qwen3.jinja"


@contextmanager
def serve(llm: LLM, **options) -> Iterator[str]:
    """Yields the server's URL, without the /v1."""
    try:
        with serve_app(create_app(llm, **options)) as url:
            yield url
    finally:
        llm.close()


@contextmanager
def serve_app(app: FastAPI) -> Iterator[str]:
    """The same for an app that a test has made itself."""
    bound = run.bind("127.0.0.1", 0)
    url = run.base_url(bound)
    ready = threading.Event()
    server = run.Server(app, ready.set)
    thread = threading.Thread(target=server.run, args=([bound],), daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield url
    finally:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()


@contextmanager
def client_of(llm: LLM, **options) -> Iterator[openai.OpenAI]:
    with serve(llm, **options) as url:
        key = options.get("api_key") or "EMPTY"
        http = openai.DefaultHttpxClient(verify=certificates())
        with openai.OpenAI(
            base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=20, http_client=http
        ) as client:
            yield client


@contextmanager
def anthropic_client_of(llm: LLM, **options) -> Iterator[anthropic.Anthropic]:
    with serve(llm, **options) as url:
        key = options.get("api_key") or "EMPTY"
        http = anthropic.DefaultHttpxClient(verify=certificates())
        with anthropic.Anthropic(
            base_url=url, api_key=key, max_retries=0, timeout=20, http_client=http
        ) as client:
            yield client


@functools.cache
def certificates() -> ssl.SSLContext:
    """Read once: each client's own would take it 30 ms, though it never speaks to more than loopback."""
    return ssl.create_default_context()


def wait_until(condition, timeout_s: float = 5.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


def thinker(*replies: str, **options) -> ScriptedModel:
    """A scripted model whose template is Qwen3's, which thinks: a reply is `<think>\n…\n</think>\n\n…`."""
    return ScriptedModel(*replies, template=ChatTemplate(QWEN3_TEMPLATE.read_text("utf-8")), **options)


def post(url: str, body: dict, num_sent: int | None = None) -> socket.socket:
    """A request whose connection the test holds in its own hands, and perhaps the rest of its body."""
    place = urlsplit(url)
    connection = socket.create_connection((place.hostname, place.port))
    payload = json.dumps(body).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {place.netloc}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(payload)}\r\n\r\n"
    )
    connection.sendall(head.encode() + payload[:num_sent])
    return connection


def read_until(connection: socket.socket, words: bytes) -> None:
    connection.settimeout(20)
    seen = b""
    while words not in seen:
        piece = connection.recv(4096)
        assert piece, seen
        seen += piece
