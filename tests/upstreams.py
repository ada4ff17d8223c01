"""Upstreams to stand in front of: a folder that names a model without weights, and servers that misbehave."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tiny_models import tiny_config

from lathe.testing import tiny_tokenizer


def words_only(folder: Path, vocab_size: int) -> Path:
    """A model's folder with a config and a tokenizer, and no weights."""
    config = tiny_config(vocab_size=vocab_size, max_position_embeddings=4096).to_hf()
    (folder / "config.json").write_text(json.dumps(config))
    tiny_tokenizer().save(folder)
    return folder


def event(payload: dict) -> bytes:
    return b"data: " + json.dumps(payload).encode() + b"\n\n"


def text_choice(text: str, finish_reason: str | None = None) -> bytes:
    return event({"choices": [{"index": 0, "text": text, "finish_reason": finish_reason}]})


def ids_choice(*ids: int, finish_reason: str | None = None) -> bytes:
    logprobs = {"token_logprobs": [-0.5] * len(ids), "top_logprobs": [{} for _ in ids]}
    choice = {"index": 0, "text": "", "token_ids": ids, "logprobs": logprobs, "finish_reason": finish_reason}
    return event({"choices": [choice]})


Speak = Callable[[dict, BaseHTTPRequestHandler], None]


@contextmanager
def upstream_that(speak: Speak, models: object = None, status: int = 200) -> Iterator[str]:
    """A server whose answer to a completion `speak(body, handler)` writes. Yields its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            listed = self.path == "/v1/models"
            self.answer(status if listed else 404, json.dumps(models or {"data": [{"id": "other"}]}).encode())

        def do_POST(self):
            speak(json.loads(self.rfile.read(int(self.headers["Content-Length"]))), self)

        def answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def stream(self, *events: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            for one in events:
                self.wfile.write(one)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
