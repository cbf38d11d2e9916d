"""Connections over real sockets: slow ones, large ones, many of them; whoever asks properly is answered throughout."""

import itertools
import json
import select
import socket
from contextlib import ExitStack, suppress
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
from live_server import PATIENCE_S, TINY, until

pytestmark = pytest.mark.model

MOST = 40
POST = b"POST /infer HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
BODY = b'{"text": "Hello"}'


def is_live(server):
    try:
        return server.http.get("/health/live").status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def impatient(start_server):
    """A server without a model that waits two seconds for what clients send, and takes 40 connections."""
    server = start_server(MODEL="", RECEIVE_TIMEOUT_S=2, MAX_CONNECTIONS=MOST)
    until(lambda: is_live(server))
    yield server
    until(lambda: is_live(server))
    assert "Traceback" not in server.log.read_text(encoding="utf-8")
    server.stop()


def connect(server):
    address = urlsplit(server.url)
    return socket.create_connection((address.hostname, address.port), timeout=PATIENCE_S)


def heard(raw):
    """The answer that ends the connection: status, headers and body."""
    data = b""
    with suppress(ConnectionResetError):  # not all that was sent was read
        while piece := raw.recv(65_536):
            data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    status_line, *lines = head.split(b"\r\n")
    headers = dict(line.decode().lower().split(": ", 1) for line in lines)
    return int(status_line.split()[1]), headers, body


def dribble(raw, pieces):
    """Send a piece now and then, until there is an answer."""
    for piece in pieces:
        raw.sendall(piece)
        if select.select([raw], [], [], 0.1)[0]:
            return
    pytest.fail("it was all taken")


def assert_refused(answer, status, code):
    told_status, headers, body = answer
    told = json.loads(body)
    assert (told_status, told["code"], headers["connection"]) == (status, code, "close")
    assert headers["content-type"] == "application/problem+json"
    assert told["instance"] == f"urn:inferapi:request:{headers['x-request-id']}"


def test_headers_that_dribble_in_are_refused_when_their_time_is_over(impatient):
    with connect(impatient) as raw:
        raw.sendall(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
        dribble(raw, itertools.repeat(b"x", 900))
        assert_refused(heard(raw), 408, "receive_timeout")


@pytest.mark.parametrize("length", [b"Content-Length: 1000", b"Transfer-Encoding: chunked"])
def test_a_body_that_dribbles_in_is_refused_when_its_time_is_over(impatient, length):
    piece = b"1\r\n \r\n" if b"chunked" in length else b" "
    with connect(impatient) as raw:
        raw.sendall(POST + length + b"\r\n\r\n")
        dribble(raw, itertools.repeat(piece, 900))
        assert_refused(heard(raw), 408, "receive_timeout")


def test_a_body_that_nobody_wants_may_not_dribble_for_ever_either(impatient):
    with connect(impatient) as raw:
        raw.sendall(b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
        raw.sendall(b"Content-Length: 1000\r\n\r\n")
        answer = b""
        while not answer.endswith(b"}"):  # head and body may come in pieces
            answer += raw.recv(65_536)
        assert answer.startswith(b"HTTP/1.1 404 ")
        with suppress(ConnectionError):  # another byte may meet a closed connection
            dribble(raw, itertools.repeat(b" ", 900))
            assert raw.recv(1) == b""


def test_who_connects_and_says_nothing_is_let_go_without_a_word(impatient):
    with connect(impatient) as raw:
        assert raw.recv(1) == b""


def test_headers_that_are_too_large_are_refused(impatient):
    for headers in (b"X-Long: " + b"x" * 40_000 + b"\r\n", b"X-Long: " + b"x" * 5_000_000, b"x: y\r\n" * 200):
        with connect(impatient) as raw:
            with suppress(ConnectionError):  # it had heard enough
                raw.sendall(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n" + headers + b"\r\n")
            assert_refused(heard(raw), 431, "head_too_large")


def test_what_is_no_http_is_told_so(impatient):
    with connect(impatient) as raw:
        raw.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
        assert_refused(heard(raw), 400, "malformed_http")


def test_a_body_without_a_length_is_read_as_it_comes(impatient):
    pieces = (BODY[start : start + 1] for start in range(len(BODY)))
    answer = impatient.http.post("/infer", content=pieces, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (409, "model_not_loaded")


def test_a_body_of_unknown_fields_is_refused_before_they_are_looked_at(impatient):
    body = json.dumps({f"k{number}": 1 for number in range(60_000)})
    answer = impatient.http.post("/infer", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["detail"]) == (422, "body: more than 32768 values")


@pytest.mark.parametrize(
    "said", [b"", b"GET /health/live HTTP/1.1\r\nHost", b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"]
)
def test_many_idle_connections_keep_nobody_out(impatient, said):
    process = psutil.Process(impatient.process.pid)
    with ExitStack() as held:
        for _ in range(3 * MOST):
            raw = held.enter_context(connect(impatient))
            raw.sendall(said)
        with httpx.Client(base_url=impatient.url, timeout=PATIENCE_S, trust_env=False) as another:
            assert another.get("/health/live").status_code == 200
            assert len(process.net_connections("tcp")) <= MOST + 1  # and the socket that listens


def test_whoever_is_being_served_is_not_sent_away_for_others(fresh_server):
    server = fresh_server(MODEL=TINY, MAX_CONNECTIONS=5, MAX_NEW_TOKENS=5000).wait_ready()
    body = b'{"text": "Hello", "stream": true, "max_new_tokens": 5000, "ignore_eos": true}'
    with ExitStack() as held:
        served = [held.enter_context(connect(server)) for _ in range(5)]
        for raw in served:
            raw.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            assert raw.recv(65_536).startswith(b"HTTP/1.1 200 ")
        with connect(server) as raw:
            assert_refused(heard(raw), 503, "too_many_connections")
        assert all(raw.recv(65_536) for raw in served)
    until(lambda: is_live(server))  # those who left make room


def test_bodies_that_do_not_come_keep_nobody_out(fresh_server):
    server = fresh_server(MODEL="", MAX_CONNECTIONS=5)
    until(lambda: is_live(server))
    with ExitStack() as held:
        for _ in range(8):
            raw = held.enter_context(connect(server))
            raw.sendall(POST + b"Content-Length: %d\r\nExpect: 100-continue\r\n\r\n" % len(BODY))
            assert raw.recv(65_536).startswith(b"HTTP/1.1 100 ")  # its body is waited for
        assert is_live(server)


def test_answers_that_nobody_reads_keep_nobody_out(fresh_server):
    server = fresh_server(MODEL="", MAX_CONNECTIONS=5)
    until(lambda: is_live(server))
    with ExitStack() as held:
        for _ in range(5):
            raw = held.enter_context(connect(server))
            raw.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100)
            assert raw.recv(1) == b"H"
        # As soon as the kernel's own buffers are full, no work for them is under way.
        until(lambda: is_live(server))
