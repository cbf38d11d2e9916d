"""``inferapi load`` against a server of one answer: what it asks for, the key that it sends, and what it says."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from typer.testing import CliRunner

from inferapi.cli import app

KEY = "k3y-of-ann-0123456789"
DONE = b'data: {"status":"Model gpt2 loaded successfully"}\n\ndata: [DONE]\n\n'
REFUSED = b'{"status": 401, "code": "unauthenticated", "detail": "A valid API key is needed."}'

pytestmark = pytest.mark.usefixtures("bare_environment")


class LoadServer(HTTPServer):
    """Lets in who sends the key, and remembers what was sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.keys: list[str | None] = []
        self.bodies: list[dict[str, object]] = []


class _Handler(BaseHTTPRequestHandler):
    server: LoadServer

    def do_POST(self) -> None:
        self.server.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        sent = self.headers["Authorization"]
        self.server.keys.append(sent)
        is_let_in = sent == f"Bearer {KEY}"
        body, media_type = (DONE, "text/event-stream") if is_let_in else (REFUSED, "application/problem+json")
        self.send_response(200 if is_let_in else 401)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def server() -> Iterator[LoadServer]:
    with LoadServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def load(server: LoadServer, *options: str, **environment: str):
    url = f"http://127.0.0.1:{server.server_port}"
    return CliRunner().invoke(app, ["load", "gpt2", "--url", url, *options], env=environment)


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ((), {}),
        (("--dtype", "float32", "--pin"), {"dtype": "float32", "pinned": True}),
        (("--quantization", "int8"), {"quantization": "int8"}),
        (("--quantization", "none"), {"quantization": None}),
    ],
)
def test_load_asks_for_what_was_given_and_leaves_the_rest_to_the_server(server, options, fields):
    load(server, "--key", KEY, *options)
    assert server.bodies == [{"model_name": "gpt2"} | fields]


def test_load_sends_the_key(server):
    result = load(server, "--key", KEY)
    assert (result.exit_code, result.stdout) == (0, "Model gpt2 loaded successfully\n")
    assert server.keys == [f"Bearer {KEY}"]


def test_load_takes_the_key_from_the_environment(server):
    assert load(server, INFERAPI_API_KEY=KEY).exit_code == 0
    assert server.keys == [f"Bearer {KEY}"]


def test_without_a_key_none_is_sent(server):
    result = load(server)
    assert (result.exit_code, result.stderr) == (1, "A valid API key is needed.\n")
    assert server.keys == [None]


def test_a_key_that_is_wrong_is_told_and_not_shown(server):
    result = load(server, "--key", "k3y-that-is-wrong-0123")
    assert (result.exit_code, result.stderr) == (1, "A valid API key is needed.\n")
    assert "k3y" not in result.output


@pytest.mark.parametrize("key", ["k3y-with-é-0123456789", "k3y-with\nline-0123456789", "k3y-schlüssel-漢字-0123"])
def test_a_key_that_cannot_be_sent_is_told_and_not_shown(server, key):
    result = load(server, "--key", key)
    assert isinstance(result.exception, SystemExit)
    assert result.exit_code == 2
    assert "key" in result.stderr.lower()
    assert "k3y" not in result.output
    assert server.keys == []


def test_help_does_not_show_the_key():
    result = CliRunner().invoke(app, ["load", "--help"], env={"INFERAPI_API_KEY": KEY, "COLUMNS": "200"})
    assert "INFERAPI_API_KEY" in result.output
    assert "k3y" not in result.output
