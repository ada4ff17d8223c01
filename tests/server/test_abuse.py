"""Whatever a client sends, on every route that reads a body: an answer or a 4xx in bounded time, and the
server goes on. Real sockets; the model's words are scripted."""

import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import httpx
import pytest
from abuse import HOSTILE, VALID, nested, places, replaced
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from searching import times
from serving import serve, wait_until

from lathe.server.app import create_app
from lathe.testing import ScriptedModel

JSON = {"content-type": "application/json"}
LIMIT_S = 30.0  # far more than an idle machine needs
PROMPT_ROUTES = {
    "/v1/chat/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/tokenize",
}


@pytest.fixture(scope="module")
def model():
    return ScriptedModel(answer=lambda prompt: "fine", max_context=8192)


@pytest.fixture(scope="module")
def server(model) -> Iterator[httpx.Client]:
    with serve(model) as url, httpx.Client(base_url=url, timeout=LIMIT_S) as http:
        yield http


def send(server: httpx.Client, path: str, body) -> httpx.Response:
    """The answer, once it is sure to be no failure."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = server.post(path, content=content, headers=JSON)
    assert response.status_code == 200 or 400 <= response.status_code < 500, response.text
    # A stream's status has left before its reply is made: an error is one of its events.
    assert "internal_error" not in response.text
    assert "api_error" not in response.text
    return response


def check_it_goes_on(server: httpx.Client, model: ScriptedModel) -> None:
    assert wait_until(lambda: model.engine.num_open == 0)
    for path, body in VALID.items():
        assert send(server, path, body).status_code == 200


@contextmanager
def answering_others(server: httpx.Client) -> Iterator[None]:
    """Meanwhile another client asks for the server's health, and no answer may take long."""
    done = threading.Event()
    waits: list[float] = []

    def ask() -> None:
        with httpx.Client(base_url=server.base_url, timeout=LIMIT_S) as other:
            while not done.wait(0.02):
                started = time.monotonic()
                assert other.get("/health").status_code == 200
                waits.append(time.monotonic() - started)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield
    finally:
        done.set()
        asking.join()
    assert max(waits, default=0.0) < 5.0


def test_every_route_that_reads_a_body_is_abused(server, model):
    paths = create_app(ScriptedModel()).openapi()["paths"]
    assert VALID.keys() == {path for path, methods in paths.items() if "post" in methods}
    check_it_goes_on(server, model)


@pytest.mark.parametrize("path", VALID)
def test_wrong_values_anywhere(server, path):
    """Two values of a valid body, at any depth, become others of every kind."""
    body = VALID[path]
    wrong = st.tuples(st.sampled_from(list(places(body))), st.sampled_from(HOSTILE))

    @times(0.5, suppress_health_check=[*HealthCheck])
    @given(st.lists(wrong, min_size=1, max_size=2), st.booleans())
    def attempt(changes, stream):
        spoilt = {**body, "stream": stream} if "stream" in body else body
        for place, value in changes:
            spoilt = replaced(spoilt, place, value)
        send(server, path, spoilt)

    attempt()


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("path", VALID)
def test_every_wrong_value_everywhere(server, path):
    body = VALID[path]
    for place in places(body):
        for value in HOSTILE:
            send(server, path, replaced(body, place, value))


def connect(server: httpx.Client) -> socket.socket:
    place = urlsplit(str(server.base_url))
    return socket.create_connection((place.hostname, place.port), timeout=LIMIT_S)


def request_bytes(path: str, body: dict, length: int | str | None = None) -> bytes:
    payload = json.dumps(body).encode()
    length = len(payload) if length is None else length
    head = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n"
    )
    return f"{head}\r\n".encode() + payload


def status_of(connection: socket.socket) -> int:
    """Of the answer; what follows its status line is left."""
    line = connection.makefile("rb").readline()
    return int(line.split()[1])


def test_killed_clients(server, model):
    """Connections are torn down in the head, in the body, and when all is sent."""
    with answering_others(server):
        for path, body in VALID.items():
            request = request_bytes(path, body)
            for end in (10, len(request) // 2, len(request) - 1, len(request)):
                connection = connect(server)
                # Closing then sends a reset, as a killed process' machine may, and not a polite end.
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.sendall(request[:end])
                connection.close()
    check_it_goes_on(server, model)


def test_half_sent_bodies(server, model):
    """Clients that never send the rest hold nobody up, and get an answer if they do."""
    half_sent = []
    for path, body in VALID.items():
        request = request_bytes(path, body)
        for _ in range(4):
            half_sent.append((connect(server), request))
            half_sent[-1][0].sendall(request[: len(request) // 2])
    with answering_others(server):
        check_it_goes_on(server, model)
    for number, (connection, request) in enumerate(half_sent):
        if number % 2:
            connection.sendall(request[len(request) // 2 :])
            assert status_of(connection) == 200
        connection.close()
    check_it_goes_on(server, model)


@pytest.mark.parametrize("length", ["x", "-1", "9" * 30])
@pytest.mark.parametrize("path", VALID)
def test_a_wrong_length(server, path, length):
    with connect(server) as connection:
        connection.sendall(request_bytes(path, VALID[path], length))
        assert status_of(connection) in (400, 413)


@pytest.mark.parametrize("is_announced", [True, False])
@pytest.mark.parametrize("path", VALID)
def test_50_megabytes(server, model, path, is_announced):
    """Refused by its length, or as soon as the limit is passed; the client hears why."""
    body = b'{"messages": "' + b"x" * 50_000_000 + b'"}'
    content = body if is_announced else iter([body[:1_000_000]] * 50)
    started = time.monotonic()
    with answering_others(server):
        response = server.post(path, content=content, headers=JSON)
    assert response.status_code == 413
    assert time.monotonic() - started < LIMIT_S
    assert server.get("/health").status_code == 200


def test_a_body_just_under_the_limit(server, model):
    """In a field that nobody reads, and then in one that is a wrong value."""
    with answering_others(server):
        for path, body in VALID.items():
            assert send(server, path, {**body, "unknown": "x" * 30_000_000}).status_code == 200
        assert send(server, "/v1/responses", {**VALID["/v1/responses"], "metadata": "x" * 30_000_000})
    check_it_goes_on(server, model)


def with_tools(path: str, tools: list[dict]) -> dict:
    """The route's body with these tools, given as OpenAI's functions."""
    if path.startswith("/v1/messages"):
        tools = [{"name": tool["name"], "input_schema": tool["parameters"]} for tool in tools]
        return {**VALID[path], "tools": tools}
    if path == "/v1/responses":
        tools = [{"type": "function", **tool} for tool in tools]
    else:
        tools = [{"type": "function", "function": tool} for tool in tools]
    return {**VALID[path], "tools": tools, "tool_choice": "auto"}


@pytest.mark.parametrize("path", sorted(PROMPT_ROUTES))
def test_ten_thousand_tools(server, path):
    """Counted, or refused as longer than the context; other clients do not notice."""
    tools = [{"name": f"f{number}", "parameters": {}} for number in range(10_000)]
    started = time.monotonic()
    with answering_others(server):
        response = send(server, path, with_tools(path, tools))
    assert time.monotonic() - started < LIMIT_S
    assert response.status_code == (200 if path in ("/tokenize", "/v1/messages/count_tokens") else 400)


def deep_json(levels: int) -> bytes:
    return b'{"type": "object", "properties": {"x": ' * levels + b"{}" + b"}}" * levels


@pytest.mark.parametrize("levels", [30, 60, 99, 1000, 100_000])
@pytest.mark.parametrize("path", sorted(PROMPT_ROUTES))
def test_a_schema_nested_deeply(server, path, levels):
    body = json.dumps(with_tools(path, [{"name": "f", "parameters": {"HERE": 1}}]))
    response = send(server, path, body.replace('{"HERE": 1}', deep_json(levels).decode()).encode())
    assert response.status_code == (200 if levels <= 60 else response.status_code)
    assert response.status_code == (400 if levels >= 1000 else response.status_code)


@pytest.mark.parametrize("levels", [10, 49, 60, 95, 1000])
@pytest.mark.parametrize(
    ("path", "format"),
    [
        ("/v1/chat/completions", '{"type": "json_schema", "json_schema": {"name": "n", "schema": HERE}}'),
        ("/v1/responses", '{"format": {"type": "json_schema", "name": "n", "schema": HERE}}'),
        ("/v1/messages", '{"format": {"type": "json_schema", "schema": HERE}}'),
    ],
)
def test_a_reply_format_nested_deeply(server, path, format, levels):
    field = {"/v1/chat/completions": "response_format", "/v1/responses": "text"}.get(path, "output_config")
    body = json.dumps({**VALID[path], field: "FORMAT", "tools": []})
    schema = deep_json(levels).decode()
    send(server, path, body.replace('"FORMAT"', format.replace("HERE", schema)).encode())


@pytest.mark.parametrize("path", VALID)
def test_contents_nested_deeply(server, path):
    for key, value in VALID[path].items():
        if isinstance(value, list | dict):
            for levels in (20, 90):
                send(server, path, {**VALID[path], key: nested(levels, list)})
                send(server, path, {**VALID[path], key: nested(levels, dict)})
    send(server, path, b"[" * 1_000_000)
