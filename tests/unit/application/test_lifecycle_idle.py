from __future__ import annotations

import asyncio

import pytest

from fakes import settle
from inferapi.application.policy import NEVER_S
from inferapi.domain.errors import ModelNotLoaded
from inferapi.domain.model import ModelRef
from inferapi.domain.states import ModelState

GPT2, OTHER = ModelRef("gpt2"), ModelRef("other")


@pytest.fixture
async def stage(make_stage):
    return await make_stage(inactivity_threshold_s=300)


async def test_an_idle_model_is_unloaded_after_the_threshold_and_not_before(stage):
    await stage.load()
    await stage.clock.advance(299)
    assert stage.launcher.live == ["gpt2"]
    await stage.clock.advance(1)
    assert stage.launcher.live == []


async def test_the_threshold_counts_from_the_end_of_the_last_request(stage):
    await stage.load()
    await stage.clock.advance(100)
    request = await stage.infer_until_held()
    await stage.clock.advance(250)
    stage.engine.gate.open()
    await request
    await stage.clock.advance(299)
    assert stage.launcher.live == ["gpt2"]
    await stage.clock.advance(1)
    assert stage.launcher.live == []


async def test_a_model_is_never_unloaded_while_it_answers(stage):
    await stage.load()
    request = await stage.infer_until_held()
    await stage.clock.advance(10_000)
    assert stage.launcher.live == ["gpt2"]
    stage.engine.gate.open()
    assert (await request).text == "Hello there"


async def test_a_model_is_never_unloaded_while_a_request_is_queued(make_stage):
    stage = await make_stage(inactivity_threshold_s=300, max_batch=1)
    await stage.load()
    running = await stage.infer_until_held()
    queued = asyncio.create_task(stage.infer())
    await settle()
    assert [(line.in_flight, line.queued) for line in stage.lifecycle.status()] == [(1, 1)]
    await stage.clock.advance(10_000)
    assert stage.launcher.live == ["gpt2"]
    stage.engine.gate.open()
    assert [answered.text for answered in await asyncio.gather(running, queued)] == ["Hello there"] * 2


async def test_loading_it_again_counts_as_use(stage):
    await stage.load()
    await stage.clock.advance(200)
    await stage.load()
    await stage.clock.advance(200)
    assert stage.launcher.live == ["gpt2"]


async def test_a_shorter_threshold_counts_at_once(stage):
    await stage.load()
    await stage.clock.advance(200)
    stage.lifecycle.set_inactivity_threshold(150)
    await settle()
    assert stage.launcher.live == []


async def test_a_longer_threshold_counts_at_once(stage):
    await stage.load()
    await stage.clock.advance(200)
    stage.lifecycle.set_inactivity_threshold(1000)
    await stage.clock.advance(799)
    assert stage.launcher.live == ["gpt2"]
    await stage.clock.advance(1)
    assert stage.launcher.live == []


async def test_a_threshold_of_minus_one_never_comes(stage):
    await stage.load()
    stage.lifecycle.set_inactivity_threshold(NEVER_S)
    await stage.clock.advance(36_000)
    assert stage.launcher.live == ["gpt2"]
    assert [line.unloads_in_s for line in stage.lifecycle.status()] == [None]


async def test_after_never_a_threshold_counts_from_the_last_use(stage):
    await stage.load()
    stage.lifecycle.set_inactivity_threshold(NEVER_S)
    await stage.clock.advance(90)
    stage.lifecycle.set_inactivity_threshold(100)
    await stage.clock.advance(9)
    assert stage.launcher.live == ["gpt2"]
    await stage.clock.advance(1)
    assert stage.launcher.live == []


async def test_reading_the_status_keeps_no_model_awake_and_wakes_none(stage):
    await stage.load()
    seen = []
    for _ in range(4):
        seen += [(line.state, line.unloads_in_s) for line in stage.lifecycle.status()]
        await stage.clock.advance(100)
    seen += [(line.state, line.unloads_in_s) for line in stage.lifecycle.status()]
    ready, gone = ModelState.READY, ModelState.UNLOADED
    assert seen == [(ready, 300.0), (ready, 200.0), (ready, 100.0), (gone, None), (gone, None)]
    assert len(stage.launcher.launched) == 1


async def test_a_request_after_an_idle_unload_loads_the_model_again(stage):
    await stage.load()
    await stage.clock.advance(300)
    assert stage.launcher.live == []
    answered = await stage.infer()
    assert (answered.text, answered.model) == ("Hello there", "gpt2")
    assert len(stage.launcher.launched) == 2
    await stage.clock.advance(300)
    assert stage.launcher.live == []


async def test_ten_requests_after_an_idle_unload_load_it_once(stage):
    await stage.load()
    await stage.clock.advance(300)
    answers = await asyncio.gather(*(stage.infer() for _ in range(10)))
    assert {answered.text for answered in answers} == {"Hello there"}
    assert len(stage.launcher.launched) == 2


async def test_a_model_unloaded_on_purpose_is_not_brought_back(stage):
    await stage.load()
    assert await stage.lifecycle.unload() == (GPT2, False)
    with pytest.raises(ModelNotLoaded):
        await stage.infer()
    assert stage.launcher.live == []
    assert (stage.lifecycle.current, stage.lifecycle.status()) == (None, [])


async def test_a_model_that_went_idle_can_still_be_unloaded_on_purpose(stage):
    await stage.load()
    await stage.clock.advance(300)
    assert await stage.lifecycle.unload(GPT2) == (GPT2, False)
    with pytest.raises(ModelNotLoaded):
        await stage.infer()


async def test_an_unload_waits_for_the_answers_under_way(stage):
    await stage.load()
    request = await stage.infer_until_held()
    unloading = asyncio.create_task(stage.lifecycle.unload())
    await settle()
    assert (unloading.done(), stage.launcher.live) == (False, ["gpt2"])
    stage.engine.gate.open()
    assert (await request).text == "Hello there"
    await unloading
    assert stage.launcher.live == []


@pytest.mark.parametrize("ref", [None, GPT2])
async def test_what_is_not_loaded_cannot_be_unloaded(stage, ref):
    with pytest.raises(ModelNotLoaded):
        await stage.lifecycle.unload(ref)


async def test_a_model_that_is_not_current_can_be_unloaded_by_name(make_stage):
    stage = await make_stage(max_resident_models=2)
    await stage.load("gpt2")
    await stage.load("other")
    await stage.lifecycle.unload(GPT2)
    assert (stage.launcher.live, stage.lifecycle.current) == (["other"], OTHER)


async def test_each_model_goes_at_its_own_time(make_stage):
    stage = await make_stage(max_resident_models=2, inactivity_threshold_s=300)
    await stage.load("gpt2")
    await stage.clock.advance(100)
    await stage.load("other")
    await stage.clock.advance(200)
    assert stage.launcher.live == ["other"]
    await stage.clock.advance(100)
    assert stage.launcher.live == []


@pytest.mark.parametrize("ticks", range(12))
async def test_a_request_in_the_same_instant_as_the_idle_unload_is_answered(make_stage, ticks):
    stage = await make_stage(inactivity_threshold_s=300)

    async def request_at_that_instant():
        await stage.clock.sleep(300)
        for _ in range(ticks):
            await asyncio.sleep(0)
        return await stage.infer()

    await stage.load()
    await settle()
    request = asyncio.create_task(request_at_that_instant())
    await stage.clock.advance(300)

    assert (await request).text == "Hello there"
    assert [engine.cancelled for engine in stage.launcher.engines] == [0] * len(stage.launcher.engines)
    assert stage.launcher.live == ["gpt2"]
