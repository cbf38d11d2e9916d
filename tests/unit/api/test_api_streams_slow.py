"""A client that reads slowly waits for nobody but itself, and nobody waits for it."""

from __future__ import annotations

import asyncio
import json

import pytest

from asgi_scope import post_scope
from fakes import settle
from inferapi.domain.chat import SessionRef


class SlowClient:
    """A request whose connection takes no event until ``read``."""

    def __init__(self, app, path: str, body: dict) -> None:
        self.bodies: list[tuple[bytes, bool]] = []
        self._messages = [{"type": "http.request", "body": json.dumps(body | {"stream": True}).encode()}]
        self._reads, self._left = asyncio.Event(), asyncio.Event()
        scope = post_scope(path, (b"content-length", b"1"))
        self.task = asyncio.create_task(app(scope, self._receive, self._send))

    def read(self) -> None:
        """From now on take all."""
        self._reads.set()

    def leave(self) -> None:
        """Close the connection; a server lets go then of whoever waits to write."""
        self._left.set()
        self._reads.set()

    async def _receive(self) -> dict:
        if self._messages:
            return self._messages.pop()
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict) -> None:
        if message["type"] == "http.response.body":
            await self._reads.wait()
            self.bodies.append((message["body"], message["more_body"]))


@pytest.fixture
async def slow(make_stage):
    """Makes a stage whose engine says 20 words, and a slow client of it; ends the client."""
    clients: list[SlowClient] = []

    async def make(path: str, **body):
        stage = await make_stage("Hello", *(f" {number}" for number in range(19)))
        await stage.load()
        clients.append(SlowClient(stage.app(), path, {"text": "Hi", **body}))
        return stage, clients[-1]

    yield make
    for client in clients:
        client.task.cancel()
        await asyncio.gather(client.task, return_exceptions=True)


async def test_the_answer_to_a_slow_client_ends_and_is_stored_when_the_model_is_done(slow):
    stage, client = await slow("/chat", session_id="s1")
    await settle()
    assert not client.task.done()
    assert [line.in_flight for line in stage.lifecycle.status()] == [0]
    assert len((await stage.store.get(SessionRef("", "s1"))).turns) == 1


async def test_a_slow_client_gets_everything_in_order_and_what_waited_in_few_writes(slow):
    _, client = await slow("/infer")
    await settle()
    client.read()
    await client.task
    whole = b"".join(body for body, _ in client.bodies).decode()
    *events, done, nothing = whole.split("\n\n")
    deltas = [json.loads(event.removeprefix("data: ")).get("delta") for event in events]
    assert deltas == ["Hello", *(f" {number}" for number in range(19)), None]
    assert (done, nothing) == ("data: [DONE]", "")
    assert len(client.bodies) <= 4
    assert [more for _, more in client.bodies] == [*([True] * (len(client.bodies) - 1)), False]


async def test_no_pings_pile_up_before_a_client_that_reads_slowly(slow, loop_time):
    stage, client = await slow("/infer")
    stage.engine.gate.hold()
    for _ in range(2):  # not so long that the client is cut off
        await loop_time(10.5)
    client.read()
    await settle()
    assert b"".join(body for body, _ in client.bodies).count(b": ping") == 0
    await loop_time(10.5)
    assert b"".join(body for body, _ in client.bodies).count(b": ping") == 1
    stage.engine.gate.open()
    await client.task


async def test_a_slow_client_that_leaves_ends_its_answer(slow):
    stage, client = await slow("/infer")
    stage.engine.gate.hold()
    await settle()
    assert stage.engine.in_flight == 1
    client.leave()
    await settle()
    assert client.task.done()
    assert (stage.engine.in_flight, stage.engine.cancelled) == (0, 1)
    assert [more for _, more in client.bodies] == [True]
