"""Connections within limits, by uvicorn's own protocol on a scripted transport: who waits how long for whom."""

from __future__ import annotations

import asyncio
import json
import logging
import re

import h11
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from uvicorn.config import Config
from uvicorn.server import ServerState

from fakes import settle
from inferapi.cli.connections import ConnectionLimits, connections_within
from inferapi.cli.request_parser import MOST_HEAD_BYTES, MOST_HEADERS

GET = b"GET /health/live HTTP/1.1\r\nHost: test\r\n\r\n"
POST = b"POST /infer HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"

PIECES = [
    GET,
    POST,
    b"GET /x HTTP/1.1\r\n",
    b"HEAD /x HTTP/1.1\r\n",
    b"CONNECT x:1 HTTP/1.1\r\n",
    b"POST /infer HTTP/1.0\r\n",
    b"Host: x\r\n",
    b"Content-Length: 3\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Connection: close\r\n",
    b"Connection: Upgrade\r\nUpgrade: websocket\r\n",
    b"Expect: 100-continue\r\n",
    b"x: y\r\n" * MOST_HEADERS,
    b"x" * MOST_HEAD_BYTES,
    b"\r\n",
    b"abc",
    b"3\r\nabc\r\n",
    b"0\r\n\r\n",
]


class FakeTransport(asyncio.Transport):
    """A client's end that has taken what was written, until it leaves."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 5), "sockname": ("127.0.0.1", 6)})
        self.written = b""
        self.protocol: asyncio.Protocol
        self._closing = False
        self.unfetched_bytes = 0  # as a test says

    def write(self, data: bytes) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    def abort(self) -> None:
        self.unfetched_bytes = 0
        self.close()

    def get_write_buffer_size(self) -> int:
        return self.unfetched_bytes

    def pause_reading(self) -> None:
        """Nothing comes unless a test sends it."""

    def resume_reading(self) -> None:
        """Likewise."""


class Client:
    """Sends bytes, and reads responses as any client would."""

    def __init__(self, protocol) -> None:
        self.transport = FakeTransport()
        self.protocol = self.transport.protocol = protocol
        protocol.connection_made(self.transport)

    async def send(self, data: bytes) -> None:
        if not self.transport.is_closing():
            self.protocol.data_received(data)
        await settle()

    @property
    def is_cut_off(self) -> bool:
        return self.transport.is_closing()

    def answers(self, *methods: str) -> list[tuple[int, dict[str, str], bytes]]:
        """Every response, to requests of these methods or to GET: status, headers, body."""
        parser = h11.Connection(h11.CLIENT)
        parser.receive_data(self.transport.written)
        told = []
        for method in (*methods, *["GET"] * 9):
            if parser.our_state is not h11.IDLE:
                break
            parser.send(h11.Request(method=method, target="/", headers=[("Host", "test")]))
            parser.send(h11.EndOfMessage())
            status, headers, body = 0, {}, b""
            while not isinstance(event := parser.next_event(), type):  # NEED_DATA and PAUSED are classes
                if isinstance(event, h11.Response):
                    status, headers = event.status_code, {k.decode(): v.decode() for k, v in event.headers}
                elif isinstance(event, h11.Data):
                    body += bytes(event.data)
                elif isinstance(event, h11.EndOfMessage):
                    told.append((status, headers, body))
                    break
                else:
                    return told
            if parser.our_state is h11.DONE and parser.their_state is h11.DONE:
                parser.start_next_cycle()
        return told

    def refusal(self) -> tuple[int, str]:
        """The only answer: its status and code."""
        ((status, headers, body),) = self.answers()
        assert headers["connection"] == "close"
        assert headers["content-type"] == "application/problem+json"
        told = json.loads(body)
        assert told["instance"] == f"urn:inferapi:request:{headers['x-request-id']}"
        return status, told["code"]


class App:
    """Answers at once, whatever is asked; ``/infer`` reads the body first, ``/wait`` waits to be told."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.gone: list[str] = []
        self.bodies: list[bytes] = []
        self.go = asyncio.Event()

    async def __call__(self, scope, receive, send) -> None:
        path = scope["path"]
        self.paths.append(path)
        if path == "/wait":
            await self.go.wait()
        body, more = b"", path == "/infer"
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.gone.append(path)
                more = False
            body += message.get("body", b"")
            more = message.get("more_body", False)
        self.bodies.append(body)
        headers = [(b"content-length", b"2"), (b"content-type", b"text/plain")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"OK"})


@pytest.fixture
def application() -> App:
    return App()


@pytest.fixture
def counted() -> list[str]:
    """The codes of the refusals that were counted."""
    return []


@pytest.fixture
async def connect(application, counted):
    """Makes clients of a server that has room for three, and is patient for 20 s."""
    config = Config(application, ws="none", log_config=None, access_log=False, timeout_keep_alive=75)
    config.load()
    state, clients = ServerState(), []
    limits = ConnectionLimits(most_connections=3, receive_timeout_s=20.0)
    protocol = connections_within(limits, lambda error: counted.append(error.code))

    def make() -> Client:
        clients.append(Client(protocol(config, state, {})))
        return clients[-1]

    yield make
    for client in clients:
        client.transport.close()
    application.go.set()
    await settle()
    assert state.connections == set()
    assert state.tasks == set()
    assert protocol.idle == {}


async def test_a_request_is_answered_and_the_next_one_too(connect, application):
    client = connect()
    await client.send(GET)
    await client.send(POST + b"Content-Length: 4\r\n\r\nbody")
    assert [(status, body) for status, _, body in client.answers("GET", "POST")] == [(200, b"OK"), (200, b"OK")]
    assert application.bodies == [b"", b"body"]
    assert not client.is_cut_off


async def test_who_says_nothing_is_let_go_without_a_word(connect, loop_time):
    client = connect()
    await loop_time(19)
    assert not client.is_cut_off
    await loop_time(2)
    assert (client.is_cut_off, client.transport.written) == (True, b"")


async def test_headers_that_come_a_byte_at_a_time_are_refused_when_their_time_is_over(connect, loop_time, application):
    client = connect()
    for number in range(6):
        await client.send(GET[number : number + 1])
        await loop_time(4)
    assert client.is_cut_off
    assert client.refusal() == (408, "receive_timeout")
    assert application.paths == []


async def test_the_next_request_has_no_more_time_than_the_first(connect, loop_time):
    client = connect()
    await client.send(GET)
    await loop_time(60)
    assert not client.is_cut_off  # it was asked to stay
    await client.send(GET[:9])
    await loop_time(19)
    assert not client.is_cut_off
    await loop_time(2)
    assert [status for status, _, _ in client.answers()] == [200, 408]


async def test_half_a_request_behind_a_whole_one_has_no_more_time_either(connect, loop_time):
    client = connect()
    await client.send(GET + GET[:9])
    await loop_time(21)
    assert [status for status, _, _ in client.answers()] == [200, 408]


async def test_who_keeps_quiet_after_an_answer_is_let_go_after_the_keep_alive(connect, loop_time):
    client = connect()
    await client.send(GET)
    await loop_time(74)
    assert not client.is_cut_off
    await loop_time(2)
    assert client.is_cut_off


async def test_a_body_that_nobody_reads_has_its_time_too(connect, loop_time, application):
    client = connect()
    await client.send(GET[:-2] + b"Content-Length: 1000\r\n\r\n")
    assert [status for status, _, _ in client.answers()] == [200]
    for _ in range(4):
        assert not client.is_cut_off
        await client.send(b"x")
        await loop_time(5.5)
    assert client.is_cut_off
    assert application.paths == ["/health/live"]


async def test_a_body_that_nobody_reads_and_that_comes_whole_does_no_harm(connect, loop_time):
    client = connect()
    await client.send(GET[:-2] + b"Content-Length: 4\r\n\r\nbo")
    await client.send(b"dy")
    await loop_time(5)
    await client.send(GET)
    assert [status for status, _, _ in client.answers()] == [200, 200]
    await loop_time(60)
    assert not client.is_cut_off


async def test_who_waits_for_an_answer_is_not_cut_off(connect, loop_time, application):
    client = connect()
    await client.send(GET.replace(b"/health/live", b"/wait"))
    await loop_time(1000)
    assert not client.is_cut_off
    application.go.set()
    await settle()
    assert [status for status, _, _ in client.answers()] == [200]


@pytest.mark.parametrize("at_once", [True, False])
async def test_headers_that_are_too_large_are_refused_however_they_come(connect, application, at_once):
    client = connect()
    head = GET[:-2] + b"X-Long: " + b"x" * MOST_HEAD_BYTES + b"\r\n\r\n"
    for piece in [head] if at_once else [head[start : start + 1000] for start in range(0, len(head), 1000)]:
        await client.send(piece)
    assert client.is_cut_off
    assert client.refusal() == (431, "head_too_large")
    assert application.paths == []


async def test_too_many_headers_are_refused_and_as_many_as_may_be_are_not(connect, application):
    head = GET[:-2] + b"".join(b"x-%d: y\r\n" % number for number in range(MOST_HEADERS - 1))
    client, other = connect(), connect()
    await client.send(head + b"\r\n")
    await other.send(head + b"one: more\r\n\r\n")
    assert [status for status, _, _ in client.answers()] == [200]
    assert other.refusal() == (431, "head_too_large")
    assert application.paths == ["/health/live"]


async def test_who_asks_with_head_for_too_much_is_just_cut_off(connect, application):
    client = connect()
    await client.send(b"HEAD" + GET[3:-2] + b"x: y\r\n" * MOST_HEADERS + b"\r\n")
    assert client.is_cut_off
    assert application.paths == []


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",  # somebody speaks TLS
        b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",  # no host
        b"GET /\x00 HTTP/1.1\r\nHost: test\r\n\r\n",
        b"POST /infer HTTP/1.1\r\nHost: test\r\nContent-Length: -1\r\n\r\n",
        b"POST /infer HTTP/1.1\r\nHost: test\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
        b"POST /infer HTTP/1.1\r\nHost: test\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST /infer HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: gzip\r\n\r\n",
    ],
)
async def test_what_is_no_http_is_told_so_without_repeating_it(connect, application, sent, caplog):
    caplog.set_level(logging.DEBUG)
    client = connect()
    await client.send(sent)
    assert client.is_cut_off
    assert client.refusal() == (400, "malformed_http")
    assert application.paths == []
    assert "Traceback" not in caplog.text


async def test_a_body_that_breaks_off_the_rules_is_told_so_and_whoever_reads_it_learns_that_it_ends(
    connect, application
):
    client = connect()
    await client.send(POST + b"Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n")
    await client.send(b"no chunk\r\n")
    assert client.refusal() == (400, "malformed_http")
    assert application.gone == ["/infer"]


async def test_garbage_after_an_answer_only_ends_the_connection(connect, caplog):
    caplog.set_level(logging.DEBUG)
    client = connect()
    await client.send(GET[:-2] + b"Transfer-Encoding: chunked\r\n\r\n")
    await client.send(b"no chunk\r\n")
    assert [status for status, _, _ in client.answers()] == [200]
    assert client.is_cut_off
    assert "Traceback" not in caplog.text


async def test_a_body_in_too_many_pieces_is_refused_and_one_in_many_is_not(connect, application):
    head = POST + b"Transfer-Encoding: chunked\r\n\r\n"
    client, other = connect(), connect()
    await client.send(head + b"1\r\nx\r\n" * 4096 + b"0\r\n\r\n")
    await other.send(head + b"1\r\nx\r\n" * 6000)
    assert [status for status, _, _ in client.answers("POST")] == [200]
    assert application.bodies[0] == b"x" * 4096
    assert other.refusal() == (400, "malformed_http")


async def test_reads_are_small_so_that_no_client_holds_the_event_loop(connect, application):
    client = connect()
    body = b"x" * 100_000
    rest = POST + b"Content-Length: %d\r\n\r\n" % len(body) + body
    reads = 0
    while rest:
        room = client.protocol.get_buffer(-1)
        taken, rest = rest[: len(room)], rest[len(room) :]
        room[: len(taken)] = taken
        client.protocol.buffer_updated(len(taken))
        reads += 1
        await settle()
    assert reads >= 6
    assert application.bodies == [body]


async def test_one_more_than_there_is_room_for_takes_the_place_of_the_one_that_waited_longest(connect):
    first, second, third = connect(), connect(), connect()
    await second.send(GET)
    await first.send(GET)
    fourth = connect()
    assert [client.is_cut_off for client in (first, second, third, fourth)] == [False, False, True, False]
    fifth = connect()
    assert [client.is_cut_off for client in (first, second, fourth, fifth)] == [False, True, False, False]
    await fifth.send(GET)
    assert [status for status, _, _ in fifth.answers()] == [200]


async def test_what_is_refused_here_is_counted_and_what_is_only_closed_is_not(connect, loop_time, counted):
    quiet, slow, odd = connect(), connect(), connect()
    await slow.send(GET[:9])
    await odd.send(b"\r\n\r\n")
    await loop_time(21)
    assert [client.is_cut_off for client in (quiet, slow, odd)] == [True] * 3
    assert counted == ["malformed_http", "receive_timeout"]


async def test_who_sends_a_body_makes_room_and_whoever_reads_it_learns_that_it_ends(connect, application):
    clients = [connect() for _ in range(3)]
    for client in clients:
        await client.send(POST + b"Content-Length: 4\r\n\r\nb")
    newcomer = connect()
    await settle()
    assert [client.is_cut_off for client in (*clients, newcomer)] == [True, False, False, False]
    assert application.gone == ["/infer"]


async def test_who_fetches_an_answer_makes_room_after_all_who_have_theirs(connect):
    fetching, second, third = connect(), connect(), connect()
    fetching.transport.unfetched_bytes = 1_000_000
    for client in (fetching, second, third):
        await client.send(GET)
    newcomers = [connect() for _ in range(2)]
    for client in newcomers:
        client.transport.unfetched_bytes = 5
        await client.send(GET)
    assert [client.is_cut_off for client in (fetching, second, third)] == [False, True, True]
    assert not connect().is_cut_off
    assert [client.is_cut_off for client in (fetching, *newcomers)] == [True, False, False]


async def test_who_fetches_64_kib_in_time_is_waited_for_and_who_does_not_is_cut_off(connect, loop_time):
    client = connect()
    client.transport.unfetched_bytes = 150_000
    await client.send(GET)
    await loop_time(15)
    client.transport.unfetched_bytes -= 65_536
    await loop_time(15)
    assert not client.is_cut_off  # 30 s
    client.transport.unfetched_bytes -= 65_535
    await loop_time(21)
    assert client.is_cut_off


async def test_who_has_fetched_all_may_ask_again(connect, loop_time):
    client = connect()
    client.transport.unfetched_bytes = 1000
    await client.send(GET)
    client.transport.unfetched_bytes = 0
    await loop_time(40)
    await client.send(GET)
    assert [status for status, _, _ in client.answers()] == [200, 200]
    assert not client.is_cut_off


async def test_what_is_sent_behind_an_answer_that_nobody_fetches_is_not_served(connect, application):
    client = connect()
    client.transport.unfetched_bytes = 1000
    await client.send(GET * 3)
    assert application.paths == ["/health/live"]
    assert [status for status, _, _ in client.answers()] == [200]
    assert client.transport.is_closing()


async def test_who_is_being_served_makes_room_for_nobody(connect, application):
    waiting = [connect() for _ in range(3)]
    for client in waiting:
        await client.send(GET.replace(b"/health/live", b"/wait"))
    one_more = connect()
    assert one_more.refusal() == (503, "too_many_connections")
    assert one_more.answers()[0][1]["retry-after"] == "1"
    application.go.set()
    await settle()
    assert [[status for status, _, _ in client.answers()] for client in waiting] == [[200]] * 3
    another = connect()  # those who were answered have time to go
    await another.send(GET)
    assert [status for status, _, _ in another.answers()] == [200]


async def test_a_flood_of_connections_at_once_leaves_no_more_than_there_is_room_for(connect):
    clients = [connect() for _ in range(100)]
    assert sum(not client.is_cut_off for client in clients) == 3
    assert not clients[-1].is_cut_off


async def test_an_upgrade_is_not_granted_and_not_worth_a_line_in_the_log(connect, caplog):
    caplog.set_level(logging.WARNING)
    client = connect()
    for name in (b"websocket", b"h2c"):
        await client.send(GET[:-2] + b"Connection: Upgrade\r\nUpgrade: " + name + b"\r\n\r\n")
    await client.send(GET)
    assert [status for status, _, _ in client.answers()] == [200, 200, 200]
    assert caplog.text == ""


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(PIECES) | st.binary(min_size=1, max_size=4), max_size=12))
async def test_whatever_is_sent_no_answer_is_a_5xx_and_nothing_breaks(connect, pieces):
    client = connect()
    for piece in pieces:
        await client.send(piece)
    statuses = re.findall(rb"HTTP/1\.1 (\d{3}) ", client.transport.written)
    assert set(statuses) <= {b"100", b"200", b"400", b"431"}
    client.transport.close()
    await settle()
