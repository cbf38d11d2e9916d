"""Errors under ``/v1``: OpenAI's shape, the codes of all routes, and what clients need to try again or not."""

from __future__ import annotations

import hashlib
from string import Formatter

import httpx
import pytest

from inferapi.api.auth import ApiKey
from inferapi.api.errors import ANSWERS, problem_response
from inferapi.api.openai.errors import openai_response
from inferapi.domain.errors import (
    ContextWindowExceeded,
    EmbeddingsRefused,
    InferapiError,
    InvalidRequest,
    ModelNameInvalid,
    ModelNotFound,
    leaves,
)

CHAT = "/v1/chat/completions"
HI = {"model": "gpt2", "messages": [{"role": "user", "content": "Hi"}]}
JSON = {"Content-Type": "application/json"}
SECRET = "k3y-of-ann-0123456789"
WRONG_OF_CLIENTS = {"InvalidRequest", "ModelNameInvalid", "ContextWindowExceeded", "EmbeddingsRefused"}
TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


def make(leaf: type[InferapiError]) -> InferapiError:
    return leaf(**{field: 7 for _, field, _, _ in Formatter().parse(leaf.text) if field})


def body(response) -> dict:
    return httpx.Response(200, content=response.body).json()


@pytest.mark.parametrize("leaf", list(leaves()))
def test_every_leaf_is_told_in_openais_shape_with_its_own_code(leaf):
    response = openai_response(make(leaf))
    told = body(response)
    assert list(told) == ["error"]
    assert set(told["error"]) == {"message", "type", "param", "code"}
    assert told["error"]["code"] == leaf.code
    assert told["error"]["message"]
    assert response.headers["content-type"] == "application/json"


def test_statuses_are_those_of_all_routes_but_for_what_clients_got_wrong():
    statuses = {leaf.__name__: openai_response(make(leaf)).status_code for leaf in leaves()}
    expected = {leaf.__name__: answer.status for leaf, answer in ANSWERS.items()}
    assert statuses == expected | dict.fromkeys(WRONG_OF_CLIENTS, 400)


def test_the_type_follows_from_the_status():
    told = {}
    for leaf in leaves():
        response = openai_response(make(leaf))
        told.setdefault(response.status_code, set()).add(body(response)["error"]["type"])
    expected = {
        status: {TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")} for status in told
    }
    assert told == expected


def test_whether_to_try_again_is_told_as_everywhere():
    names = ("retry-after", "x-should-retry", "www-authenticate")
    for leaf in leaves():
        here, there = openai_response(make(leaf)).headers, problem_response(make(leaf)).headers
        assert [here.get(name) for name in names] == [there.get(name) for name in names]


@pytest.mark.parametrize(
    ("error", "param"),
    [
        (InvalidRequest(problem="x", param="stop[1]"), "stop[1]"),
        (InvalidRequest(problem="tools: the template knows none"), "tools"),
        (InvalidRequest(problem="text.format: it is too large"), "text.format"),
        (InvalidRequest(problem="messages[0].content: no"), "messages[0].content"),
        (InvalidRequest(problem="Two words: no"), None),
        (InvalidRequest(problem="nothing is named"), None),
        (ModelNameInvalid(), "model"),
        (ModelNotFound(model="a/b"), "model"),
        (EmbeddingsRefused(model="a/b", reason="it cannot"), "model"),
    ],
)
def test_the_parameter_is_named_where_there_is_one(error, param):
    assert body(openai_response(error))["error"]["param"] == param


def test_the_context_window_is_told_in_the_words_by_which_clients_know_it():
    error = ContextWindowExceeded(prompt_tokens=9000, max_new_tokens=16, context_window_tokens=8192)
    message = body(openai_response(error))["error"]["message"]
    assert message.startswith("This model's maximum context length is 8192 tokens. However, you requested 9000 tokens")


@pytest.mark.parametrize(
    ("method", "path", "status", "kind", "code"),
    [
        ("GET", "/v1/nothing", 404, "not_found_error", "not_found"),
        ("GET", "/v1", 404, "not_found_error", "not_found"),
        ("GET", CHAT, 405, "invalid_request_error", "method_not_allowed"),
        ("POST", "/v1/models", 405, "invalid_request_error", "method_not_allowed"),
        ("POST", CHAT, 400, "invalid_request_error", "invalid_request"),
    ],
)
async def test_errors_of_the_framework_have_the_same_shape(client, method, path, status, kind, code):
    answer = await client.request(method, path, headers={"X-Request-ID": "abc"})
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["code"], error["param"]) == (status, kind, code, None)
    assert (answer.headers["content-type"], answer.headers["x-request-id"]) == ("application/json", "abc")


async def test_paths_beside_it_keep_their_shape(client):
    for path in ("/v10/models", "/v", "/infer/v1"):
        answer = await client.get(path)
        assert answer.headers["content-type"] == "application/problem+json"
    assert (await client.get(CHAT)).headers["allow"] == "POST"


@pytest.mark.parametrize(
    ("content", "headers", "status", "code"),
    [
        (b"{", JSON, 400, "invalid_json"),
        (b'{"model": "\xff"}', JSON, 400, "invalid_json"),
        ('{"model": "gpt2"}'.encode("utf-16"), JSON, 400, "invalid_json"),
        (b"[" * 4000, JSON, 400, "invalid_json"),
        (b"{}", {"Content-Type": "text/plain"}, 415, "unsupported_media_type"),
        (b"x" * 5000, JSON, 413, "body_too_large"),
        (b"[]", JSON, 400, "invalid_request"),
    ],
    ids=["broken", "bytes", "utf-16", "deep", "text", "large", "list"],
)
async def test_bodies_that_nobody_should_send(client, content, headers, status, code):
    answer = await client.post(CHAT, content=content, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


async def test_a_fault_of_ours_is_told_without_its_words(client, stage):
    (await stage.load()).fail_with = ZeroDivisionError("secret words")
    answer = await client.post(CHAT, json=HI)
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert answer.json()["error"]["type"] == "server_error"
    assert "secret" not in answer.text


async def test_a_model_that_nobody_has_is_not_found(client):
    answer = await client.post(CHAT, json=HI | {"model": "no/where"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    assert "no/where" in answer.json()["error"]["message"]


async def test_a_model_that_is_not_allowed_is_denied(make_stage, client_of):
    stage = await make_stage(allowed_models=("other",))
    async with client_of(stage.app()) as client:
        answer = await client.post(CHAT, json=HI)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "model_not_allowed")


@pytest.fixture
async def keyed(stage, client_of):
    digest = hashlib.sha256(SECRET.encode()).digest()
    keys = (ApiKey("ann", digest, frozenset({"infer"})), ApiKey("root", b"\0" * 32, frozenset({"admin"})))
    async with client_of(stage.app(keys=keys)) as client:
        yield client


async def test_a_key_is_asked_for_before_anything_that_was_sent_is_read(keyed):
    for path in (CHAT, "/v1/completions", "/v1/embeddings"):
        answer = await keyed.post(path, content=b"{", headers=JSON)
        error = answer.json()["error"]
        assert (answer.status_code, error["type"], error["code"]) == (401, "authentication_error", "unauthenticated")
        assert answer.headers["www-authenticate"] == "Bearer"


async def test_what_is_computed_is_its_owners(keyed, stage):
    answer = await keyed.post(CHAT, json=HI, headers={"Authorization": f"Bearer {SECRET}"})
    text = await keyed.post(
        "/v1/completions", json={"model": "gpt2", "prompt": "Hi"}, headers={"Authorization": f"Bearer {SECRET}"}
    )
    assert (answer.status_code, text.status_code) == (200, 200)
    assert [request.salt for request in stage.engine.requests] == ["ann", "ann"]
