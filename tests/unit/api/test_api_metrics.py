"""``GET /metrics``: who may read it, what it says, and the errors that are counted where clients are told them."""

from __future__ import annotations

import asyncio
import hashlib

import pytest

from fakes import settle
from inferapi.api.auth import ApiKey
from inferapi.domain.errors import HistoryNotSaved, ModelCrashed, OutOfMemory, QueueFull
from metrics_page import MetricsPage

ASKED = [
    ("/infer", {"text": "Hi"}),
    ("/chat", {"text": "Hi", "session_id": "s1"}),
    ("/v1/completions", {"model": "gpt2", "prompt": "Hi"}),
    ("/v1/chat/completions", {"model": "gpt2", "messages": [{"role": "user", "content": "Hi"}]}),
    ("/v1/responses", {"model": "gpt2", "input": "Hi"}),
    ("/v1/embeddings", {"model": "gpt2", "input": "Hi"}),
]
ANSWERED = ASKED[:-1]
CANARY = "canary-5f3a"


def key(name: str, *scopes: str) -> ApiKey:
    return ApiKey(name, hashlib.sha256(f"{name}-key-0123456789".encode()).digest(), frozenset(scopes))


def bearer(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {name}-key-0123456789"}


async def read(client, **options) -> MetricsPage:
    answer = await client.get("/metrics", **options)
    assert answer.status_code == 200, answer.text
    return MetricsPage(answer.text)


def rejected(page: MetricsPage) -> dict[str, float]:
    return page.counted("requests_rejected_total", "reason")


async def test_the_page_is_text_that_prometheus_knows_and_nobody_keeps(client):
    answer = await client.get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert answer.headers["cache-control"] == "no-store"
    assert "# TYPE inferapi_requests_rejected_total counter\n" in answer.text


async def test_any_key_reads_it_also_one_without_a_scope_and_nobody_else(stage, client_of):
    await stage.load()
    app = stage.app(keys=(key("ann", "infer"), key("ops", "admin"), key("prometheus")))
    async with client_of(app) as client:
        for name in ("ann", "ops", "prometheus"):
            assert (await client.get("/metrics", headers=bearer(name))).status_code == 200
        denied = [await client.get("/metrics", headers=headers) for headers in ({}, bearer("eve"))]
        assert [(answer.status_code, answer.json()["code"]) for answer in denied] == [(401, "unauthenticated")] * 2
        infer = await client.post("/infer", json={"text": "Hi"}, headers=bearer("prometheus"))
        assert infer.json()["code"] == "insufficient_scope"
        page = await read(client, headers=bearer("prometheus"))
    assert rejected(page) == {"unauthenticated": 2.0, "insufficient_scope": 1.0}


@pytest.mark.parametrize(("path", "body"), ASKED)
async def test_every_route_counts_what_it_finished(stage, client, path, body):
    await stage.load()
    assert (await client.post(path, json=body)).status_code == 200
    page = await read(client)
    assert page.counted("requests_finished_total", "finish_reason") == {"stop": 1.0}
    assert rejected(page) == {}
    assert page.sum("requests_aborted_total") == 0.0


@pytest.mark.parametrize(("path", "body"), ANSWERED)
async def test_every_stream_counts_what_it_finished(stage, client, path, body):
    await stage.load()
    assert (await client.post(path, json=body | {"stream": True})).status_code == 200
    page = await read(client)
    assert page.counted("requests_finished_total", "finish_reason") == {"stop": 1.0}
    assert rejected(page) == {}
    assert page.sum("requests_aborted_total") == 0.0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body"), ANSWERED)
async def test_a_client_that_leaves_aborts_one_request_and_leaves_nothing_running(stage, call, path, body, stream):
    await stage.load()
    stage.engine.gate.hold()
    request = call(stage.app(), path, body | {"stream": stream})
    await settle()
    busy = MetricsPage(stage.metrics.page(stage.lifecycle.status()))
    await request.leave()
    idle = MetricsPage(stage.metrics.page(stage.lifecycle.status()))
    assert [page.value("num_requests_running", model="gpt2") for page in (busy, idle)] == [1.0, 0.0]
    assert [page.sum("requests_aborted_total") for page in (busy, idle)] == [0.0, 1.0]
    assert idle.counted("requests_finished_total", "finish_reason") == {}
    assert rejected(idle) == {}


@pytest.mark.parametrize(
    ("path", "sent", "reason"),
    [
        ("/infer", {"json": {"text": "Hi"}}, "model_not_loaded"),
        ("/infer", {"content": b"{", "headers": {"Content-Type": "application/json"}}, "invalid_json"),
        ("/infer", {"json": {"text": "Hi", "temperature": -1}}, "invalid_request"),
        ("/infer", {"content": b"text", "headers": {"Content-Type": "text/plain"}}, "unsupported_media_type"),
        ("/infer", {"json": {"text": "x" * 5000}}, "body_too_large"),
        ("/v1/completions", {"json": {"model": "nobody/knows-it", "prompt": "Hi"}}, "model_not_found"),
        ("/v1/completions", {"json": {"model": "gpt2"}}, "invalid_request"),
    ],
)
async def test_an_error_that_a_client_is_told_is_counted_once_by_its_code(client, path, sent, reason):
    answer = await client.post(path, **sent)
    assert answer.status_code >= 400
    assert rejected(await read(client)) == {reason: 1.0}


async def test_what_the_engine_refuses_is_rejected_and_what_fails_there_is_not(stage, client):
    engine = await stage.load()
    engine.fail_with = QueueFull(waiting=3)
    assert (await client.post("/infer", json={"text": "Hi"})).status_code == 503
    engine.fail_with = OutOfMemory()
    assert (await client.post("/infer", json={"text": "Hi"})).status_code == 503
    page = await read(client)
    assert rejected(page) == {"queue_full": 1.0}
    assert page.counted("requests_finished_total", "finish_reason") == {"insufficient_memory": 1.0}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body"), ANSWERED)
async def test_who_waited_for_a_model_that_died_on_its_way_is_rejected(stage, client, path, body, stream):
    stage.launcher.errors["gpt2"] = [ModelCrashed(model="gpt2")]
    named = body if path.startswith("/v1") else body | {"model": "gpt2"}
    answer = await client.post(path, json=named | {"stream": stream})
    assert "model_crashed" in answer.text
    page = await read(client)
    assert rejected(page) == {"model_crashed": 1.0}
    assert page.counted("requests_finished_total", "finish_reason") == {}


async def test_each_of_several_that_waited_for_it_is_rejected(stage, client):
    stage.launcher.errors["gpt2"] = [ModelCrashed(model="gpt2")]
    stage.launcher.gate.hold()
    asked = [asyncio.create_task(client.post("/infer", json={"text": "Hi", "model": "gpt2"})) for _ in range(3)]
    await settle()
    stage.launcher.gate.open()
    assert [(await answer).json()["code"] for answer in asked] == ["model_crashed"] * 3
    assert rejected(await read(client)) == {"model_crashed": 3.0}


async def test_a_model_that_dies_in_an_answer_fails_it_and_rejects_nothing(stage, client):
    engine = await stage.load()
    engine.fail_with = ModelCrashed(model="gpt2")
    assert (await client.post("/infer", json={"text": "Hi"})).status_code == 503
    page = await read(client)
    assert rejected(page) == {}
    assert page.counted("requests_finished_total", "finish_reason") == {"model_crashed": 1.0}


@pytest.mark.parametrize("prefix", ["", "/v1"])
async def test_paths_and_methods_that_are_not_there_are_counted_by_their_codes(client, prefix):
    before = (await read(client)).value("requests_rejected_total", reason="not_found")
    assert (await client.get(f"{prefix}/nowhere")).status_code == 404
    assert (await client.delete("/v1/completions" if prefix else "/infer")).status_code == 405
    assert before == 0.0
    assert rejected(await read(client)) == {"not_found": 1.0, "method_not_allowed": 1.0}


async def test_a_stream_that_breaks_is_counted_as_an_answer_that_does_not_stream(stage, client):
    engine = await stage.load()
    engine.fail_with = OutOfMemory()
    broken = await client.post("/infer", json={"text": "Hi", "stream": True})
    engine.fail_with = QueueFull(waiting=3)
    refused = await client.post("/infer", json={"text": "Hi", "stream": True})
    assert "insufficient_memory" in broken.text
    assert "queue_full" in refused.text
    page = await read(client)
    assert page.counted("requests_finished_total", "finish_reason") == {"insufficient_memory": 1.0}
    assert rejected(page) == {"queue_full": 1.0}


async def test_a_prompt_that_is_cut_to_its_room_is_not_rejected_on_the_way(stage, client):
    stage.launcher.facts = {"context_window_tokens": 20}
    await stage.load()
    answer = await client.post("/v1/chat/completions", json=dict(ASKED)["/v1/chat/completions"])
    assert answer.status_code == 200, answer.text
    page = await read(client)
    assert rejected(page) == {}
    assert page.counted("requests_finished_total", "finish_reason") == {"stop": 1.0}


async def test_an_answer_that_is_lost_is_finished_and_not_rejected(stage, client):
    await stage.load()
    stage.store.errors["commit"] = HistoryNotSaved(problem="the lease was lost")
    assert (await client.post("/chat", json={"text": "Hi"})).status_code == 503
    page = await read(client)
    assert rejected(page) == {}
    assert page.counted("requests_finished_total", "finish_reason") == {"stop": 1.0}
    assert page.counted("session_store_errors_total", "kind") == {"history_not_saved": 1.0}


async def test_a_fault_of_ours_is_counted_too(stage, client):
    stage.models.profile_errors["gpt2"] = RuntimeError("boom")
    answer = await client.post("/infer", json={"text": "Hi", "model": "gpt2"})
    assert answer.status_code == 500
    assert rejected(await read(client)) == {"internal_error": 1.0}


async def test_nothing_that_a_client_wrote_is_on_the_page(stage, client):
    await stage.load()
    for body in ({"text": CANARY, "session_id": CANARY}, {"text": "Hi", CANARY: 1}, {"text": "Hi", "model": CANARY}):
        await client.post("/infer", json=body, headers={"X-Request-ID": CANARY, "Authorization": f"Bearer {CANARY}"})
    await client.get(f"/{CANARY}")
    await client.get(f"/sessions/{CANARY}")
    assert CANARY not in (await client.get("/metrics")).text


async def test_it_can_be_read_while_models_load_and_when_the_store_is_away(stage, client):
    stage.store.gates["ping"].hold()
    stage.launcher.gate.hold()
    loading = asyncio.create_task(stage.load())
    await settle()
    assert (await read(client)).sum("num_requests_running") == 0.0
    stage.launcher.gate.open()
    await loading
