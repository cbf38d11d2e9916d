"""Sessions to take along: ``GET /sessions/{id}/export`` and ``POST /sessions/import``."""

from __future__ import annotations

import json

import pytest

from inferapi.domain.chat import SessionLimits, SessionRef
from inferapi.settings import Settings
from session_contract import make_turn

TURN = {
    "turn_id": "t1",
    "user": "Hi",
    "assistant": "Hello",
    "model": "gpt2",
    "created_at": 1_700_000_000.25,
    "prompt_tokens": 3,
    "completion_tokens": 1,
    "finish_reason": "stop",
}
DOCUMENT = {
    "format": "inferapi.session",
    "version": 1,
    "session_id": "s1",
    "system_prompt": "Be brief.",
    "created_at": 1_700_000_000.25,
    "turns": [TURN],
}
ODD = 'line\nbreak\r\t"quotes" \\ \x00 \x1f \u2028 \ufeff héllo 漢字 🙂 {"json": [1]} <|im_end|>'
BAD_DOCUMENTS = [
    ("format", "other.session"),
    ("format", None),
    ("version", 2),
    ("version", 0),
    ("version", "1"),
    ("version", True),
    ("version", 1.0),
    ("session_id", "a b"),
    ("session_id", ""),
    ("session_id", 5),
    ("system_prompt", None),
    ("system_prompt", 5),
    ("system_prompt", "x" * 65_537),
    ("created_at", "yesterday"),
    ("created_at", -1),
    ("created_at", 1e300),
    ("turns", None),
    ("turns", {}),
    ("turns", "x"),
    ("turns", [5]),
    ("turns", [[]]),
    ("turns", [TURN] * 4),
    ("owner", "ann"),
    ("forgotten_turns", 1),
]
BAD_TURNS = [
    ("turn_id", ""),
    ("turn_id", "a/b"),
    ("turn_id", 5),
    ("user", None),
    ("user", 5),
    ("user", ["Hi"]),
    ("assistant", True),
    ("model", "x" * 513),
    ("created_at", "2024-01-01"),
    ("created_at", True),
    ("created_at", -0.5),
    ("created_at", 253_402_300_800),
    ("prompt_tokens", -1),
    ("prompt_tokens", 3.0),
    ("prompt_tokens", "3"),
    ("completion_tokens", True),
    ("completion_tokens", 10**10),
    ("finish_reason", "error"),
    ("finish_reason", None),
    ("idempotency_key", "k"),
    ("role", "user"),
]


@pytest.fixture
async def stage(make_stage):
    """With sessions of at most three turns and 4096 bytes."""
    stage = await make_stage(limits=SessionLimits(3, 4096))
    await stage.load()
    return stage


@pytest.fixture
async def client(stage, client_of):
    async with client_of(stage.app(max_body_bytes=200_000)) as client:
        yield client


async def outcome(client, document: dict) -> tuple[int, str | None]:
    answer = await client.post("/sessions/import", json=document)
    return answer.status_code, answer.json().get("code")


async def test_what_was_exported_deleted_and_imported_is_the_same_conversation(client, stage):
    for text in (ODD.replace("\x00", ""), "Two?"):  # no client may send it; a model may write it, see below
        await client.post("/chat", json={"text": text, "session_id": "s1"})
        await stage.clock.advance(1.5)
    before = (await client.get("/sessions/s1")).json()
    exported = await client.get("/sessions/s1/export")
    await client.delete("/sessions/s1")
    imported = await client.post("/sessions/import", content=exported.content, headers=dict(exported.headers))
    assert (exported.status_code, imported.status_code) == (200, 201)
    after = (await client.get("/sessions/s1")).json()
    assert imported.json() == after
    moments = {"created_at": stage.clock.wall_s(), "used_at": stage.clock.wall_s()}
    assert after == before | moments
    assert after["full_history"][1]["content"] == ODD.replace("\x00", "")
    again = (await client.get("/sessions/s1/export")).json()
    assert again == exported.json() | {"created_at": stage.clock.wall_s()}


async def test_what_a_model_wrote_can_be_imported_whatever_it_is(client):
    await client.post("/chat", json={"text": "Hi", "session_id": "s1"})
    document = (await client.get("/sessions/s1/export")).json() | {"session_id": "s2"}
    document["turns"][0]["assistant"] = ODD
    imported = await client.post("/sessions/import", json=document)
    assert (imported.status_code, imported.json()["full_history"][2]["content"]) == (201, ODD)


async def test_what_was_imported_can_be_talked_to(client, stage):
    await client.post("/sessions/import", json=DOCUMENT | {"system_prompt": "Be kind."})
    await client.post("/chat", json={"text": "And?", "session_id": "s1"})
    heard = [(message.role, message.content) for message in stage.engine.requests[0].prompt.messages]
    assert heard == [("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello"), ("user", "And?")]


async def test_an_export_is_a_file_to_keep(client):
    await client.post("/sessions/import", json=DOCUMENT)
    answer = await client.get("/sessions/s1/export")
    assert answer.headers["content-disposition"] == 'attachment; filename="session-s1.json"'
    assert answer.json() == DOCUMENT | {"created_at": answer.json()["created_at"]}


async def test_an_import_without_an_id_gets_one_that_nobody_can_guess(client):
    document = {name: value for name, value in DOCUMENT.items() if name not in {"session_id", "created_at"}}
    names = {(await client.post("/sessions/import", json=document)).json()["session_id"] for _ in range(5)}
    assert (len(names), {len(name) for name in names}) == (5, {32})


async def test_an_import_without_turns_is_a_beginning(client):
    answer = await client.post("/sessions/import", json=DOCUMENT | {"turns": []})
    assert (answer.status_code, answer.json()["turns"], answer.json()["title"]) == (201, [], "")


async def test_the_same_turn_may_be_there_twice(client):
    assert await outcome(client, DOCUMENT | {"turns": [TURN, TURN]}) == (201, None)


async def test_nothing_is_imported_over_a_session(client):
    await client.post("/chat", json={"text": "Mine", "session_id": "s1"})
    assert await outcome(client, DOCUMENT) == (409, "session_exists")
    assert (await client.get("/sessions/s1")).json()["title"] == "Mine"


async def test_a_document_that_is_none_is_refused(client, stage):
    told = {repr((name, value)): await outcome(client, DOCUMENT | {name: value}) for name, value in BAD_DOCUMENTS}
    assert told == dict.fromkeys(told, (422, "invalid_request"))
    assert await stage.store.get(SessionRef("", "s1")) is None


async def test_a_document_without_what_it_needs_is_refused(client):
    for name in ("format", "version", "system_prompt", "turns"):
        document = {key: value for key, value in DOCUMENT.items() if key != name}
        assert await outcome(client, document) == (422, "invalid_request")


async def test_a_turn_that_is_none_is_refused(client, stage):
    told = {}
    for name, value in BAD_TURNS:
        told[repr((name, value))] = await outcome(client, DOCUMENT | {"turns": [TURN, TURN | {name: value}]})
    for name in TURN.keys() - {"finish_reason"}:
        turn = {key: value for key, value in TURN.items() if key != name}
        told[name] = await outcome(client, DOCUMENT | {"turns": [turn]})
    assert told == dict.fromkeys(told, (422, "invalid_request"))
    assert await stage.store.get(SessionRef("", "s1")) is None


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
async def test_a_moment_that_is_no_number_is_refused(client, number):
    for field in ('"created_at": 1700000000.25, "turns"', '"created_at": 1700000000.25, "prompt_tokens"'):
        text = json.dumps(DOCUMENT)
        assert field in text
        body = text.replace(field, field.replace("1700000000.25", number))
        answer = await client.post("/sessions/import", content=body, headers={"Content-Type": "application/json"})
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")


async def test_as_much_as_a_session_holds_is_imported_and_no_byte_more(client):
    for excess, expected in (("x", (422, "invalid_request")), ("", (201, None))):
        large = TURN | {"user": "é" * 1000, "assistant": "x" * 2089 + excess}  # and 7 bytes of the other one
        assert await outcome(client, DOCUMENT | {"turns": [TURN, large]}) == expected


async def test_what_was_sent_is_not_repeated_in_a_refusal(client):
    answer = await client.post("/sessions/import", json=DOCUMENT | {"turns": [TURN | {"user": ["s3cr3t"]}]})
    assert "s3cr3t" not in answer.text
    assert "turns.0.user" in answer.json()["detail"]


async def test_by_default_a_full_session_can_be_imported_again(make_stage, client_of):
    defaults = {name: Settings.model_fields[name].default for name in ("max_body_bytes", "session_max_bytes")}
    stage = await make_stage(limits=SessionLimits(1000, defaults["session_max_bytes"]))
    turn = make_turn(user="x", assistant="y" * (defaults["session_max_bytes"] // 4 - 1))
    await stage.sessions.restore(SessionRef("", "s1"), "", [turn] * 4)
    async with client_of(stage.app(max_body_bytes=defaults["max_body_bytes"])) as client:
        exported = await client.get("/sessions/s1/export")
        await client.delete("/sessions/s1")
        imported = await client.post("/sessions/import", content=exported.content, headers=dict(exported.headers))
    assert imported.status_code == 201
