"""What the proxy does while a server is silent, away or breaks off."""

import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from live_server import PATIENCE_S, write_tiny_model

from stub_hub import unused_address
from stub_repo import Repo

HELD = "stub/held"


class HeldRepo(Repo):
    """A repository whose listing comes when the test says so."""

    def __init__(self, folder, commit):
        super().__init__(folder, commit)
        self.asked, self.gate = threading.Event(), threading.Event()

    def files(self):
        self.asked.set()
        assert self.gate.wait(PATIENCE_S)
        return super().files()


class Listener:
    """Accepts connections, reads what comes first, and closes; ``connections`` are all there were."""

    def __init__(self):
        self.connections = 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def close(self):
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(PATIENCE_S)

    def _accept(self):
        with suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                self.connections += 1
                with connection:
                    connection.recv(65_536)


@pytest.fixture
def held(hub, tmp_path):
    repo = hub.repos[HELD] = HeldRepo(write_tiny_model(tmp_path / "model"), "0123456789abcdef" * 2 + "01234567")
    yield repo
    repo.gate.set()


@pytest.fixture
def listeners():
    both = [Listener(), Listener()]
    yield both
    for one in both:
        one.close()


def test_a_load_may_be_silent_for_longer_than_an_answer_may(impatient_client, held):
    with ThreadPoolExecutor(1) as pool:
        load = pool.submit(impatient_client.post, "/load_model", json={"model_name": HELD})
        assert held.asked.wait(PATIENCE_S)
        # It waits for the same load, and is given up after the proxy's patience: so much time has passed by then.
        waiting = impatient_client.post("/infer", json={"text": "Hi", "model": HELD, "max_new_tokens": 1})
        assert not load.done()
        held.gate.set()
        answer = load.result(PATIENCE_S)
    assert (waiting.status_code, waiting.json()["code"]) == (504, "gateway_timeout")
    assert waiting.headers["content-type"] == "application/problem+json"
    assert (answer.status_code, answer.json()) == (200, {"status": f"Model {HELD} loaded successfully"})


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_request_goes_to_a_server_once_even_if_it_breaks_off(start_proxy, listeners, method):
    # The template has one place for a server; with two there, another attempt would have somewhere to go.
    first, second = listeners
    proxy = start_proxy(f"{first.address}; server {second.address}")
    with proxy.client() as client:
        response = client.request(method, "/infer")
    assert (response.status_code, response.json()["code"]) == (502, "bad_gateway")
    assert first.connections + second.connections == 1


def test_a_server_that_is_away_is_told_in_the_shape_of_the_path(start_proxy):
    proxy = start_proxy(unused_address().removeprefix("http://"))
    with proxy.client() as client:
        native = client.post("/chat", json={"text": "Hi"}, headers={"X-Request-ID": "away"})
        openai = client.get("/v1/models")
    assert (native.status_code, native.headers["retry-after"]) == (502, "5")
    assert native.json() == {
        "type": "urn:inferapi:error:bad_gateway",
        "title": "Bad Gateway",
        "status": 502,
        "detail": "The server is not there at this moment.",
        "instance": "urn:inferapi:request:away",
        "code": "bad_gateway",
    }
    assert native.headers["x-request-id"] == "away"
    assert openai.status_code == 502
    assert openai.json()["error"]["code"] == "bad_gateway"
    assert openai.json()["error"]["type"] == "server_error"
