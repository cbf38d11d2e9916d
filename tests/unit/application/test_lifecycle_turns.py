"""Requests for several models that have not all place: taking turns, and starving nobody."""

from __future__ import annotations

import asyncio

import pytest

from fakes import settle
from inferapi.domain.errors import ModelsInUse
from inferapi.domain.model import LoadOptions, ModelRef

GPT2, OTHER = ModelRef("gpt2"), ModelRef("other")


@pytest.fixture
async def stage(make_stage):
    """One place; gpt2 is there and in use; requests wait ten seconds before they insist."""
    return await make_stage(max_queue_age_s=10.0, drain_timeout_s=30.0, load_wait_s=300.0)


async def test_a_model_in_use_takes_requests_until_one_for_another_has_waited_long_enough(stage):
    await stage.load("gpt2")
    running = await stage.hold("gpt2")
    waiting = await stage.hold("other")
    await stage.clock.advance(9)
    assert (await stage.hold("gpt2")).engine is running.engine
    await stage.clock.advance(1)
    late = await stage.hold("gpt2")
    assert (late.engine, waiting.engine) == (None, None)
    assert stage.states() == {"gpt2": "draining", "other": "admitting"}


async def test_what_runs_is_never_cut_off_by_a_request_and_then_the_turn_comes(stage):
    await stage.load("gpt2")
    running = await stage.hold("gpt2")
    waiting = await stage.hold("other")
    await stage.clock.advance(200)
    assert (running.engine.is_closed, waiting.engine) == (False, None)
    await running.finish()
    assert waiting.engine.facts.model == "other"
    assert stage.launcher.live == ["other"]


async def test_an_idle_model_that_served_as_long_as_its_load_took_goes_at_once(stage):
    await stage.load("gpt2")
    await stage.clock.advance(0.5)
    assert (await stage.infer(model="other")).model == "other"
    assert stage.launcher.live == ["other"]


async def test_a_model_that_was_loaded_just_now_stays_for_as_long_as_its_load_took(stage):
    await stage.load("gpt2")  # in half a second, by its facts
    waiting = await stage.hold("other")
    await stage.clock.advance(0.4)
    assert (stage.launcher.live, waiting.engine) == (["gpt2"], None)
    await stage.clock.advance(0.1)
    assert waiting.engine.facts.model == "other"


async def test_requests_of_two_models_alternate_in_groups_and_all_are_answered(stage):
    await stage.load("gpt2")
    requests = [asyncio.create_task(stage.infer(model=name)) for name in ("gpt2", "other") * 5]
    await stage.clock.advance(60)
    assert [(await request).model for request in requests] == ["gpt2", "other"] * 5
    assert [spec.model for spec in stage.launcher.launched] == ["gpt2", "other"]


async def test_a_model_that_is_never_idle_does_not_starve_the_other(stage):
    await stage.load("gpt2")
    last = await stage.hold("gpt2")
    waiting = await stage.hold("other")
    for _ in range(20):  # there is always one under way
        following = await stage.hold("gpt2")
        await last.finish()
        last = following
        await stage.clock.advance(1)
    assert waiting.engine is not None
    assert waiting.engine.facts.model == "other"
    await waiting.finish()
    await stage.clock.advance(20)
    assert last.engine.facts.model == "gpt2"  # and has its turn again


async def test_a_drained_model_is_ready_again_when_nobody_waits_for_the_other_any_more(stage):
    await stage.load("gpt2")
    running = await stage.hold("gpt2")
    waiting = await stage.hold("other")
    await stage.clock.advance(10)
    assert stage.states()["gpt2"] == "draining"
    await waiting.leave()
    late = await stage.hold("gpt2")
    await stage.clock.advance(5)
    assert stage.states() == {"gpt2": "ready"}
    assert late.engine is running.engine
    assert [spec.model for spec in stage.launcher.launched] == ["gpt2"]


async def test_a_load_that_nobody_waits_for_any_more_takes_no_model_away(stage):
    engine = await stage.load("gpt2")
    await stage.clock.advance(3)
    stage.models.fetch_gate.hold()
    request = await stage.hold("other")
    await request.leave()
    stage.models.fetch_gate.open()
    await stage.clock.advance(30)
    assert (stage.launcher.live, engine.is_closed) == (["gpt2"], False)


@pytest.mark.parametrize("ticks", range(8))
async def test_a_request_that_comes_as_an_abandoned_load_ends_is_answered_all_the_same(make_stage, ticks):
    stage = await make_stage(max_resident_models=2)
    stage.models.fetch_gate.hold()
    await (await stage.hold("other")).leave()

    async def request_at_that_instant():
        await stage.clock.sleep(5)
        for _ in range(ticks):
            await asyncio.sleep(0)
        return await stage.infer(model="other")

    request = asyncio.create_task(request_at_that_instant())
    await stage.clock.advance(5)
    stage.models.fetch_gate.open()
    assert (await request).model == "other"


async def test_an_operators_load_waits_for_a_busy_model_and_then_says_that_it_is_in_use(stage):
    await stage.load("gpt2")
    running = await stage.hold("gpt2")
    loading = asyncio.create_task(stage.lifecycle.load(OTHER))
    await stage.clock.advance(29)
    assert (loading.done(), stage.states()["gpt2"]) == (False, "draining")
    late = await stage.hold()
    await stage.clock.advance(1)
    with pytest.raises(ModelsInUse) as caught:
        await loading
    assert caught.value.facts == {"models": "gpt2"}
    assert caught.value.message.endswith("Model gpt2 is still serving.")
    assert stage.states() == {"gpt2": "ready"}
    assert (running.engine.is_closed, late.engine) == (False, running.engine)


async def test_an_operators_load_goes_before_the_loads_of_requests(make_stage):
    stage = await make_stage(max_resident_models=1)
    stage.launcher.gate.hold()
    first = await stage.hold("gpt2")
    second = await stage.hold("third")
    loading = asyncio.create_task(stage.lifecycle.load(OTHER))
    await settle()
    stage.launcher.gate.open()
    await settle()
    await first.finish()
    assert (await loading).model == "other"
    await stage.clock.advance(20)
    assert second.engine.facts.model == "third"
    assert [spec.model for spec in stage.launcher.launched] == ["gpt2", "other", "third"]


async def test_an_operator_who_asks_for_a_model_that_makes_room_just_now_is_answered_if_it_stays(make_stage):
    stage = await make_stage(max_resident_models=2, drain_timeout_s=30.0, pinned_models=("third",))
    await stage.load("third")
    await stage.load("gpt2")
    running = await stage.hold("gpt2")
    crowding_out = asyncio.create_task(stage.lifecycle.load(OTHER))
    await settle()
    assert stage.states()["gpt2"] == "draining"
    loading = asyncio.create_task(stage.lifecycle.load(GPT2))
    await stage.clock.advance(30)
    with pytest.raises(ModelsInUse):
        await crowding_out
    await stage.clock.advance(30)
    assert loading.done()
    assert ((await loading).model, running.engine.is_closed) == ("gpt2", False)
    assert len(stage.launcher.launched) == 2


async def test_a_request_never_cuts_off_what_runs_on_the_same_model_loaded_otherwise(make_stage):
    stage = await make_stage(max_resident_models=1, drain_timeout_s=30.0)
    await stage.load("other")
    busy = await stage.hold("other")
    waiting = await stage.hold("gpt2")  # its load waits for its turn, and an operator's overtakes it
    loading = asyncio.create_task(stage.lifecycle.load(GPT2, LoadOptions(dtype="float32")))
    await settle()
    await busy.finish()
    await loading
    running = await stage.hold()
    await stage.clock.advance(100)
    served = [request.engine for request in (waiting, running) if request.engine]
    assert [engine.is_closed for engine in served] == [False] * len(served)
    assert served
