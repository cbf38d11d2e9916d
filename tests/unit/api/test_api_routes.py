"""Every route that there is, in the manual or not, is closed unless it is named here as open."""

from __future__ import annotations

import hashlib
import re

import pytest
from fastapi.routing import iter_route_contexts

from inferapi.api.auth import ApiKey

SECRETS = {"infer": "key-of-infer-0123456789", "admin": "key-of-admin-0123456789"}
KEYS = tuple(
    ApiKey(name, hashlib.sha256(secret.encode()).digest(), frozenset({name})) for name, secret in SECRETS.items()
)
OPEN = {
    ("GET", "/health/live"),
    ("GET", "/health/ready"),
    ("GET", "/docs"),
    ("GET", "/docs/oauth2-redirect"),
    ("GET", "/openapi.json"),
}
ANY_KEY = {
    ("GET", "/status"),
    ("GET", "/events"),
    ("GET", "/metrics"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{model:path}"),
}
ADMIN = {
    ("POST", "/load_model"),
    ("POST", "/change_model"),
    ("POST", "/unload_model"),
    ("POST", "/change_inactivity_threshold"),
    ("POST", "/system_prompt"),
}
INFER = {
    ("POST", "/infer"),
    ("POST", "/chat"),
    ("GET", "/system_prompt"),
    ("GET", "/sessions"),
    ("POST", "/sessions/import"),
    ("GET", "/sessions/{session_id}"),
    ("DELETE", "/sessions/{session_id}"),
    ("GET", "/sessions/{session_id}/export"),
    ("POST", "/sessions/{session_id}/fork"),
    ("POST", "/sessions/{session_id}/rewind"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/embeddings"),
    ("POST", "/v1/responses"),
    ("GET", "/v1/responses/{response_id}"),
    ("DELETE", "/v1/responses/{response_id}"),
    ("GET", "/v1/responses/{response_id}/input_items"),
}


@pytest.fixture
async def app(stage):
    await stage.load()
    return stage.app(keys=KEYS)


@pytest.fixture
async def client(app, client_of):
    async with client_of(app) as client:
        yield client


def routes_of(app) -> set[tuple[str, str]]:
    """Every route with each of its methods; HEAD goes with GET."""
    found = set()
    for route in iter_route_contexts(app.routes):
        assert route.methods, f"{route.path} takes any method: it must be looked at by itself"
        found |= {(method, route.path) for method in route.methods - {"HEAD"}}
    return found


async def answers(client, routes: set[tuple[str, str]], key: str | None) -> dict[tuple[str, str], tuple[int, str]]:
    """What each route answers to an empty body: the status, and the code where it is an error."""
    headers = {} if key is None else {"Authorization": f"Bearer {SECRETS[key]}"}
    told = {}
    for method, path in sorted(routes):
        answer = await client.request(method, re.sub(r"\{[^}]+\}", "x", path), headers=headers)
        body = answer.json() if "json" in answer.headers.get("content-type", "") else {}
        told[method, path] = (answer.status_code, body.get("error", body).get("code", ""))
    return told


def test_every_route_is_known_here(app):
    """A new one is put into one of the sets, by somebody who thought about who may use it."""
    assert routes_of(app) == OPEN | ANY_KEY | ADMIN | INFER


async def test_without_a_key_every_route_is_closed_but_the_open_ones(app, client):
    closed = routes_of(app) - OPEN
    assert await answers(client, closed, None) == dict.fromkeys(closed, (401, "unauthenticated"))


async def test_the_open_routes_are_open(client):
    assert await answers(client, OPEN, None) == dict.fromkeys(OPEN, (200, ""))


async def test_a_key_of_infer_may_use_no_route_of_the_operators(client):
    assert await answers(client, ADMIN, "infer") == dict.fromkeys(ADMIN, (403, "insufficient_scope"))


async def test_a_key_of_admin_may_use_no_route_that_talks(client):
    assert await answers(client, INFER, "admin") == dict.fromkeys(INFER, (403, "insufficient_scope"))


async def test_each_key_comes_further_than_the_door_of_its_own_routes(client):
    told = await answers(client, INFER | ANY_KEY, "infer") | await answers(client, ADMIN | ANY_KEY, "admin")
    assert {status for status, _ in told.values()} & {401, 403, 500} == set()


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "PUT", "PATCH", "TRACE"])
async def test_a_method_that_a_route_does_not_have_is_no_way_around(app, client, method):
    for _, path in sorted(routes_of(app) - OPEN):
        answer = await client.request(method, re.sub(r"\{[^}]+\}", "x", path))
        assert answer.status_code in {401, 404, 405}, path
