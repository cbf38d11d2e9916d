from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from fakes import settle
from inferapi.domain.errors import (
    HubUnavailable,
    ModelCrashed,
    ModelLoadFailed,
    ModelLoading,
    ModelNotLoaded,
)
from inferapi.domain.model import ModelRef
from inferapi.domain.states import ModelState

GPT2, OTHER = ModelRef("gpt2"), ModelRef("other")


async def test_a_request_before_any_load_is_told_that_no_model_is_loaded(stage):
    with pytest.raises(ModelNotLoaded):
        await stage.infer()
    assert stage.launcher.launched == []


async def test_a_request_waits_for_the_first_load(stage):
    stage.launcher.gate.hold()
    loading = asyncio.create_task(stage.lifecycle.load(GPT2))
    await settle()
    request = asyncio.create_task(stage.infer())
    await settle()
    assert not request.done()
    stage.launcher.gate.open()
    assert (await request).model == "gpt2"
    await loading


async def test_a_request_that_waited_for_a_first_load_that_failed_is_told_that_no_model_is_loaded(stage):
    stage.launcher.gate.hold()
    stage.launcher.errors["gpt2"] = [ModelLoadFailed(model="gpt2", problem="no")]
    loading = asyncio.create_task(stage.lifecycle.load(GPT2))
    await settle()
    request = asyncio.create_task(stage.infer())
    await settle()
    stage.launcher.gate.open()
    with pytest.raises(ModelNotLoaded):
        await request
    with pytest.raises(ModelLoadFailed):
        await loading


async def test_a_request_waits_no_longer_for_a_load_than_it_may(make_stage):
    stage = await make_stage(load_wait_s=60.0)
    stage.launcher.gate.hold()
    loading = asyncio.create_task(stage.lifecycle.load(GPT2))
    await settle()
    request = asyncio.create_task(stage.infer())
    await stage.clock.advance(59)
    assert not request.done()
    await stage.clock.advance(1)
    with pytest.raises(ModelLoading) as caught:
        await request
    assert caught.value.facts == {"model": "gpt2"}
    stage.launcher.gate.open()
    assert (await loading).model == "gpt2"


async def test_requests_share_the_failure_of_the_load_that_was_begun_for_them(make_stage):
    stage = await make_stage(inactivity_threshold_s=10)
    await stage.load()
    await stage.clock.advance(10)
    stage.models.profile_errors["gpt2"] = HubUnavailable(model="gpt2")
    stage.models.profile_gate.hold()
    requests = [asyncio.create_task(stage.infer()) for _ in range(3)]
    await settle()
    stage.models.profile_gate.open()
    results = await asyncio.gather(*requests, return_exceptions=True)
    assert [type(result) for result in results] == [HubUnavailable] * 3
    assert stage.models.profiled == ["gpt2", "gpt2"]


async def test_the_next_request_tries_a_failed_load_again(make_stage):
    stage = await make_stage(inactivity_threshold_s=10)
    await stage.load()
    await stage.clock.advance(10)
    stage.launcher.errors["gpt2"] = [ModelLoadFailed(model="gpt2", problem="no")]
    with pytest.raises(ModelLoadFailed):
        await stage.infer()
    assert (await stage.infer()).model == "gpt2"


async def test_a_request_that_leaves_while_it_waits_leaves_the_load_to_others(make_stage):
    stage = await make_stage(inactivity_threshold_s=10)
    await stage.load()
    await stage.clock.advance(10)
    stage.launcher.gate.hold()
    leaving, staying = asyncio.create_task(stage.infer()), asyncio.create_task(stage.infer())
    await settle()
    leaving.cancel()
    await settle()
    stage.launcher.gate.open()
    assert (await staying).model == "gpt2"
    assert (leaving.cancelled(), stage.launcher.cancelled) == (True, 0)


async def test_a_request_under_way_is_told_of_a_crash_and_the_next_one_starts_the_model_again(stage):
    engine = await stage.load()
    request = await stage.infer_until_held()
    engine.crash()
    with pytest.raises(ModelCrashed):
        await request
    answered = await stage.infer()
    assert (answered.text, answered.model) == ("Hello there", "gpt2")
    assert stage.launcher.engines[0] is engine
    assert len(stage.launcher.launched) == 2


async def test_a_crashed_model_is_not_shown_as_ready(stage):
    engine = await stage.load()
    engine.crash()
    await settle()
    assert [(line.name, line.state) for line in stage.lifecycle.status()] == [("gpt2", ModelState.UNLOADED)]
    assert stage.lifecycle.current == GPT2


async def test_a_load_after_a_crash_loads_again(stage):
    (await stage.load()).crash()
    engine = await stage.load()
    assert not engine.is_closed
    assert len(stage.launcher.launched) == 2


async def test_a_crash_of_one_model_leaves_the_other(make_stage):
    stage = await make_stage(max_resident_models=2)
    crashing = await stage.load("gpt2")
    await stage.load("other")
    crashing.crash()
    await settle()
    assert stage.launcher.live == ["other"]
    assert (await stage.infer()).model == "other"


async def test_status_counts_the_requests_of_a_model(stage):
    await stage.load()
    requests = [await stage.infer_until_held() for _ in range(3)]
    await stage.clock.advance(5)
    (line,) = stage.lifecycle.status()
    assert (line.in_flight, line.queued, line.unloads_in_s) == (3, 0, None)
    stage.engine.gate.open()
    await asyncio.gather(*requests)
    (line,) = stage.lifecycle.status()
    assert (line.in_flight, line.unloads_in_s) == (0, 300.0)
    assert line.last_used_s == stage.clock.wall_s()


@pytest.mark.parametrize(("batching", "most"), [("continuous", 2), ("sequential", 1)])
async def test_of_a_burst_that_the_engine_has_not_told_of_no_more_run_than_can(make_stage, batching, most):
    stage = await make_stage(max_batch=2)
    stage.launcher.facts = {"batching": batching}
    await stage.load()
    async with AsyncExitStack() as leases:
        for _ in range(5):
            await leases.enter_async_context(stage.lifecycle.lease())
        (line,) = stage.lifecycle.status()
        assert (line.in_flight, line.queued) == (most, 5 - most)
    (line,) = stage.lifecycle.status()
    assert (line.in_flight, line.queued) == (0, 0)


async def test_a_request_that_failed_gives_its_lease_back(stage):
    (await stage.load()).fail_with = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        await stage.infer()
    assert [line.in_flight for line in stage.lifecycle.status()] == [0]
