from __future__ import annotations

import asyncio

import pytest

from fakes import make_device, settle
from inferapi.domain.errors import (
    GenerationAborted,
    InsufficientMemory,
    ModelLoadFailed,
    ModelNotFound,
    ModelNotLoaded,
)
from inferapi.domain.model import ModelRef
from inferapi.domain.states import ModelState

GPT2, OTHER, THIRD = ModelRef("gpt2"), ModelRef("other"), ModelRef("third")


async def test_a_change_lets_running_requests_finish_on_the_old_model(stage):
    old = await stage.load()
    request = await stage.infer_until_held()
    changing = asyncio.create_task(stage.lifecycle.change(OTHER))
    await settle()
    assert stage.models.fetched == ["gpt2", "other"]  # all that can be done while the old one serves
    assert stage.launcher.live == ["gpt2"]
    assert [line.state for line in stage.lifecycle.status()] == [ModelState.DRAINING, ModelState.ADMITTING]

    old.gate.open()
    answered, facts = await request, await changing

    assert (answered.text, answered.model) == ("Hello there", "gpt2")
    assert (facts.model, stage.launcher.live, stage.lifecycle.current) == ("other", ["other"], OTHER)


async def test_a_request_that_comes_while_the_old_model_drains_is_answered_by_the_new_one(stage):
    old = await stage.load()
    running = await stage.infer_until_held()
    changing = asyncio.create_task(stage.lifecycle.change(OTHER))
    await settle()
    late = asyncio.create_task(stage.infer())
    await settle()
    assert len(old.requests) == 1
    old.gate.open()
    await asyncio.gather(running, changing)
    assert (await late).model == "other"


async def test_a_request_that_outlives_the_drain_deadline_is_told_so(make_stage):
    stage = await make_stage(drain_timeout_s=30.0)
    await stage.load()
    request = await stage.infer_until_held()
    changing = asyncio.create_task(stage.lifecycle.change(OTHER))
    await stage.clock.advance(29)
    assert not changing.done()
    await stage.clock.advance(1)
    with pytest.raises(GenerationAborted):
        await request
    assert (await changing).model == "other"
    assert stage.launcher.live == ["other"]


async def test_a_change_that_fails_brings_the_old_model_back_and_says_so(stage):
    await stage.load()
    stage.launcher.errors["other"] = [ModelLoadFailed(model="other", problem="no")]
    with pytest.raises(ModelLoadFailed) as caught:
        await stage.lifecycle.change(OTHER)
    assert caught.value.message.endswith("Model gpt2 is serving again.")
    assert (stage.launcher.live, stage.lifecycle.current) == (["gpt2"], GPT2)
    assert (await stage.infer()).model == "gpt2"


async def test_a_change_that_breaks_in_an_unforeseen_way_brings_the_old_model_back_too(stage):
    await stage.load()
    stage.launcher.errors["other"] = [OSError(24, "no descriptors left")]
    with pytest.raises(OSError, match="no descriptors"):
        await stage.lifecycle.change(OTHER)
    assert stage.launcher.live == ["gpt2"]
    assert (await stage.infer()).model == "gpt2"


async def test_a_request_that_waits_for_a_change_that_fails_is_answered_by_the_old_model(stage):
    await stage.load()
    stage.launcher.gate.hold()
    stage.launcher.errors["other"] = [ModelLoadFailed(model="other", problem="no")]
    changing = asyncio.create_task(stage.lifecycle.change(OTHER))
    await settle()
    waiting = asyncio.create_task(stage.infer())
    await settle()
    stage.launcher.gate.open()
    assert (await waiting).model == "gpt2"
    with pytest.raises(ModelLoadFailed):
        await changing


@pytest.mark.parametrize("stage_of_failure", ["profile", "memory"])
async def test_a_change_that_is_refused_leaves_the_old_model_untouched(stage, stage_of_failure):
    engine = await stage.load()
    if stage_of_failure == "profile":
        stage.models.profile_errors["other"] = ModelNotFound(model="other")
    else:
        stage.probe.reading = make_device(free_bytes=0)
    with pytest.raises((ModelNotFound, InsufficientMemory)):
        await stage.lifecycle.change(OTHER)
    assert (stage.launcher.engines, engine.is_closed) == ([engine], False)
    assert stage.lifecycle.current == GPT2


async def test_there_is_nothing_to_change_before_a_load(stage):
    with pytest.raises(ModelNotLoaded):
        await stage.lifecycle.change(OTHER)
    assert stage.models.profiled == []


async def test_a_change_to_what_is_current_changes_nothing(stage):
    engine = await stage.load()
    assert await stage.lifecycle.change(GPT2) == engine.facts
    assert (stage.launcher.engines, engine.is_closed) == ([engine], False)


async def test_a_change_replaces_the_current_model_even_where_there_is_room(make_stage):
    stage = await make_stage(max_resident_models=3)
    await stage.load("third")
    await stage.load("gpt2")
    await stage.lifecycle.change(OTHER)
    assert stage.launcher.live == ["third", "other"]


async def test_a_change_to_a_model_that_is_resident_unloads_the_current_one_and_loads_nothing(make_stage):
    stage = await make_stage(max_resident_models=2)
    await stage.load("other")
    await stage.load("gpt2")
    facts = await stage.lifecycle.change(OTHER)
    assert (facts.model, stage.launcher.live, stage.lifecycle.current) == ("other", ["other"], OTHER)
    assert len(stage.launcher.launched) == 2


async def test_ten_changes_to_one_model_are_one_change(stage):
    await stage.load()
    facts = await asyncio.gather(*(stage.lifecycle.change(OTHER) for _ in range(10)))
    assert [fact.model for fact in facts] == ["other"] * 10
    assert [spec.model for spec in stage.launcher.launched] == ["gpt2", "other"]


async def test_a_client_that_leaves_does_not_cancel_the_change(stage):
    await stage.load()
    stage.launcher.gate.hold()
    client = asyncio.create_task(stage.lifecycle.change(OTHER))
    await settle()
    client.cancel()
    await asyncio.gather(client, return_exceptions=True)
    stage.launcher.gate.open()
    await settle()
    assert (stage.launcher.live, stage.lifecycle.current) == (["other"], OTHER)


async def test_a_change_of_an_idle_unloaded_model_loads_the_new_one_alone(make_stage):
    stage = await make_stage(inactivity_threshold_s=10)
    await stage.load()
    await stage.clock.advance(10)
    assert stage.launcher.live == []
    await stage.lifecycle.change(OTHER)
    assert [spec.model for spec in stage.launcher.launched] == ["gpt2", "other"]
    assert stage.lifecycle.current == OTHER
