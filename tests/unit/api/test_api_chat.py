"""``POST /chat`` and ``/system_prompt``: their bodies exact to the key."""

from __future__ import annotations

import asyncio
import re

import pytest

from fakes import settle
from inferapi.domain.chat import SessionLimits, SessionRef
from inferapi.domain.errors import HistoryNotSaved, SessionStoreUnavailable


@pytest.fixture(autouse=True)
async def loaded(stage):
    await stage.load()


async def test_chat_answers_the_session_the_result_and_the_whole_history(client):
    answer = await client.post("/chat", json={"text": "Hi", "session_id": "abc123"})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert answer.json() == {
        "session_id": "abc123",
        "result": "Hello there",
        "full_history": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello there"},
        ],
    }


async def test_the_history_grows_with_every_turn(client):
    await client.post("/chat", json={"text": "One?", "session_id": "abc123"})
    answer = await client.post("/chat", json={"text": "Two?", "session_id": "abc123"})
    history = answer.json()["full_history"]
    assert [message["content"] for message in history] == ["Be brief.", "One?", "Hello there", "Two?", "Hello there"]


async def test_a_chat_without_a_session_starts_one_that_can_be_continued(client):
    first = (await client.post("/chat", json={"text": "One?"})).json()
    assert re.fullmatch(r"[A-Za-z0-9._~-]{22,128}", first["session_id"])
    second = await client.post("/chat", json={"text": "Two?", "session_id": first["session_id"]})
    assert len(second.json()["full_history"]) == 5


async def test_a_chat_may_be_longer_than_an_infer(client, stage):
    await client.post("/chat", json={"text": "Hi"})
    sampling = stage.engine.requests[0].sampling
    assert (sampling.max_new_tokens, sampling.temperature, sampling.repetition_penalty) == (512, 0.7, 1.1)


async def test_details_are_added_when_asked(client, stage):
    answer = await client.post("/chat", json={"text": "Hi", "session_id": "s1", "details": True})
    body = answer.json()
    assert set(body) == {"session_id", "result", "full_history", "details"}
    assert body["details"]["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "total_tokens": 5,
        "dropped_turns": 0,
        "cached_tokens": 0,
    }
    assert (body["details"]["finish_reason"], body["details"]["model"]) == ("stop", "gpt2")
    (turn,) = (await stage.store.get(SessionRef("", "s1"))).turns
    assert (body["details"]["turn_id"], body["details"]["replayed"]) == (turn.turn_id, False)


async def test_turns_that_were_left_out_are_told_in_the_details(client):
    body = {"text": "word " * 300, "session_id": "s1", "details": True}
    await client.post("/chat", json=body)
    answer = await client.post("/chat", json=body)
    assert answer.json()["details"]["usage"]["dropped_turns"] == 1
    assert len(answer.json()["full_history"]) == 5


async def test_system_prompt_says_whom_it_affects_and_does(client):
    await client.post("/chat", json={"text": "Hi", "session_id": "old"})
    answer = await client.post("/system_prompt", json={"prompt": "You are a knowledgeable tutor."})
    assert (answer.status_code, answer.json()) == (
        200,
        {"message": "System prompt updated (will affect new sessions only)"},
    )
    prompts = [
        (await client.post("/chat", json={"text": "Hi", "session_id": name})).json()["full_history"][0]["content"]
        for name in ("old", "new")
    ]
    assert prompts == ["Be brief.", "You are a knowledgeable tutor."]


async def test_the_system_prompt_can_be_read(client):
    default = await client.get("/system_prompt")
    assert (default.status_code, default.json()) == (200, {"prompt": "Be brief."})
    for prompt in ("You are a pirate.", "", "x" * 4000):
        await client.post("/system_prompt", json={"prompt": prompt})
        assert (await client.get("/system_prompt")).json() == {"prompt": prompt}


@pytest.mark.parametrize("body", [{}, {"prompt": 5}, {"prompt": None}, {"prompt": "x", "y": 1}])
async def test_a_system_prompt_that_is_none_is_refused(client, body):
    answer = await client.post("/system_prompt", json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")


async def test_a_store_that_does_not_answer_touches_chats_only(client, stage):
    stage.store.errors["begin"] = SessionStoreUnavailable()
    chat = await client.post("/chat", json={"text": "Hi", "session_id": "s1"})
    infer = await client.post("/infer", json={"text": "Hi", "session_id": "s1"})
    assert (chat.status_code, chat.json()["code"]) == (503, "session_store_unavailable")
    assert (chat.headers["retry-after"], infer.status_code) == ("2", 200)


async def test_a_turn_that_could_not_be_stored_is_no_success(client, stage):
    stage.store.errors["commit"] = HistoryNotSaved(problem="it is full")
    answer = await client.post("/chat", json={"text": "Hi", "session_id": "s1"})
    assert (answer.status_code, answer.json()["code"]) == (503, "history_not_saved")
    assert answer.headers["x-should-retry"] == "false"


async def test_a_session_that_is_busy_for_too_long_may_be_tried_again(client, stage, loop_time):
    stage.engine.gate.hold()
    first = asyncio.create_task(client.post("/chat", json={"text": "One?", "session_id": "s1"}))
    await settle()
    second = asyncio.create_task(client.post("/chat", json={"text": "Two?", "session_id": "s1"}))
    await loop_time(10.5)
    answer = await second
    assert (answer.status_code, answer.json()["code"]) == (409, "session_busy")
    assert answer.headers["retry-after"] == "1"
    stage.engine.gate.open()
    assert (await first).status_code == 200


async def test_a_session_deleted_during_a_turn_is_told_to_who_asked(client, stage):
    stage.engine.gate.hold()
    turn = asyncio.create_task(client.post("/chat", json={"text": "One?", "session_id": "s1"}))
    await settle()
    assert (await client.delete("/sessions/s1")).status_code == 204
    stage.engine.gate.open()
    answer = await turn
    assert (answer.status_code, answer.json()["code"]) == (503, "history_not_saved")
    assert (await client.get("/sessions/s1")).status_code == 404


async def test_turns_that_were_forgotten_are_no_longer_in_the_history(make_stage, client_of):
    stage = await make_stage(limits=SessionLimits(2, 10**6))
    await stage.load()
    async with client_of(stage.app()) as client:
        for number in range(4):
            answer = await client.post("/chat", json={"text": f"{number}?", "session_id": "s1"})
            assert answer.status_code == 200
        session = (await client.get("/sessions/s1")).json()
    said = [message["content"] for message in answer.json()["full_history"]]
    assert said == ["Be brief.", "2?", "Hello there", "3?", "Hello there"]
    assert session["forgotten_turns"] == 2


async def test_a_text_larger_than_a_session_is_refused(make_stage, client_of):
    stage = await make_stage(limits=SessionLimits(2, 100))
    await stage.load()
    async with client_of(stage.app()) as client:
        answer = await client.post("/chat", json={"text": "x" * 101})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert "at most 100 bytes" in answer.json()["detail"]
