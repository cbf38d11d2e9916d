"""``Idempotency-Key``: a request that is repeated is answered as it was the first time."""

from __future__ import annotations

import asyncio
import json

import pytest

from fakes import settle
from inferapi.domain.chat import SessionRef
from inferapi.domain.errors import OutOfMemory

KEY = {"Idempotency-Key": "4c9e1b6a"}


@pytest.fixture(autouse=True)
async def loaded(stage):
    await stage.load()


@pytest.mark.parametrize("named", [{"session_id": "s1"}, {}])
async def test_a_repeat_has_the_same_body(client, stage, named):
    first = await client.post("/chat", json={"text": "Hi", **named}, headers=KEY)
    session_id = first.json()["session_id"]
    await client.post("/chat", json={"text": "Later", "session_id": session_id})
    again = await client.post("/chat", json={"text": "Hi", **named}, headers=KEY)
    assert (first.status_code, again.status_code) == (200, 200)
    assert again.content == first.content
    assert len(stage.engine.requests) == 2


@pytest.mark.parametrize("named", [{"session_id": "s1"}, {}])
async def test_two_at_the_same_time_are_one_turn(client, stage, named):
    stage.engine.gate.hold()
    asking = [asyncio.create_task(client.post("/chat", json={"text": "Hi", **named}, headers=KEY)) for _ in range(2)]
    await settle()
    stage.engine.gate.open()
    first, second = [await one for one in asking]
    assert first.content == second.content
    assert len(stage.engine.requests) == 1


async def test_the_details_of_a_repeat_say_that_it_is_one(client):
    body = {"text": "Hi", "session_id": "s1", "details": True}
    first, again = [(await client.post("/chat", json=body, headers=KEY)).json()["details"] for _ in range(2)]
    assert (first["replayed"], again["replayed"]) == (False, True)
    assert again["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    assert again["timings"] is None
    told = ("turn_id", "model", "finish_reason")
    assert [again[name] for name in told] == [first[name] for name in told]


async def test_a_repeat_may_be_a_stream(client):
    first = (await client.post("/chat", json={"text": "Hi", "session_id": "s1"}, headers=KEY)).json()
    again = await client.post("/chat", json={"text": "Hi", "session_id": "s1", "stream": True}, headers=KEY)
    events = [line.removeprefix("data: ") for line in again.text.split("\n\n")[:-1]]
    assert [json.loads(event) for event in events[:-1]] == [{"delta": "Hello there"}, first]
    assert events[-1] == "[DONE]"


async def test_another_text_under_the_same_key_is_refused(client, stage):
    await client.post("/chat", json={"text": "Hi", "session_id": "s1"}, headers=KEY)
    answer = await client.post("/chat", json={"text": "Ho", "session_id": "s1"}, headers=KEY)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert "Idempotency-Key" in answer.json()["detail"]
    assert KEY["Idempotency-Key"] not in answer.text
    assert len((await stage.store.get(SessionRef("", "s1"))).turns) == 1


async def test_a_repeat_after_a_failure_is_answered(client, stage):
    stage.engine.fail_with = OutOfMemory()
    assert (await client.post("/chat", json={"text": "Hi"}, headers=KEY)).status_code == 503
    stage.engine.fail_with = None
    assert (await client.post("/chat", json={"text": "Hi"}, headers=KEY)).json()["result"] == "Hello there"


@pytest.mark.parametrize("key", ["k", "!", "~" * 255, "01234567-89ab-cdef-0123-456789abcdef", 'a"b\\c'])
async def test_any_visible_ascii_is_a_key(client, key):
    answer = await client.post("/chat", json={"text": "Hi"}, headers={"Idempotency-Key": key})
    assert answer.status_code == 200


@pytest.mark.parametrize("key", ["", "a b", "x" * 256, "é".encode(), b"\xff\xfe", "a\tb", b"a\x7f"])
async def test_anything_else_is_no_key(client, stage, key):
    answer = await client.post("/chat", json={"text": "Hi"}, headers={"Idempotency-Key": key})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert stage.engine.requests == []


async def test_who_sends_a_bad_key_is_told_which_header_it_is(client):
    answer = await client.post("/chat", json={"text": "Hi"}, headers={"Idempotency-Key": "a b"})
    assert "idempotency-key" in answer.json()["detail"].lower()


async def test_the_manual_knows_the_header(client):
    (header,) = (await client.get("/openapi.json")).json()["paths"]["/chat"]["post"]["parameters"]
    assert (header["name"].lower(), header["in"], header["required"]) == ("idempotency-key", "header", False)
