"""Server-sent events: deltas, the whole reply, then ``[DONE]``; an error instead of it when it goes wrong."""

from __future__ import annotations

import asyncio
import json

import pytest

from fakes import settle
from inferapi.domain.errors import HistoryNotSaved, OutOfMemory, QueueFull, SessionStoreUnavailable
from turn_actors import running

DONE = "[DONE]"


def events(text: str) -> list:
    """The data of every event; fails on anything that is neither an event nor a comment."""
    blocks = text.split("\n\n")
    assert blocks.pop() == ""
    assert all(block.startswith(("data: ", ": ")) and "\n" not in block for block in blocks)
    data = [block.removeprefix("data: ") for block in blocks if block.startswith("data: ")]
    return [entry if entry == DONE else json.loads(entry) for entry in data]


@pytest.fixture(autouse=True)
async def loaded(stage):
    await stage.load()


async def test_an_infer_stream_is_deltas_the_whole_reply_and_done(client):
    answer = await client.post("/infer", json={"text": "Hi", "stream": True})
    assert answer.status_code == 200
    assert answer.headers["content-type"].split(";")[0] == "text/event-stream"
    assert (answer.headers["x-accel-buffering"], answer.headers["cache-control"]) == ("no", "no-store")
    assert events(answer.text) == [
        {"delta": "Hello"},
        {"delta": " there"},
        {"input": "Hi", "result": "Hello there"},
        DONE,
    ]


async def test_a_chat_stream_is_deltas_the_whole_reply_and_done(client):
    answer = await client.post("/chat", json={"text": "Hi", "session_id": "s1", "stream": True})
    reply = (await client.post("/chat", json={"text": "Hi", "session_id": "s2"})).json()
    assert events(answer.text) == [{"delta": "Hello"}, {"delta": " there"}, reply | {"session_id": "s1"}, DONE]


async def test_the_last_event_has_the_details_when_asked(client):
    answer = await client.post("/infer", json={"text": "Hi", "stream": True, "details": True})
    reply = events(answer.text)[-2]
    assert set(reply) == {"input", "result", "details"}
    assert reply["details"]["usage"]["completion_tokens"] == 2


async def test_text_with_line_breaks_stays_inside_its_event(make_stage, client_of):
    words = ("data: [DONE]\n\n", "\r\n\r\n", ": ping\n", "\u2028é🙂")
    stage = await make_stage(*words)
    await stage.load()
    async with client_of(stage.app()) as client:
        answer = await client.post("/infer", json={"text": "Hi", "stream": True})
    assert events(answer.text) == [
        *({"delta": word} for word in words),
        {"input": "Hi", "result": "".join(words)},
        DONE,
    ]


async def test_an_error_after_the_first_event_is_an_event_without_done(client, stage):
    stage.engine.fail_with = OutOfMemory()
    answer = await client.post("/infer", json={"text": "Hi", "stream": True})
    assert answer.status_code == 200
    *deltas, error = events(answer.text)
    assert deltas == [{"delta": "Hello"}, {"delta": " there"}]
    assert list(error) == ["error"]
    assert (error["error"]["code"], error["error"]["status"]) == ("insufficient_memory", 503)
    assert error["error"]["detail"] == "The model ran out of memory on this request."


async def test_an_unforeseen_error_in_a_stream_is_told_as_one_of_ours(client, stage):
    stage.engine.fail_with = ZeroDivisionError("a secret")
    answer = await client.post("/infer", json={"text": "Hi", "stream": True})
    assert events(answer.text)[-1]["error"]["code"] == "internal_error"
    assert "secret" not in answer.text


async def test_a_turn_that_could_not_be_stored_ends_its_stream_with_the_error(client, stage):
    stage.store.errors["commit"] = HistoryNotSaved(problem="it is full")
    answer = await client.post("/chat", json={"text": "Hi", "session_id": "s1", "stream": True})
    assert [next(iter(event)) for event in events(answer.text)] == ["delta", "delta", "error"]
    assert events(answer.text)[-1]["error"]["code"] == "history_not_saved"


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [(QueueFull(waiting=64), 503, "queue_full"), (ZeroDivisionError(), 500, "internal_error")],
)
async def test_an_error_before_the_first_event_keeps_its_status(make_stage, client_of, error, status, code):
    stage = await make_stage("")
    (await stage.load()).fail_with = error
    async with client_of(stage.app()) as client:
        answer = await client.post("/infer", json={"text": "Hi", "stream": True})
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/problem+json"


async def test_a_stream_without_a_model_keeps_its_status(make_stage, client_of):
    async with client_of((await make_stage()).app()) as client:
        answer = await client.post("/infer", json={"text": "Hi", "stream": True})
    assert (answer.status_code, answer.json()["code"]) == (409, "model_not_loaded")


async def test_an_event_goes_out_before_the_next_one_is_there(stage, call):
    stage.engine.gate.hold()
    request = call(stage.app(), "/infer", {"text": "Hi", "stream": True})
    await settle()
    assert request.body == b'data: {"delta":"Hello"}\n\n'
    stage.engine.gate.open()
    await request.task
    assert events(request.body.decode())[-1] == DONE


async def test_a_ping_goes_out_every_ten_seconds_of_silence(stage, call, loop_time):
    stage.engine.gate.hold()
    request = call(stage.app(), "/infer", {"text": "Hi", "stream": True})
    await loop_time(9.0)
    assert b"ping" not in request.body
    await loop_time(1.5)
    await loop_time(10.5)
    assert request.body == b'data: {"delta":"Hello"}\n\n: ping\n\n: ping\n\n'
    stage.engine.gate.open()
    await request.task
    assert events(request.body.decode())[1:] == [{"delta": " there"}, {"input": "Hi", "result": "Hello there"}, DONE]


async def test_a_stream_whose_model_is_still_loading_pings_until_it_speaks(make_stage, call, loop_time):
    stage = await make_stage(inactivity_threshold_s=10)
    await stage.load()
    await stage.clock.advance(10)
    stage.launcher.gate.hold()
    request = call(stage.app(), "/infer", {"text": "Hi", "stream": True})
    await loop_time(10.5)
    assert (request.status, request.body) == (200, b": ping\n\n")
    stage.launcher.gate.open()
    await request.task
    assert events(request.body.decode())[-1] == DONE


async def test_a_stream_whose_session_was_deleted_ends_with_an_error_and_without_done(client, stage):
    stage.engine.gate.hold()
    asking = asyncio.create_task(client.post("/chat", json={"text": "Hi", "session_id": "s1", "stream": True}))
    await settle()
    await client.delete("/sessions/s1")
    stage.engine.gate.open()
    *deltas, error = events((await asking).text)
    assert deltas == [{"delta": "Hello"}, {"delta": " there"}]
    assert (list(error), error["error"]["code"]) == (["error"], "history_not_saved")


async def test_a_stream_whose_session_went_to_somebody_else_ends_with_an_error_and_without_done(client, stage):
    stage.engine.gate.hold()
    stage.store.errors["renew"] = SessionStoreUnavailable()
    asking = asyncio.create_task(client.post("/chat", json={"text": "Hi", "session_id": "s1", "stream": True}))
    await stage.clock.advance(8)
    async with running(stage.elsewhere):
        stage.engine.gate.open()
        told = events((await asking).text)
    assert told[-1]["error"]["code"] == "history_not_saved"
    assert DONE not in told


async def test_a_stream_that_waits_for_its_session_for_too_long_keeps_its_status(client, stage):
    async with running(stage.elsewhere):
        asking = asyncio.create_task(client.post("/chat", json={"text": "Hi", "session_id": "s1", "stream": True}))
        await stage.clock.advance(10)
        answer = await asking
    assert (answer.status_code, answer.json()["code"]) == (409, "session_busy")
