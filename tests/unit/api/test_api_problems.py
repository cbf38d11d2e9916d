"""Every error has a status, and one shape."""

from __future__ import annotations

import re
from string import Formatter

import httpx
import pytest

from inferapi.api.errors import ANSWERS, problem_response
from inferapi.domain.errors import InferapiError, InsufficientMemory, leaves

MEMBERS = {"type", "title", "status", "detail", "instance", "code"}
CONTRACT = {  # design: the table of errors
    "InvalidJson": 400,
    "UnsupportedMediaType": 415,
    "InvalidRequest": 422,
    "ModelNameInvalid": 422,
    "EmbeddingsRefused": 422,
    "ContextWindowExceeded": 422,
    "BodyTooLarge": 413,
    "HeadTooLarge": 431,
    "MalformedHttp": 400,
    "ReceiveTimeout": 408,
    "TooManyConnections": 503,
    "ModelNotFound": 404,
    "ModelNotAllowed": 403,
    "ModelGated": 403,
    "HubUnavailable": 503,
    "HubTimeout": 504,
    "ModelInvalid": 422,
    "UnsafeWeights": 422,
    "RemoteCodeRefused": 422,
    "QuantizationRefused": 400,
    "InsufficientStorage": 507,
    "ModelTooLarge": 422,
    "InsufficientMemory": 503,
    "ModelNotLoaded": 409,
    "ModelLoading": 503,
    "LoadCancelled": 409,
    "OperationInProgress": 409,
    "QueueFull": 503,
    "GenerationTimeout": 504,
    "SessionBusy": 409,
    "SessionNotFound": 404,
    "ResponseNotFound": 404,
    "SessionExists": 409,
    "SessionStoreUnavailable": 503,
    "OutOfMemory": 503,
    "ModelCrashed": 503,
    "ShuttingDown": 503,
    "Unauthenticated": 401,
    "InsufficientScope": 403,
    "AnonymousRefused": 403,
    "HostNotTrusted": 400,
    "RateLimitExceeded": 429,
    "ConcurrencyLimitExceeded": 429,
}
RETRY_LATER = {
    "HubUnavailable",
    "InsufficientMemory",
    "ModelLoading",
    "QueueFull",
    "RateLimitExceeded",
    "ConcurrencyLimitExceeded",
    "TooManyConnections",
    "SessionBusy",
    "ShuttingDown",
}
DO_NOT_RETRY = {"InsufficientStorage", "GenerationTimeout", "SessionExists", "HistoryNotSaved"}


def make(leaf: type[InferapiError]) -> InferapiError:
    return leaf(**{field: 7 for _, field, _, _ in Formatter().parse(leaf.text) if field})


def test_every_leaf_has_a_status_and_nothing_else_has():
    assert set(ANSWERS) == set(leaves())


def test_the_statuses_are_those_of_the_contract():
    statuses = {leaf.__name__: answer.status for leaf, answer in ANSWERS.items()}
    assert {name: statuses[name] for name in CONTRACT} == CONTRACT
    assert all(statuses[name] >= 500 for name in statuses.keys() - CONTRACT.keys())


def test_those_who_may_come_again_are_told_when_and_those_who_may_not_are_told_so():
    headers = {leaf.__name__: problem_response(make(leaf)).headers for leaf in leaves()}
    assert {name for name, has in headers.items() if int(has.get("retry-after", 0)) > 0} >= RETRY_LATER
    assert {name for name, has in headers.items() if has.get("x-should-retry") == "false"} >= DO_NOT_RETRY
    assert not [name for name, has in headers.items() if {"retry-after", "x-should-retry"} <= set(has.keys())]


@pytest.mark.parametrize("leaf", list(leaves()))
def test_every_leaf_is_told_as_problem_details(leaf):
    error = make(leaf)
    response = problem_response(error)
    body = httpx.Response(200, content=response.body).json()
    assert response.headers["content-type"] == "application/problem+json"
    assert set(body) >= MEMBERS
    assert (body["status"], body["code"], body["detail"]) == (response.status_code, leaf.code, error.message)
    assert {name: body[name] for name in error.facts} == error.facts


def test_the_bytes_of_a_refusal_are_members_of_their_own():
    sizes = {name: n for n, name in enumerate(("needed_bytes", "weights_bytes", "kv_cache_bytes", "working_bytes"))}
    error = InsufficientMemory(
        model="gpt2", overhead_bytes=9, available_bytes=10, device="cpu", hint="None.", fits=False, **sizes
    )
    body = httpx.Response(200, content=problem_response(error).body).json()
    assert body.keys() - MEMBERS == {*sizes, "overhead_bytes", "available_bytes"}


@pytest.mark.parametrize(
    ("method", "path", "status", "code", "title"),
    [
        ("GET", "/nothing", 404, "not_found", "Not Found"),
        ("GET", "/infer", 405, "method_not_allowed", "Method Not Allowed"),
        ("POST", "/status", 405, "method_not_allowed", "Method Not Allowed"),
        ("POST", "/infer", 422, "invalid_request", "Unprocessable Entity"),
    ],
)
async def test_errors_of_the_framework_have_the_same_shape(client, method, path, status, code, title):
    answer = await client.request(method, path, headers={"X-Request-ID": "abc"})
    body = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert set(body) == MEMBERS
    assert (answer.status_code, body["status"], body["code"]) == (status, status, code)
    assert body["title"] in {title, "Unprocessable Content"}
    assert (body["type"], body["instance"]) == (f"urn:inferapi:error:{code}", "urn:inferapi:request:abc")


async def test_a_method_that_is_not_allowed_is_told_which_is(client):
    assert (await client.get("/infer")).headers["allow"] == "POST"


@pytest.fixture
async def unexpected(client, stage):
    """The answer to a request that hit a fault of ours."""
    stage.models.profile_errors["gpt2"] = ZeroDivisionError("secret words")
    return await client.post("/load_model", json={"model_name": "gpt2"}, headers={"X-Request-ID": "abc"})


async def test_a_fault_of_ours_is_told_without_its_words(unexpected):
    body = unexpected.json()
    assert (unexpected.status_code, body["code"]) == (500, "internal_error")
    assert unexpected.headers["content-type"] == "application/problem+json"
    assert set(body) == MEMBERS
    assert "secret" not in unexpected.text


async def test_a_fault_of_ours_carries_the_request_id_too(unexpected):
    assert unexpected.headers["x-request-id"] == "abc"


async def test_the_clients_request_id_comes_back(client):
    paths = ["/health/live", "/status", "/nothing", "/infer"]
    answers = [await client.get(path, headers={"X-Request-ID": "My-id_1.2"}) for path in paths]
    assert [answer.headers["x-request-id"] for answer in answers] == ["My-id_1.2"] * 4


async def test_a_request_without_a_decent_id_gets_one(client):
    wishes = [{}, *({"X-Request-ID": wish} for wish in ("", "a b", "x" * 129, "a,b", "é".encode(), "a;b=c"))]
    given = [(await client.get("/health/live", headers=wish)).headers["x-request-id"] for wish in wishes]
    assert [bool(re.fullmatch("[0-9a-f]{32}", one)) for one in given] == [True] * len(wishes)
    assert len(set(given)) == len(wishes)


async def test_a_body_refused_at_the_gate_carries_the_request_id(client):
    answer = await client.post("/infer", content=b"x", headers={"X-Request-ID": "abc"})
    assert (answer.status_code, answer.headers["x-request-id"]) == (415, "abc")
    assert answer.json()["instance"] == "urn:inferapi:request:abc"
