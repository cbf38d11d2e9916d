"""Pages of other sites in a browser: they get no leave to read answers, and no preflight lets them send anything."""

from __future__ import annotations

import pytest

EVIL = {"Origin": "https://evil.example"}
PREFLIGHT = EVIL | {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
PATHS = ("/infer", "/chat", "/load_model", "/status", "/v1/chat/completions", "/health/live")


def allowed(answer) -> list[str]:
    return [name for name in answer.headers if name.lower().startswith("access-control-")]


@pytest.mark.parametrize("path", PATHS)
async def test_a_preflight_of_another_site_is_refused(client, path):
    answer = await client.options(path, headers=PREFLIGHT)
    assert answer.status_code == 405
    assert allowed(answer) == []


async def test_answers_give_no_site_leave_to_read_them(client, stage):
    await stage.load()
    answers = [
        await client.post("/infer", json={"text": "Hi"}, headers=EVIL),
        await client.post("/infer", json={"text": 7}, headers=EVIL),
        await client.get("/status", headers=EVIL),
        await client.get("/no/such/path", headers=EVIL),
    ]
    assert [answer.status_code for answer in answers] == [200, 422, 200, 404]
    assert [allowed(answer) for answer in answers] == [[]] * 4


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
async def test_what_a_page_may_send_without_a_preflight_is_refused(client, stage, kind):
    await stage.load()
    answer = await client.post("/infer", content=b'{"text": "Hi"}', headers=EVIL | {"Content-Type": kind})
    assert answer.status_code == 415
    assert stage.engine.requests == []


@pytest.mark.parametrize("origin", ["https://evil.example", "null"])
@pytest.mark.parametrize("path", ["/unload_model", "/sessions/s1/rewind", "/sessions/s1/fork"])
async def test_a_page_can_send_nothing_without_a_body_either(client, stage, path, origin):
    await stage.load()
    await client.post("/chat", json={"text": "Hi", "session_id": "s1"})
    answer = await client.post(path, headers={"Origin": origin})
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")
    status = (await client.get("/status")).json()
    assert [model["state"] for model in status["models"]] == ["ready"]
    assert len((await client.get("/sessions/s1")).json()["full_history"]) == 3


async def test_who_is_no_page_needs_no_body_to_unload(client, stage):
    await stage.load()
    assert (await client.post("/unload_model")).status_code == 200
