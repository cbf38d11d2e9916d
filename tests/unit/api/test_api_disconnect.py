"""No work goes on for a client that has gone."""

from __future__ import annotations

import asyncio

import pytest

from fakes import settle
from inferapi.domain.chat import SessionRef
from turn_actors import can_enter

BODIES = [
    ("/infer", {"text": "Hi"}),
    ("/infer", {"text": "Hi", "stream": True}),
    ("/chat", {"text": "Hi", "session_id": "s1"}),
    ("/chat", {"text": "Hi", "session_id": "s1", "stream": True}),
]


@pytest.mark.parametrize(("path", "body"), BODIES)
async def test_a_running_answer_ends_with_its_client(stage, call, path, body):
    await stage.load()
    stage.engine.gate.hold()
    request = call(stage.app(), path, body)
    await settle()
    assert stage.engine.in_flight == 1
    await request.leave()
    assert (stage.engine.in_flight, stage.engine.cancelled) == (0, 1)
    assert request.task.done()
    assert [line.in_flight for line in stage.lifecycle.status()] == [0]
    assert await stage.store.get(SessionRef("", "s1")) is None


@pytest.mark.parametrize(("path", "body"), BODIES)
async def test_a_queued_request_ends_with_its_client(make_stage, call, path, body):
    stage = await make_stage(max_batch=1)
    await stage.load()
    running = await stage.infer_until_held()
    request = call(stage.app(), path, body)
    await settle()
    assert stage.engine.load.waiting == 1
    await request.leave()
    assert (stage.engine.load.waiting, request.task.done()) == (0, True)
    stage.engine.gate.open()
    assert (await running).text == "Hello there"


@pytest.mark.parametrize(("path", "body"), BODIES)
async def test_a_request_that_waits_for_a_model_ends_with_its_client_and_the_load_goes_on(make_stage, call, path, body):
    stage = await make_stage(inactivity_threshold_s=10)
    await stage.load()
    await stage.clock.advance(10)
    stage.launcher.gate.hold()
    request = call(stage.app(), path, body)
    await settle()
    await request.leave()
    assert request.task.done()
    stage.launcher.gate.open()
    await settle()
    assert (stage.launcher.live, stage.engine.requests) == (["gpt2"], [])


async def test_a_turn_that_waits_for_another_ends_with_its_client(stage, call):
    await stage.load()
    stage.engine.gate.hold()
    app = stage.app()
    first = call(app, "/chat", {"text": "One?", "session_id": "s1"})
    await settle()
    second = call(app, "/chat", {"text": "Two?", "session_id": "s1"})
    await settle()
    await second.leave()
    stage.engine.gate.open()
    await first.task
    assert (first.status, second.task.done()) == (200, True)
    assert len((await stage.store.get(SessionRef("", "s1"))).turns) == 1


async def test_a_load_goes_on_without_its_client(stage, call):
    stage.launcher.gate.hold()
    request = call(stage.app(), "/load_model", {"model_name": "gpt2"})
    await settle()
    await request.leave()
    request.task.cancel()  # as a server does with what is left of a connection
    await asyncio.gather(request.task, return_exceptions=True)
    stage.launcher.gate.open()
    await settle()
    assert (stage.launcher.live, stage.lifecycle.current.name) == (["gpt2"], "gpt2")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_while_its_session_is_opened_leaves_it_free(stage, call, stream):
    await stage.load()
    stage.store.gates["begin"].hold()
    request = call(stage.app(), "/chat", {"text": "Hi", "session_id": "s1", "stream": stream})
    await settle()
    await request.leave()
    assert request.task.done()
    stage.store.gates["begin"].open()
    await settle()
    assert (await can_enter(stage.elsewhere), stage.engine.requests) == (True, [])


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_lets_the_next_turn_in_at_once(stage, call, stream):
    await stage.load()
    stage.engine.gate.hold()
    request = call(stage.app(), "/chat", {"text": "Hi", "session_id": "s1", "stream": stream})
    await settle()
    assert await can_enter(stage.elsewhere) is False
    await request.leave()
    assert await can_enter(stage.elsewhere) is True
