"""``GET /status`` and the health endpoints: what they say, and that they wake nothing."""

from __future__ import annotations

import asyncio

from fakes import GIB, settle
from inferapi.domain.errors import SessionStoreUnavailable
from inferapi.domain.model import ModelRef

LINE = {
    "name", "state", "in_flight", "queued", "last_used", "unloads_in_s", "memory_bytes", "device", "dtype", "attention"
}  # fmt: skip


async def test_status_before_any_load(client):
    answer = await client.get("/status")
    assert (answer.status_code, answer.json()) == (
        200,
        {
            "state": "unloaded",
            "current_model": None,
            "models": [],
            "memory": {"total_bytes": 16 * GIB, "used_bytes": 4 * GIB, "free_bytes": 12 * GIB},
            "inactivity_threshold_s": 300,
        },
    )


async def test_status_of_a_loaded_model(client, stage):
    await stage.load()
    await stage.clock.advance(60)
    body = (await client.get("/status")).json()
    assert (body["state"], body["current_model"]) == ("ready", "gpt2")
    (line,) = body["models"]
    assert set(line) >= LINE
    told = {name: line[name] for name in LINE}
    assert told == {
        "name": "gpt2",
        "state": "ready",
        "in_flight": 0,
        "queued": 0,
        "last_used": stage.clock.wall_s() - 60,
        "unloads_in_s": 240.0,
        "memory_bytes": 2 * GIB,
        "device": "cpu",
        "dtype": "bfloat16",
        "attention": "scripted",
    }


async def test_status_counts_running_and_queued_requests(make_stage, client_of):
    stage = await make_stage(max_batch=2)
    await stage.load()
    requests = [await stage.infer_until_held() for _ in range(3)]
    async with client_of(stage.app()) as client:
        (line,) = (await client.get("/status")).json()["models"]
    assert (line["in_flight"], line["queued"], line["unloads_in_s"]) == (2, 1, None)
    stage.engine.gate.open()
    await asyncio.gather(*requests)


async def test_status_of_a_first_load(client, stage):
    stage.launcher.gate.hold()
    loading = asyncio.create_task(stage.lifecycle.load(ModelRef("gpt2")))
    await settle()
    body = (await client.get("/status")).json()
    assert (body["state"], body["current_model"]) == ("loading", None)
    (line,) = body["models"]
    assert (line["name"], line["state"], line["memory_bytes"]) == ("gpt2", "loading", None)
    stage.launcher.gate.open()
    await loading


async def test_status_after_an_idle_unload_wakes_nothing(client, stage):
    await stage.load()
    await stage.clock.advance(300)
    body = (await client.get("/status")).json()
    assert (body["state"], body["current_model"]) == ("unloaded", "gpt2")
    assert [line["state"] for line in body["models"]] == ["unloaded"]
    assert stage.launcher.live == []


async def test_status_tells_the_threshold_that_was_set(client):
    await client.post("/change_inactivity_threshold", json={"new_threshold": -1})
    assert (await client.get("/status")).json()["inactivity_threshold_s"] == -1


async def test_it_is_alive_and_ready(client):
    live, ready = await client.get("/health/live"), await client.get("/health/ready")
    assert (live.status_code, live.json()) == (200, {"status": "live"})
    assert (ready.status_code, ready.json()) == (200, {"status": "ready"})


async def test_it_is_ready_but_degraded_while_the_session_store_is_away(client, stage):
    stage.store.errors["ping"] = SessionStoreUnavailable()
    live, ready = await client.get("/health/live"), await client.get("/health/ready")
    assert (live.status_code, ready.status_code, ready.json()) == (200, 200, {"status": "degraded"})
    del stage.store.errors["ping"]
    assert (await client.get("/health/ready")).json() == {"status": "ready"}


async def test_it_does_not_wait_for_a_session_store_that_hangs(client, stage, loop_time):
    stage.store.gates["ping"].hold()
    asking = asyncio.create_task(client.get("/health/ready"))
    await loop_time(0.2)
    assert not asking.done()
    await loop_time(0.1)
    ready = await asking
    assert (ready.status_code, ready.json()) == (200, {"status": "degraded"})
    assert stage.store.gates["ping"].waiting == 0


async def test_it_is_alive_but_not_ready_while_the_model_named_at_start_loads(make_stage, client_of):
    stage = await make_stage(start=False, preload=ModelRef("gpt2"))
    stage.launcher.gate.hold()
    app = stage.app()
    async with app.router.lifespan_context(app), client_of(app) as client:
        live, ready = await client.get("/health/live"), await client.get("/health/ready")
        assert (live.status_code, ready.status_code, ready.json()) == (200, 503, {"status": "loading"})
        assert ready.headers["retry-after"] == "5"
        stage.launcher.gate.open()
        await settle()
        assert (await client.get("/health/ready")).status_code == 200


async def test_it_is_not_ready_when_the_model_named_at_start_failed(make_stage, client_of):
    stage = await make_stage(start=False, preload=ModelRef("unknown"))
    app = stage.app()
    async with app.router.lifespan_context(app), client_of(app) as client:
        await settle()
        ready = await client.get("/health/ready")
        assert (ready.status_code, ready.json()) == (503, {"status": "loading the model named at start failed"})


async def test_it_is_alive_but_not_ready_while_it_drains(client, stage):
    await stage.load()
    running = await stage.infer_until_held()
    closing = asyncio.create_task(stage.lifecycle.aclose())
    await settle()
    live, ready = await client.get("/health/live"), await client.get("/health/ready")
    refused = await client.post("/infer", json={"text": "Hi"})
    assert (live.status_code, ready.status_code, ready.json()) == (200, 503, {"status": "draining"})
    assert (refused.status_code, refused.json()["code"]) == (503, "shutting_down")
    assert "retry-after" in refused.headers
    stage.engine.gate.open()
    await asyncio.gather(running, closing)


async def test_the_session_store_is_not_asked_while_it_is_not_ready_anyway(make_stage, client_of):
    stage = await make_stage(start=False, preload=ModelRef("gpt2"))
    stage.launcher.gate.hold()
    app = stage.app()
    async with app.router.lifespan_context(app), client_of(app) as client:
        await client.get("/health/ready")
        assert stage.store.calls == []
        stage.launcher.gate.open()


async def test_the_lifespan_ends_every_engine(make_stage):
    stage = await make_stage(start=False)
    app = stage.app()
    async with app.router.lifespan_context(app):
        await stage.load()
        assert stage.launcher.live == ["gpt2"]
    assert (stage.launcher.live, stage.launcher.is_closed) == ([], True)


async def test_the_six_endpoints_are_in_the_manual(client):
    paths = (await client.get("/openapi.json")).json()["paths"]
    six = ["/load_model", "/change_model", "/infer", "/chat", "/system_prompt", "/change_inactivity_threshold"]
    assert [path for path in six if "post" in paths.get(path, {})] == six
