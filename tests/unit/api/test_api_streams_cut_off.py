"""What is kept for a client that does not read is bounded, and so is the time that a write may take."""

from __future__ import annotations

import asyncio
import json

import pytest

from asgi_scope import post_scope
from fakes import settle
from inferapi.api import event_pump
from inferapi.domain.chat import SessionRef

CHAT = {"model": "gpt2", "messages": [{"role": "user", "content": "Hi"}]}
BODIES = [
    ("/infer", {"text": "Hi"}),
    ("/chat", {"text": "Hi", "session_id": "s1"}),
    ("/v1/chat/completions", CHAT),
    ("/v1/chat/completions", CHAT | {"n": 3}),
    ("/v1/completions", {"model": "gpt2", "prompt": "Hi"}),
]


class Reader:
    """A client whose connection takes so many writes, and more when it is told to."""

    def __init__(self, app, path: str, body: dict, *, writes: int, stream: bool = True) -> None:
        self.bodies: list[bytes] = []
        self.more: list[bool] = []
        self._room = asyncio.Semaphore(writes)
        self._messages = [{"type": "http.request", "body": json.dumps(body | {"stream": stream}).encode()}]
        scope = post_scope(path, (b"content-length", b"1"))
        self.task = asyncio.create_task(app(scope, self._receive, self._send))

    def read(self, writes: int = 1) -> None:
        """Take some more."""
        for _ in range(writes):
            self._room.release()

    async def _receive(self) -> dict:
        if self._messages:
            return self._messages.pop()
        await asyncio.Event().wait()  # it stays connected
        return {"type": "http.disconnect"}

    async def _send(self, message: dict) -> None:
        if message["type"] == "http.response.body":
            await self._room.acquire()
            self.bodies.append(message["body"])
            self.more.append(message["more_body"])


@pytest.fixture
async def reader():
    """Makes a ``Reader``, and ends it after the test."""
    readers: list[Reader] = []

    def make(*args, **kwargs) -> Reader:
        readers.append(Reader(*args, **kwargs))
        return readers[-1]

    yield make
    for one in readers:
        one.task.cancel()
        await asyncio.gather(one.task, return_exceptions=True)


@pytest.mark.parametrize(("path", "body"), BODIES)
async def test_a_write_that_makes_no_progress_ends_the_connection_and_the_work(stage, reader, loop_time, path, body):
    await stage.load()
    stage.engine.gate.hold()
    client = reader(stage.app(), path, body, writes=0)
    await loop_time(29.0)
    assert not client.task.done()
    assert stage.engine.in_flight == body.get("n", 1)
    await loop_time(2.0)
    assert client.task.done()
    assert client.task.exception() is None
    assert (stage.engine.in_flight, stage.engine.cancelled) == (0, body.get("n", 1))
    assert [line.in_flight for line in stage.lifecycle.status()] == [0]
    assert client.bodies == []
    assert await stage.store.get(SessionRef("", "s1")) is None


async def test_each_write_has_that_time_for_itself(stage, reader, loop_time):
    await stage.load()
    stage.engine.gate.hold()
    client = reader(stage.app(), "/infer", {"text": "Hi"}, writes=0)
    await loop_time(25.0)
    client.read()  # of the first event
    await loop_time(25.0)
    stage.engine.gate.open()  # the second write begins, and gets its own time
    await loop_time(25.0)
    client.read(2)
    await settle()
    assert client.task.done()
    assert client.bodies[-1].endswith(b"data: [DONE]\n\n")
    assert client.more[-1] is False


async def test_a_client_too_far_behind_is_cut_off_and_its_work_ended(make_stage, reader, monkeypatch, loop_time):
    monkeypatch.setattr(event_pump, "MOST_HELD_BYTES", 1000)
    stage = await make_stage(*("x" * 100 for _ in range(50)))
    await stage.load()
    stage.engine.gate.hold()
    client = reader(stage.app(), "/v1/chat/completions", CHAT, writes=1)
    await settle()
    assert (stage.engine.in_flight, stage.engine.cancelled) == (0, 1)
    await loop_time(31.0)
    assert client.task.done()
    assert b"[DONE]" not in b"".join(client.bodies)
    assert False not in client.more


async def test_what_one_item_makes_at_once_is_no_fault_of_the_client(make_stage, reader, monkeypatch):
    monkeypatch.setattr(event_pump, "MOST_HELD_BYTES", 4000)
    stage = await make_stage("x" * 400)
    await stage.load()
    client = reader(stage.app(), "/v1/responses", {"model": "gpt2", "input": "Hi"}, writes=1000)
    await client.task
    assert b"event: response.completed" in b"".join(client.bodies)


@pytest.mark.parametrize("writes", [0, 2])
async def test_a_whole_answer_that_nobody_takes_is_cut_off(stage, reader, loop_time, writes):
    text = "x" * 250_000
    app = stage.app(max_body_bytes=300_000)
    await stage.load()
    client = reader(app, "/infer", {"text": text}, writes=writes, stream=False)
    await loop_time(29.0)
    assert not client.task.done()
    await loop_time(2.0)
    assert client.task.done()
    assert client.task.exception() is None
    assert (len(client.bodies), False in client.more) == (writes, False)


async def test_a_whole_answer_goes_out_in_several_writes(stage, reader):
    text = "x" * 150_000
    app = stage.app(max_body_bytes=200_000)
    await stage.load()
    client = reader(app, "/infer", {"text": text}, writes=100, stream=False)
    await client.task
    assert json.loads(b"".join(client.bodies)) == {"input": text, "result": "Hello there"}
    assert max(len(body) for body in client.bodies) == 65_536
    assert client.more == [*([True] * (len(client.more) - 1)), False]


async def test_an_event_longer_than_a_write_goes_out_whole_in_several(stage, reader):
    text = "x" * 150_000
    stage_app = stage.app(max_body_bytes=200_000)
    await stage.load()
    client = reader(stage_app, "/infer", {"text": text}, writes=100)
    await client.task
    whole = b"".join(client.bodies).decode()
    *events, done, nothing = whole.split("\n\n")
    assert json.loads(events[-1].removeprefix("data: ")) == {"input": text, "result": "Hello there"}
    assert (done, nothing) == ("data: [DONE]", "")
    assert max(len(body) for body in client.bodies) == 65_536
    assert client.more == [*([True] * (len(client.more) - 1)), False]


async def test_a_client_that_reads_gets_all_of_a_long_stream(make_stage, reader):
    words = [f" {number}" * 100 for number in range(500)]
    stage = await make_stage(*words)
    await stage.load()
    client = reader(stage.app(), "/v1/completions", {"model": "gpt2", "prompt": "a", "max_tokens": 600}, writes=1000)
    await client.task
    events = b"".join(client.bodies).decode().split("\n\n")[:-2]
    texts = [json.loads(event.removeprefix("data: "))["choices"][0]["text"] for event in events]
    assert texts == [*words, ""]
    assert len(client.bodies) < 30  # what waited went out together
