"""``/sessions``: read, list, delete, fork and rewind."""

from __future__ import annotations

import asyncio

import pytest

from fakes import settle
from inferapi.domain.chat import SessionRef
from inferapi.domain.errors import SessionStoreUnavailable, SessionUnreadable

TALK = ["One?", "Two?", "Three?"]


@pytest.fixture(autouse=True)
async def loaded(stage):
    await stage.load()


@pytest.fixture
async def talked(client):
    """A client who said three things in session s1."""
    for text in TALK:
        await client.post("/chat", json={"text": text, "session_id": "s1"})
    return client


async def said(client, session_id: str = "s1") -> list[str]:
    session = (await client.get(f"/sessions/{session_id}")).json()
    return [message["content"] for message in session["full_history"] if message["role"] == "user"]


def code(answer) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


async def test_a_session_is_told_whole(client, stage):
    reply = (await client.post("/chat", json={"text": "Hi", "session_id": "s1", "details": True})).json()
    answer = await client.get("/sessions/s1")
    now_s = stage.clock.wall_s()
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert answer.json() == {
        "session_id": "s1",
        "title": "Hi",
        "created_at": now_s,
        "used_at": now_s,
        "forgotten_turns": 0,
        "full_history": reply["full_history"],
        "turns": [
            {
                "turn_id": reply["details"]["turn_id"],
                "model": "gpt2",
                "created_at": now_s,
                "prompt_tokens": 3,
                "completion_tokens": 2,
                "finish_reason": "stop",
            }
        ],
    }


async def test_sessions_are_listed_the_last_used_first(client, stage):
    for name in ("a", "b", "c", "a"):
        await client.post("/chat", json={"text": f"I am {name}", "session_id": name})
        await stage.clock.advance(1)
    listed = (await client.get("/sessions")).json()
    assert [(one["session_id"], one["title"], one["turns"]) for one in listed["sessions"]] == [
        ("a", "I am a", 2),
        ("c", "I am c", 1),
        ("b", "I am b", 1),
    ]
    start_s = stage.clock.wall_s() - 4
    assert (listed["sessions"][0]["created_at"], listed["sessions"][0]["used_at"]) == (start_s, start_s + 3)
    assert listed["next_cursor"] is None


async def test_before_anything_was_said_there_are_none(client):
    assert (await client.get("/sessions")).json() == {"sessions": [], "next_cursor": None}


@pytest.mark.parametrize(("query", "sizes"), [({}, [20, 20, 5]), ({"limit": 7}, [7] * 6 + [3]), ({"limit": 45}, [45])])
async def test_paging_tells_every_session_once(client, stage, query, sizes):
    for number in range(45):
        await stage.say("Hi", f"s{number}")
        await stage.clock.advance(number % 2)  # some at the same moment
    pages, cursor = [], None
    while cursor or not pages:
        answer = await client.get("/sessions", params={**query, **({"cursor": cursor} if cursor else {})})
        pages.append([one["session_id"] for one in answer.json()["sessions"]])
        cursor = answer.json()["next_cursor"]
    assert [len(page) for page in pages] == sizes
    assert sorted(name for page in pages for name in page) == sorted(f"s{number}" for number in range(45))


@pytest.mark.parametrize(
    "query",
    [
        {"limit": 0},
        {"limit": 101},
        {"limit": "x"},
        {"cursor": ""},
        {"cursor": "x"},
        {"cursor": "é漢"},
        {"cursor": "bmFufHMx"},  # nan|s1
        {"cursor": "x" * 513},
    ],
)
async def test_a_page_that_is_none_is_refused(talked, query):
    assert code(await talked.get("/sessions", params=query)) == (422, "invalid_request")


async def test_a_session_that_was_deleted_is_gone(talked):
    answer = await talked.delete("/sessions/s1")
    assert (answer.status_code, answer.content) == (204, b"")
    assert code(await talked.get("/sessions/s1")) == (404, "session_not_found")
    assert code(await talked.delete("/sessions/s1")) == (404, "session_not_found")
    assert (await talked.get("/sessions")).json()["sessions"] == []


@pytest.mark.parametrize("body", [None, {}, {"turns": None}, {"turns": 0}, {"turns": 2}, {"turns": 3}])
async def test_a_fork_is_a_session_of_its_own(talked, body):
    count = (body or {}).get("turns")
    kept = TALK if count is None else TALK[:count]
    request = {} if body is None else {"json": body}
    answer = await talked.post("/sessions/s1/fork", **request)
    fork = answer.json()
    assert answer.status_code == 201
    assert (await talked.get(f"/sessions/{fork['session_id']}")).json() == fork
    assert await said(talked, fork["session_id"]) == kept
    await talked.post("/chat", json={"text": "Other", "session_id": fork["session_id"]})
    assert await said(talked, fork["session_id"]) == [*kept, "Other"]
    assert await said(talked) == TALK


async def test_a_fork_that_cannot_be_is_refused(talked):
    await talked.post("/chat", json={"text": "Mine", "session_id": "s2"})
    assert code(await talked.post("/sessions/s1/fork", json={"turns": 4})) == (422, "invalid_request")
    assert code(await talked.post("/sessions/nobody/fork")) == (404, "session_not_found")
    for name in ("s1", "s2"):
        taken = await talked.post("/sessions/s1/fork", json={"session_id": name})
        assert (code(taken), taken.headers["x-should-retry"]) == ((409, "session_exists"), "false")
    assert await said(talked, "s2") == ["Mine"]


@pytest.mark.parametrize("body", [None, {}, {"turns": 1}, {"turns": 3}])
async def test_a_rewind_takes_the_last_turns_back(talked, body):
    request = {} if body is None else {"json": body}
    answer = await talked.post("/sessions/s1/rewind", **request)
    count = (body or {}).get("turns", 1)
    assert answer.status_code == 200
    assert (await talked.get("/sessions/s1")).json() == answer.json()
    assert await said(talked) == TALK[: 3 - count]


async def test_a_rewind_that_cannot_be_is_refused(talked):
    assert code(await talked.post("/sessions/s1/rewind", json={"turns": 4})) == (422, "invalid_request")
    assert code(await talked.post("/sessions/nobody/rewind")) == (404, "session_not_found")
    assert await said(talked) == TALK


@pytest.mark.parametrize("turns", [-1, 1.0, "1", True, 100_001, [1]])
@pytest.mark.parametrize("what", ["fork", "rewind"])
async def test_a_count_that_is_none_is_refused(talked, what, turns):
    assert code(await talked.post(f"/sessions/s1/{what}", json={"turns": turns})) == (422, "invalid_request")
    assert await said(talked) == TALK


@pytest.mark.parametrize("body", [{"turn": 1}, {"turns": 1, "x": 1}, [], "x"])
@pytest.mark.parametrize("what", ["fork", "rewind"])
async def test_an_unknown_field_is_refused(talked, what, body):
    assert code(await talked.post(f"/sessions/s1/{what}", json=body)) == (422, "invalid_request")
    assert await said(talked) == TALK


async def test_a_rewind_during_a_turn_waits_or_is_told_that_it_is_busy(talked, stage, loop_time):
    stage.engine.gate.hold()
    turn = asyncio.create_task(talked.post("/chat", json={"text": "Four?", "session_id": "s1"}))
    await settle()
    impatient = asyncio.create_task(talked.post("/sessions/s1/rewind"))
    await loop_time(10.5)
    busy = await impatient
    assert (code(busy), busy.headers["retry-after"]) == ((409, "session_busy"), "1")
    patient = asyncio.create_task(talked.post("/sessions/s1/rewind"))
    await settle()
    stage.engine.gate.open()
    assert [(await one).status_code for one in (turn, patient)] == [200, 200]
    assert await said(talked) == TALK


@pytest.mark.parametrize("name", ["a b", "%C3%A9", "x" * 129, "a%0A", "%00", "a:b"])
async def test_an_id_that_is_none_is_refused(client, name):
    path = f"/sessions/{name}"
    answers = [await client.get(path), await client.delete(path), await client.get(f"{path}/export")]
    answers += [await client.post(f"{path}/{what}") for what in ("fork", "rewind")]
    assert [code(answer) for answer in answers] == [(422, "invalid_request")] * 5


@pytest.mark.parametrize("name", [".", ".."])
async def test_an_id_that_no_url_can_name_is_refused(client, name):
    assert code(await client.post("/chat", json={"text": "Hi", "session_id": name})) == (422, "invalid_request")


async def test_a_store_that_does_not_answer_may_be_tried_again(talked, stage):
    for method in ("get", "begin", "delete", "page", "create", "system_prompt", "set_system_prompt"):
        stage.store.errors[method] = SessionStoreUnavailable()
    answers = [
        await talked.get("/sessions"),
        await talked.get("/sessions/s1"),
        await talked.get("/sessions/s1/export"),
        await talked.delete("/sessions/s1"),
        await talked.post("/sessions/s1/fork"),
        await talked.post("/sessions/s1/rewind"),
        await talked.get("/system_prompt"),
        await talked.post("/system_prompt", json={"prompt": "x"}),
    ]
    assert [code(answer) for answer in answers] == [(503, "session_store_unavailable")] * len(answers)
    assert {answer.headers["retry-after"] for answer in answers} == {"2"}


async def test_a_session_that_is_damaged_can_be_deleted_and_nothing_else(talked, stage):
    damaged = SessionUnreadable(problem="it is damaged")
    stage.store.errors |= {"get": damaged, "begin": damaged}
    answers = [
        await talked.get("/sessions/s1"),
        await talked.post("/sessions/s1/rewind"),
        await talked.post("/chat", json={"text": "Hi", "session_id": "s1"}),
    ]
    assert [code(answer) for answer in answers] == [(503, "session_unreadable")] * 3
    assert (await talked.delete("/sessions/s1")).status_code == 204
    stage.store.errors.clear()
    assert await stage.store.get(SessionRef("", "s1")) is None
