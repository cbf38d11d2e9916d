"""API keys: who is let in, to what, and that owners do not see each other."""

from __future__ import annotations

import hashlib
import re

import httpx
import pytest

from inferapi.api.auth import ApiKey

SECRETS = {name: f"{name}-key-0123456789abcdef" for name in ("ann", "bob", "root", "both")}
SCOPES = {"ann": {"infer"}, "bob": {"infer"}, "root": {"admin"}, "both": {"infer", "admin"}}
PUBLIC = {"/health/live", "/health/ready"}
ADMIN = {"/load_model", "/change_model", "/unload_model", "/change_inactivity_threshold"}
INFER = {"/infer", "/chat", "/v1/chat/completions", "/v1/completions", "/v1/embeddings"}


def key(name: str) -> ApiKey:
    return ApiKey(name, hashlib.sha256(SECRETS[name].encode()).digest(), frozenset(SCOPES[name]))


def bearer(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {SECRETS[name]}"}


def code(answer: httpx.Response) -> tuple[int, str]:
    told = answer.json()
    return answer.status_code, told.get("error", told)["code"]  # OpenAI's shape under /v1


@pytest.fixture
async def app(stage):
    await stage.load()
    return stage.app(keys=tuple(key(name) for name in SECRETS))


@pytest.fixture
async def client(app, client_of):
    async with client_of(app) as client:
        yield client


def routes(app) -> list[tuple[str, str]]:
    """Every route of the manual, with an id in its path."""
    paths = app.openapi()["paths"]
    return [
        (method.upper(), re.sub(r"\{[a-z_]+\}", "s1", path)) for path, methods in paths.items() for method in methods
    ]


async def test_every_route_but_the_public_ones_asks_for_a_key(app, client):
    asked = [(method, path) for method, path in routes(app) if path not in PUBLIC]
    assert len(asked) >= 16
    answers = {(method, path): await client.request(method, path) for method, path in asked}
    told = {route: (*code(answer), answer.headers.get("www-authenticate")) for route, answer in answers.items()}
    assert told == dict.fromkeys(asked, (401, "unauthenticated", "Bearer"))


@pytest.mark.parametrize("path", sorted([*PUBLIC, "/docs", "/docs/oauth2-redirect", "/openapi.json"]))
async def test_health_and_the_manual_are_open(client, path):
    assert (await client.get(path)).status_code == 200


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        SECRETS["ann"],
        f"Basic {SECRETS['ann']}",
        f"Token {SECRETS['ann']}",
        "Bearer wrong-key-0123456789abcdef",
        f"Bearer {SECRETS['ann']}x",
        f"Bearer {SECRETS['ann'][:-1]}",
        f"Bearer {SECRETS['ann']} {SECRETS['ann']}",
        f"Bearer {SECRETS['ann'].upper()}",
        f"Bearer {hashlib.sha256(SECRETS['ann'].encode()).hexdigest()}",
        "Bearer clé-漢字".encode(),
        b"Bearer \xff\xfe\xed\xa0\x80",
        b"\xff\xfe",
        "Bearer " + "x" * 10_000,
    ],
)
async def test_what_is_no_key_is_refused(client, stage, header):
    answer = await client.post("/infer", json={"text": "Hi"}, headers={"Authorization": header})
    assert code(answer) == (401, "unauthenticated")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert SECRETS["ann"] not in answer.text
    assert stage.engine.requests == []


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
async def test_the_scheme_may_be_written_in_any_case(client, scheme):
    answer = await client.post("/infer", json={"text": "Hi"}, headers={"Authorization": f"{scheme} {SECRETS['ann']}"})
    assert answer.status_code == 200


@pytest.mark.parametrize("sent", [{"content": b"{"}, {"json": {"x": 1}}, {"json": []}])
async def test_without_a_key_nobody_is_told_what_is_wrong_with_a_body(client, sent):
    headers = {"Content-Type": "application/json"}
    answers = [await client.post(path, headers=headers, **sent) for path in ("/infer", "/chat", "/sessions/import")]
    assert [code(answer) for answer in answers] == [(401, "unauthenticated")] * 3


async def test_a_key_of_infer_may_not_change_models_or_the_system_prompt(client, stage):
    answers = {path: await client.post(path, json={}, headers=bearer("ann")) for path in (*ADMIN, "/system_prompt")}
    assert {path: code(answer) for path, answer in answers.items()} == dict.fromkeys(
        answers, (403, "insufficient_scope")
    )
    assert (await client.get("/system_prompt", headers=bearer("ann"))).json() == {"prompt": "Be brief."}
    assert stage.launcher.live == ["gpt2"]


async def test_a_key_of_admin_may_not_talk(app, client, stage):
    private = ("/sessions", "/v1/responses")
    talking = [(method, path) for method, path in routes(app) if path in INFER or path.startswith(private)]
    assert len(talking) == 16
    answers = {route: await client.request(*route, headers=bearer("root")) for route in talking}
    assert {route: code(answer) for route, answer in answers.items()} == dict.fromkeys(
        talking, (403, "insufficient_scope")
    )
    assert stage.engine.requests == []


async def test_each_scope_opens_its_routes(client):
    prompt = await client.post("/system_prompt", json={"prompt": "Hm."}, headers=bearer("root"))
    chat = await client.post("/chat", json={"text": "Hi"}, headers=bearer("both"))
    load = await client.post("/load_model", json={"model_name": "gpt2"}, headers=bearer("both"))
    assert [answer.status_code for answer in (prompt, chat, load)] == [200, 200, 200]


@pytest.mark.parametrize("name", sorted(SECRETS))
async def test_any_key_may_see_what_is_going_on(client, name):
    assert [(await client.get(path, headers=bearer(name))).status_code for path in ("/status", "/events")] == [200, 200]
    assert (await client.get("/v1/models", headers=bearer(name))).status_code == 200


async def test_without_keys_everything_is_open(stage, client_of):
    app = stage.app()
    async with client_of(app) as client:
        answers = [await client.request(method, path) for method, path in routes(app)]
        ignored = await client.get("/status", headers={"Authorization": "Bearer x"})
    assert {answer.status_code for answer in answers} & {401, 403} == set()
    assert ignored.status_code == 200


async def test_a_session_of_another_owner_looks_as_one_that_never_was(client):
    await client.post("/chat", json={"text": "My secret", "session_id": "hers"}, headers=bearer("ann"))
    before = await client.get("/sessions/hers", headers=bearer("ann"))
    requests = [
        ("GET", "", None),
        ("DELETE", "", None),
        ("GET", "/export", None),
        ("POST", "/fork", None),
        ("POST", "/fork", {"turns": 5}),
        ("POST", "/rewind", None),
        ("POST", "/rewind", {"turns": 5}),
    ]
    for method, what, body in requests:
        sent = {} if body is None else {"json": body}
        hers, nobodys = [
            await client.request(method, f"/sessions/{name}{what}", headers=bearer("bob"), **sent)
            for name in ("hers", "nobodys")
        ]
        assert code(hers) == (404, "session_not_found")
        assert hers.content == nobodys.content
        told = [{k: v for k, v in answer.headers.items() if k != "x-request-id"} for answer in (hers, nobodys)]
        assert told[0] == told[1]
    assert (await client.get("/sessions/hers", headers=bearer("ann"))).content == before.content


async def test_the_id_of_another_owners_session_is_free(client, stage):
    await client.post("/chat", json={"text": "My secret", "session_id": "s1"}, headers=bearer("ann"))
    before = await client.get("/sessions/s1", headers=bearer("ann"))
    answer = await client.post("/chat", json={"text": "Hi", "session_id": "s1"}, headers=bearer("bob"))
    assert [message["content"] for message in answer.json()["full_history"]] == ["Be brief.", "Hi", "Hello there"]
    exported = (await client.get("/sessions/s1/export", headers=bearer("bob"))).json()
    await client.delete("/sessions/s1", headers=bearer("bob"))
    imported = await client.post("/sessions/import", json=exported, headers=bearer("bob"))
    forked = await client.post("/sessions/s1/fork", json={"session_id": "s2"}, headers=bearer("bob"))
    assert (imported.status_code, forked.status_code) == (201, 201)
    assert (await client.get("/sessions/s1", headers=bearer("ann"))).content == before.content
    assert (await client.get("/sessions/s2", headers=bearer("ann"))).status_code == 404
    assert [request.salt for request in stage.engine.requests] == ["ann", "bob"]


async def test_each_owner_sees_its_own_sessions(client):
    for name in ("ann", "bob"):
        await client.post("/chat", json={"text": "Hi", "session_id": f"of-{name}"}, headers=bearer(name))
    lists = [
        (await client.get("/sessions", headers=bearer(name))).json()["sessions"] for name in ("ann", "bob", "both")
    ]
    assert [[one["session_id"] for one in sessions] for sessions in lists] == [["of-ann"], ["of-bob"], []]


async def test_the_same_idempotency_key_of_two_owners_is_two_turns(client, stage):
    headers = {"Idempotency-Key": "k"}
    ids = [
        (await client.post("/chat", json={"text": "Hi"}, headers=bearer(name) | headers)).json()["session_id"]
        for name in ("ann", "bob", "ann")
    ]
    assert (len(stage.engine.requests), ids[0] == ids[2], ids[0] == ids[1]) == (2, True, False)


async def test_the_manual_says_that_a_key_is_needed(app):
    manual = app.openapi()
    assert [scheme["scheme"].lower() for scheme in manual["components"].get("securitySchemes", {}).values()] == [
        "bearer"
    ]
