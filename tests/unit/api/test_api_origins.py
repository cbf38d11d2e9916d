"""Pages of other origins, and other names of the server: closed unless they are named."""

from __future__ import annotations

import hashlib

import httpx
import pytest

from inferapi.api.auth import ApiKey

EVIL, GOOD = "https://evil.example", "https://chat.example.org"
SECRET = "key-of-ann-0123456789"
ANN = ApiKey("ann", hashlib.sha256(SECRET.encode()).digest(), frozenset({"infer"}))
NAMES = "authorization, content-type, idempotency-key, x-request-id, x-stainless-lang"
ASKED = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": NAMES}


def allowed(answer: httpx.Response) -> str | None:
    return answer.headers.get("access-control-allow-origin")


@pytest.fixture
async def page(stage, client_of):
    """A client of an application that one origin may use."""
    await stage.load()
    async with client_of(stage.app(keys=(ANN,), cors_origins=(GOOD,))) as client:
        yield client


@pytest.mark.parametrize("origin", [EVIL, GOOD, "null"])
async def test_by_default_no_page_may_read_anything(stage, client_of, origin):
    async with client_of(stage.app()) as client:
        preflight = await client.options("/infer", headers=ASKED | {"Origin": origin})
        answer = await client.post("/infer", json={"text": "Hi"}, headers={"Origin": origin})
    told = [name for one in (preflight, answer) for name in one.headers if name.startswith("access-control-")]
    assert (preflight.status_code, told) == (405, [])


async def test_the_page_of_a_named_origin_may_ask_and_read(page):
    preflight = await page.options("/infer", headers=ASKED | {"Origin": GOOD})
    headers = {"Origin": GOOD, "Authorization": f"Bearer {SECRET}"}
    answer = await page.post("/infer", json={"text": "Hi"}, headers=headers)
    assert (preflight.status_code, allowed(preflight)) == (200, GOOD)
    assert preflight.headers["access-control-allow-headers"] == NAMES
    assert (answer.status_code, allowed(answer)) == (200, GOOD)
    assert "Origin" in answer.headers["vary"]
    assert {"x-request-id", "retry-after"} <= {
        name.strip().lower() for name in answer.headers["access-control-expose-headers"].split(",")
    }


@pytest.mark.parametrize("origin", [EVIL, "null", "http://chat.example.org", f"{GOOD}:8443", f"{GOOD}.evil.example"])
async def test_no_other_page_may(page, origin):
    preflight = await page.options("/infer", headers=ASKED | {"Origin": origin})
    answer = await page.post("/infer", json={"text": "Hi"}, headers={"Origin": origin})
    assert (preflight.status_code, allowed(preflight), allowed(answer)) == (400, None, None)


async def test_a_preflight_needs_no_key_and_what_follows_does(page):
    preflight = await page.options("/infer", headers=ASKED | {"Origin": GOOD})
    answer = await page.post("/infer", json={"text": "Hi"}, headers={"Origin": GOOD})
    assert (preflight.status_code, answer.status_code) == (200, 401)


async def test_a_page_can_read_why_it_was_refused(page):
    """At the gate of bodies, at the door, by the route: all of that is within."""
    keyed = {"Origin": GOOD, "Authorization": f"Bearer {SECRET}"}
    refusals = [
        await page.post("/infer", content=b"x", headers={"Origin": GOOD}),
        await page.post("/infer", json={"text": "x" * 5000}, headers=keyed),
        await page.post("/infer", json={"text": "Hi"}, headers={"Origin": GOOD}),
        await page.post("/infer", json={"text": 5}, headers=keyed),
        await page.get("/nothing", headers=keyed),
    ]
    assert [(answer.status_code, allowed(answer)) for answer in refusals] == [
        (415, GOOD),
        (413, GOOD),
        (401, GOOD),
        (422, GOOD),
        (404, GOOD),
    ]


async def test_cookies_are_never_asked_for(page):
    answers = [
        await page.options("/infer", headers=ASKED | {"Origin": GOOD}),
        await page.get("/health/live", headers={"Origin": GOOD, "Cookie": "a=b"}),
    ]
    assert [answer.headers.get("access-control-allow-credentials") for answer in answers] == [None, None]


async def test_preflights_carry_a_request_id_too(page):
    preflight = await page.options("/infer", headers=ASKED | {"Origin": GOOD, "X-Request-ID": "abc"})
    assert preflight.headers["x-request-id"] == "abc"


@pytest.fixture
async def named(stage, client_of):
    """A client of an application that goes by two names."""
    app = stage.app(trusted_hosts=("api.example.org", "*.inner.example.org"), cors_origins=(GOOD,))
    async with client_of(app) as client:
        yield client


@pytest.mark.parametrize("host", ["api.example.org", "API.example.org:8000", "a.inner.example.org"])
async def test_a_trusted_name_is_answered(named, host):
    assert (await named.get("/status", headers={"Host": host})).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "127.0.0.1",
        "example.org",
        "api.example.org.evil.example",
        "inner.example.org",
        "a@b",
        "",
        "[::1",
    ],
)
async def test_any_other_name_is_refused_before_anything_is_looked_at(named, host):
    answers = [
        await named.get("/status", headers={"Host": host, "X-Request-ID": "abc"}),
        await named.options("/infer", headers=ASKED | {"Host": host, "Origin": GOOD}),
        await named.post("/infer", content=b"x", headers={"Host": host}),
    ]
    assert [(answer.status_code, answer.json()["code"]) for answer in answers] == [(400, "host_not_trusted")] * 3
    assert answers[0].headers["content-type"] == "application/problem+json"
    assert answers[0].headers["x-request-id"] == "abc"
    assert [allowed(answer) for answer in answers] == [None] * 3


async def test_under_v1_the_refusal_has_openais_shape(named):
    answer = await named.get("/v1/models", headers={"Host": "evil.example"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "host_not_trusted")


async def test_by_default_any_name_is_answered(stage, client_of):
    async with client_of(stage.app()) as client:
        assert (await client.get("/status", headers={"Host": "evil.example"})).status_code == 200
