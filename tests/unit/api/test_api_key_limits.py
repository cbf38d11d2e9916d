"""Limits of a key over HTTP: what counts, for how long, and how a refusal is told."""

from __future__ import annotations

import hashlib

import httpx
import pytest

from fakes import settle
from inferapi.api.auth import ApiKey
from inferapi.application.key_limits import KeyLimits

SECRETS = {name: f"{name}-key-0123456789abcdef" for name in ("ann", "bob", "root", "both")}
SCOPES = {"ann": {"infer"}, "bob": {"infer"}, "root": {"admin"}, "both": {"infer", "admin"}}
KEYS = tuple(
    ApiKey(name, hashlib.sha256(secret.encode()).digest(), frozenset(SCOPES[name])) for name, secret in SECRETS.items()
)
ANSWERS = [
    ("/infer", {"text": "Hi"}),
    ("/chat", {"text": "Hi"}),
    ("/v1/chat/completions", {"model": "gpt2", "messages": [{"role": "user", "content": "Hi"}]}),
    ("/v1/completions", {"model": "gpt2", "prompt": "Hi"}),
    ("/v1/responses", {"model": "gpt2", "input": "Hi"}),
]
WHOLE_AND_STREAMED = [
    pytest.param(path, body | stream, id=f"{path} {'streamed' if stream else 'whole'}")
    for path, body in ANSWERS
    for stream in ({}, {"stream": True})
]


def bearer(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {SECRETS[name]}"}


class World:
    """An application with limits, and who is counted in it."""

    def __init__(self, stage, **limits) -> None:
        self.limits = KeyLimits(stage.clock, **limits)
        self.app = stage.app(keys=KEYS, limits=self.limits)


@pytest.fixture
async def one_at_once(stage) -> World:
    await stage.load()
    return World(stage, max_concurrency=1)


@pytest.fixture
async def two_a_minute(stage) -> World:
    await stage.load()
    return World(stage, requests_per_minute=2)


@pytest.mark.parametrize(("path", "body"), WHOLE_AND_STREAMED)
async def test_an_answer_counts_until_it_has_been_sent(stage, one_at_once, call, path, body):
    stage.engine.gate.hold()
    running = call(one_at_once.app, path, body, headers=bearer("ann"))
    await settle()
    assert (running.task.done(), one_at_once.limits.under_way("ann")) == (False, 1)
    refused = call(one_at_once.app, path, body, headers=bearer("ann"))
    other = call(one_at_once.app, path, body, headers=bearer("bob"))
    await settle()
    assert (refused.status, one_at_once.limits.under_way("bob"), stage.engine.in_flight) == (429, 1, 2)
    stage.engine.gate.open()
    await settle()
    assert (running.status, other.status) == (200, 200)
    assert running.task.done()
    assert [one_at_once.limits.under_way(name) for name in ("ann", "bob")] == [0, 0]


@pytest.mark.parametrize(("path", "body"), WHOLE_AND_STREAMED)
async def test_an_answer_whose_client_left_counts_no_more(stage, one_at_once, call, path, body):
    stage.engine.gate.hold()
    running = call(one_at_once.app, path, body, headers=bearer("ann"))
    await settle()
    assert one_at_once.limits.under_way("ann") == 1
    await running.leave()
    assert (running.task.done(), one_at_once.limits.under_way("ann"), stage.engine.in_flight) == (True, 0, 0)


@pytest.mark.parametrize(("path", "body"), WHOLE_AND_STREAMED)
async def test_an_answer_that_broke_counts_no_more(stage, one_at_once, call, path, body):
    stage.engine.fail_with = ZeroDivisionError()
    broken = call(one_at_once.app, path, body, headers=bearer("ann"))
    await settle()
    assert (broken.task.done(), one_at_once.limits.under_way("ann")) == (True, 0)


async def test_a_request_that_is_cancelled_from_outside_counts_no_more(stage, one_at_once, call):
    stage.engine.gate.hold()
    running = call(one_at_once.app, "/infer", {"text": "Hi"}, headers=bearer("ann"))
    await settle()
    running.task.cancel()
    await settle()
    assert (running.task.cancelled(), one_at_once.limits.under_way("ann")) == (True, 0)


@pytest.mark.parametrize(
    "sent", [{"content": b"{"}, {"json": {"x": 1}}, {"json": {"text": 5}}, {"json": {"text": "Hi", "model": "../x"}}]
)
async def test_a_request_that_is_refused_for_its_body_counts_no_more(one_at_once, client_of, sent):
    headers = bearer("ann") | {"Content-Type": "application/json"}
    async with client_of(one_at_once.app) as client:
        answers = [await client.post("/infer", headers=headers, **sent) for _ in range(3)]
    assert {answer.status_code for answer in answers} <= {400, 422}
    assert one_at_once.limits.under_way("ann") == 0


async def test_embeddings_count_while_they_are_made(stage, one_at_once, call):
    stage.engine.gate.hold()
    body = {"model": "gpt2", "input": "Hi"}
    running = call(one_at_once.app, "/v1/embeddings", body, headers=bearer("ann"))
    await settle()
    refused = call(one_at_once.app, "/v1/embeddings", body, headers=bearer("ann"))
    await settle()
    stage.engine.gate.open()
    await settle()
    assert (running.status, refused.status, one_at_once.limits.under_way("ann")) == (200, 429, 0)
    assert [request.salt for request in stage.engine.embedded] == ["ann"]


async def test_a_request_is_counted_once_however_often_its_key_is_asked_for(stage, client_of):
    await stage.load()
    world = World(stage, requests_per_minute=3)
    async with client_of(world.app) as client:
        statuses = [
            (await client.post("/infer", json={"text": "Hi"}, headers=bearer("ann"))).status_code for _ in range(4)
        ]
    assert statuses == [200, 200, 200, 429]


async def ask_twice_and_once_more(world: World, client_of, path: str, body: dict[str, object]) -> httpx.Response:
    async with client_of(world.app) as client:
        for _ in range(2):
            assert (await client.post(path, json=body, headers=bearer("ann"))).status_code == 200
        return await client.post(path, json=body, headers=bearer("ann") | {"X-Request-ID": "r1"})


async def test_native_clients_are_told_as_problem_details(stage, two_a_minute, client_of):
    refused = await ask_twice_and_once_more(two_a_minute, client_of, "/infer", {"text": "Hi"})
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "60")
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.json() == {
        "type": "urn:inferapi:error:rate_limit_exceeded",
        "title": "Too Many Requests",
        "status": 429,
        "detail": "This API key may send 2 requests a minute; the next one in 60 s.",
        "instance": "urn:inferapi:request:r1",
        "code": "rate_limit_exceeded",
        "requests_per_minute": 2,
        "retry_after_s": 60,
    }
    assert len(stage.engine.requests) == 2


async def test_openais_clients_are_told_in_openais_shape(two_a_minute, client_of):
    body = {"model": "gpt2", "messages": [{"role": "user", "content": "Hi"}]}
    refused = await ask_twice_and_once_more(two_a_minute, client_of, "/v1/chat/completions", body)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "60")
    assert refused.json() == {
        "error": {
            "message": "This API key may send 2 requests a minute; the next one in 60 s.",
            "type": "rate_limit_error",
            "param": None,
            "code": "rate_limit_exceeded",
        }
    }


async def test_too_many_at_once_may_come_again_in_a_second(stage, one_at_once, call, client_of):
    stage.engine.gate.hold()
    call(one_at_once.app, "/infer", {"text": "Hi"}, headers=bearer("ann"))
    await settle()
    async with client_of(one_at_once.app) as client:
        refused = await client.post("/infer", json={"text": "Hi"}, headers=bearer("ann"))
    told = (refused.status_code, refused.json()["code"], refused.headers["retry-after"])
    assert told == (429, "concurrency_limit_exceeded", "1")


async def test_a_refused_request_is_not_read_and_one_with_a_wrong_key_is_not_counted(stage, two_a_minute, client_of):
    async with client_of(two_a_minute.app) as client:
        for _ in range(5):
            assert (await client.post("/infer", json={"text": "Hi"})).status_code == 401
            assert (await client.post("/infer", json={"text": "Hi"}, headers=bearer("root"))).status_code == 403
        for _ in range(2):
            assert (await client.post("/infer", json={"text": "Hi"}, headers=bearer("ann"))).status_code == 200
        headers = bearer("ann") | {"Content-Type": "application/json"}
        assert (await client.post("/infer", content=b"{", headers=headers)).status_code == 429
    assert len(stage.engine.requests) == 2


async def test_who_operates_is_never_refused_and_what_any_key_may_read_counts_by_the_minute(
    stage, two_a_minute, client_of
):
    async with client_of(two_a_minute.app) as client:
        operated = [
            (await client.post("/load_model", json={"model_name": "gpt2"}, headers=bearer("both"))).status_code
            for _ in range(5)
        ]
        read = [(await client.get("/status", headers=bearer("both"))).status_code for _ in range(3)]
        health = [(await client.get("/health/live", headers=bearer("both"))).status_code for _ in range(5)]
    assert (operated, read, health) == ([200] * 5, [200, 200, 429], [200] * 5)


async def test_what_any_key_may_read_is_there_while_an_answer_is_under_way(stage, one_at_once, call, client_of):
    stage.engine.gate.hold()
    call(one_at_once.app, "/infer", {"text": "Hi"}, headers=bearer("ann"))
    await settle()
    async with client_of(one_at_once.app) as client:
        answers = [(await client.get(path, headers=bearer("ann"))).status_code for path in ("/status", "/v1/models")]
    assert answers == [200, 200]


async def test_without_keys_all_clients_are_one(stage, client_of):
    await stage.load()
    app = stage.app(limits=KeyLimits(stage.clock, requests_per_minute=2))
    statuses = []
    for _ in range(3):
        async with client_of(app) as client:
            statuses.append((await client.post("/infer", json={"text": "Hi"})).status_code)
    assert statuses == [200, 200, 429]


async def test_a_minute_later_a_key_may_ask_again(stage, two_a_minute, client_of):
    refused = await ask_twice_and_once_more(two_a_minute, client_of, "/infer", {"text": "Hi"})
    await stage.clock.advance(float(refused.headers["retry-after"]))
    async with client_of(two_a_minute.app) as client:
        assert (await client.post("/infer", json={"text": "Hi"}, headers=bearer("ann"))).status_code == 200
