"""Bodies that take their time: told so when it is over, and nothing is kept for them."""

from __future__ import annotations

import asyncio
import json

import pytest

from asgi_scope import post_scope
from fakes import settle

BODY = json.dumps({"text": "Hi"}).encode()


class SlowBody:
    """A request whose body comes as it is sent, piece by piece."""

    def __init__(self, app, path: str) -> None:
        self._pieces: asyncio.Queue[dict] = asyncio.Queue()
        self.sent: list[dict] = []
        scope = post_scope(path, (b"transfer-encoding", b"chunked"))
        self.task = asyncio.create_task(app(scope, self._pieces.get, self._send))

    async def leave(self) -> None:
        self._pieces.put_nowait({"type": "http.disconnect"})
        await settle()

    async def send(self, piece: bytes, *, more: bool = True) -> None:
        self._pieces.put_nowait({"type": "http.request", "body": piece, "more_body": more})
        await settle()

    @property
    def answer(self) -> tuple[int, dict, dict] | None:
        """Status, headers and JSON."""
        if not self.sent:
            return None
        headers = {name.decode().lower(): value.decode() for name, value in self.sent[0]["headers"]}
        return self.sent[0]["status"], headers, json.loads(b"".join(part.get("body", b"") for part in self.sent))

    async def _send(self, message: dict) -> None:
        self.sent.append(message)


@pytest.fixture
async def slow(stage):
    """Makes such a request, and ends it after the test."""
    requests: list[SlowBody] = []

    def make(path: str = "/infer") -> SlowBody:
        requests.append(SlowBody(stage.app(), path))
        return requests[-1]

    await stage.load()
    yield make
    for request in requests:
        request.task.cancel()
        await asyncio.gather(request.task, return_exceptions=True)


async def test_a_body_that_does_not_come_whole_in_time_is_refused_and_the_connection_closed(slow, stage, loop_time):
    request = slow()
    await request.send(BODY[:5])
    await loop_time(19)
    assert request.answer is None
    await loop_time(2)
    status, headers, told = request.answer
    assert (status, told["code"], told["timeout_s"]) == (408, "receive_timeout", 20.0)
    assert headers["connection"] == "close"
    assert request.task.done()
    assert stage.engine.requests == []


async def test_a_byte_now_and_then_does_not_give_it_more_time(slow, loop_time):
    request = slow()
    for number in range(5):
        await request.send(BODY[number : number + 1])
        await loop_time(4.5)
    assert request.answer[0] == 408


async def test_who_leaves_before_it_is_whole_has_left_and_sent_nothing_wrong(slow, stage):
    request = slow()
    await request.send(BODY[:5])
    await request.leave()
    assert request.task.done()
    assert request.sent[0]["status"] == 499
    assert stage.engine.requests == []


async def test_under_v1_it_is_told_in_the_shape_that_is_known_there(slow, loop_time):
    request = slow("/v1/chat/completions")
    await loop_time(21)
    status, headers, told = request.answer
    assert (status, told["error"]["code"], headers["connection"]) == (408, "receive_timeout", "close")


async def test_who_sent_all_in_time_may_wait_for_the_answer(slow, stage, loop_time):
    stage.engine.gate.hold()
    request = slow()
    await request.send(BODY[:5])
    await loop_time(19)
    await request.send(BODY[5:], more=False)
    await loop_time(60)
    assert request.answer is None
    stage.engine.gate.open()
    await asyncio.wait_for(request.task, 30)
    status, headers, told = request.answer
    assert (status, told["input"], "connection" in headers) == (200, "Hi", False)


async def test_a_body_beyond_the_limit_closes_the_connection_though_it_was_not_declared(slow):
    request = slow()
    for _ in range(5):
        await request.send(b"x" * 1000)
    status, headers, told = request.answer
    assert (status, told["code"], headers["connection"]) == (413, "body_too_large", "close")
