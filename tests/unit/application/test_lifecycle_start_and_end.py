from __future__ import annotations

import asyncio

import pytest

from fakes import settle
from inferapi.domain.errors import GenerationAborted, ModelLoadFailed, ModelNotAllowed, ModelNotLoaded, ShuttingDown
from inferapi.domain.model import ModelRef

GPT2 = ModelRef("gpt2")


async def test_without_a_model_named_at_start_it_is_ready_at_once(stage):
    assert stage.lifecycle.unready_reason is None


async def test_it_is_not_ready_before_the_model_named_at_start_is_loaded(make_stage):
    stage = await make_stage(start=False, preload=GPT2)
    stage.launcher.gate.hold()
    await stage.lifecycle.start()
    await settle()
    assert stage.lifecycle.unready_reason == "loading"
    stage.launcher.gate.open()
    await settle()
    assert (stage.lifecycle.unready_reason, stage.lifecycle.current) == (None, GPT2)
    assert (await stage.infer()).model == "gpt2"


async def test_a_request_waits_for_the_model_named_at_start(make_stage):
    stage = await make_stage(preload=GPT2)
    assert (await stage.infer()).model == "gpt2"
    assert len(stage.launcher.launched) == 1


async def test_loading_the_model_named_at_start_joins_its_load(make_stage):
    stage = await make_stage(preload=GPT2)
    assert (await stage.lifecycle.load(GPT2)).model == "gpt2"
    assert len(stage.launcher.launched) == 1


async def test_when_the_model_named_at_start_fails_it_stays_unready_until_a_load_works(make_stage):
    stage = await make_stage(start=False, preload=GPT2)
    stage.launcher.errors["gpt2"] = [ModelLoadFailed(model="gpt2", problem="no")]
    await stage.lifecycle.start()
    await settle()
    assert stage.lifecycle.unready_reason == "loading the model named at start failed"
    with pytest.raises(ModelNotLoaded):
        await stage.infer()
    await stage.load("other")
    assert stage.lifecycle.unready_reason is None


async def test_a_model_named_at_start_must_be_allowed(make_stage):
    with pytest.raises(ModelNotAllowed):
        await make_stage(preload=GPT2, allowed_models=("other",))


async def test_an_idle_unload_leaves_it_ready(make_stage):
    stage = await make_stage(preload=GPT2, inactivity_threshold_s=10)
    await settle()
    await stage.clock.advance(10)
    assert (stage.launcher.live, stage.lifecycle.unready_reason) == ([], None)


async def test_the_end_lets_running_answers_finish(stage):
    await stage.load()
    request = await stage.infer_until_held()
    closing = asyncio.create_task(stage.lifecycle.aclose())
    await settle()
    assert (closing.done(), stage.lifecycle.unready_reason) == (False, "draining")
    stage.engine.gate.open()
    assert (await request).text == "Hello there"
    await closing
    assert (stage.launcher.live, stage.launcher.is_closed) == ([], True)


async def test_the_end_waits_no_longer_than_the_drain_deadline(make_stage):
    stage = await make_stage(drain_timeout_s=30.0)
    await stage.load()
    request = await stage.infer_until_held()
    closing = asyncio.create_task(stage.lifecycle.aclose())
    await stage.clock.advance(29)
    assert not closing.done()
    await stage.clock.advance(1)
    await closing
    with pytest.raises(GenerationAborted):
        await request
    assert stage.launcher.live == []


async def test_nothing_new_begins_while_it_ends(stage):
    await stage.load()
    running = await stage.infer_until_held()
    closing = asyncio.create_task(stage.lifecycle.aclose())
    await settle()
    for refused in (stage.infer(), stage.load("other"), stage.lifecycle.change(ModelRef("other"))):
        with pytest.raises(ShuttingDown):
            await refused
    stage.engine.gate.open()
    await asyncio.gather(running, closing)


async def test_the_end_cuts_a_load_short(stage):
    stage.launcher.gate.hold()
    loading = asyncio.create_task(stage.lifecycle.load(GPT2))
    await settle()
    await stage.lifecycle.aclose()
    assert (stage.launcher.cancelled, stage.launcher.live) == (1, [])
    await asyncio.gather(loading, return_exceptions=True)


async def test_a_client_whose_load_is_cut_short_by_the_end_is_told_so(stage):
    stage.launcher.gate.hold()
    loading = asyncio.create_task(stage.lifecycle.load(GPT2))
    await settle()
    await stage.lifecycle.aclose()
    with pytest.raises(ShuttingDown):
        await loading


async def test_a_change_that_waited_for_a_reload_does_not_begin_after_the_end(make_stage):
    stage = await make_stage(inactivity_threshold_s=1)
    await stage.load()
    await stage.clock.advance(2)
    stage.launcher.gate.hold()
    request = asyncio.create_task(stage.infer())  # loads it again
    await settle()
    changing = asyncio.create_task(stage.lifecycle.change(ModelRef.parse("other")))
    await settle()
    await stage.lifecycle.aclose()
    stage.launcher.gate.open()
    for task in (request, changing):
        with pytest.raises(ShuttingDown):
            await task
    await settle()
    assert stage.launcher.live == []


async def test_a_request_that_waits_for_a_load_is_told_of_the_end(make_stage):
    stage = await make_stage(preload=GPT2)
    stage.launcher.gate.hold()
    request = asyncio.create_task(stage.infer())
    await settle()
    await stage.lifecycle.aclose()
    with pytest.raises(ShuttingDown):
        await request


async def test_the_end_in_the_middle_of_a_change_leaves_no_engine(stage):
    await stage.load()
    running = await stage.infer_until_held()
    changing = asyncio.create_task(stage.lifecycle.change(ModelRef("other")))
    await settle()
    closing = asyncio.create_task(stage.lifecycle.aclose())
    await settle()
    stage.engine.gate.open()
    assert (await running).text == "Hello there"
    await closing
    assert stage.launcher.live == []
    await asyncio.gather(changing, return_exceptions=True)


async def test_ending_before_the_start_is_fine(make_stage):
    stage = await make_stage(start=False)
    await stage.lifecycle.aclose()
    assert stage.launcher.is_closed


async def test_draining_ends_every_engine_and_ending_afterwards_the_launcher(stage):
    await stage.load()
    await stage.lifecycle.drain()
    assert (stage.launcher.live, stage.launcher.is_closed) == ([], False)
    assert stage.lifecycle.unready_reason == "draining"
    with pytest.raises(ShuttingDown):
        await stage.load()
    await stage.lifecycle.aclose()
    assert stage.launcher.is_closed
