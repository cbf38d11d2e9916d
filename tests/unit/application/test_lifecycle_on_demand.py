"""Requests that name a model, and what they wait for."""

from __future__ import annotations

import asyncio

import pytest

from fakes import make_profile, settle
from inferapi.domain.errors import (
    HubUnavailable,
    ModelLoading,
    ModelNotAllowed,
    ModelNotFound,
    QueueFull,
)
from inferapi.domain.model import LoadOptions, ModelRef

GPT2, OTHER = ModelRef("gpt2"), ModelRef("other")


@pytest.fixture
async def roomy(make_stage):
    return await make_stage(max_resident_models=2)


async def test_a_request_that_names_a_model_loads_it_beside_the_current_one(roomy):
    await roomy.load("gpt2")
    assert (await roomy.infer(model="other")).model == "other"
    assert roomy.launcher.live == ["gpt2", "other"]


async def test_a_request_that_names_a_model_does_not_make_it_current(roomy):
    await roomy.load("gpt2")
    await roomy.infer(model="other")
    assert roomy.lifecycle.current == GPT2
    assert (await roomy.infer()).model == "gpt2"


async def test_before_any_load_a_named_model_is_loaded_and_none_is_current(roomy):
    assert (await roomy.infer(model="other")).model == "other"
    assert roomy.lifecycle.current is None


async def test_a_loaded_model_is_taken_as_it_was_loaded(roomy):
    await roomy.lifecycle.load(GPT2, LoadOptions(dtype="float32"))
    assert (await roomy.infer(model="gpt2")).model == "gpt2"
    assert [spec.dtype for spec in roomy.launcher.launched] == ["float32"]


async def test_a_request_joins_the_load_of_its_model_as_an_operator_began_it(roomy):
    roomy.launcher.gate.hold()
    loading = asyncio.create_task(roomy.lifecycle.load(GPT2, LoadOptions(dtype="float32")))
    await settle()
    request = asyncio.create_task(roomy.infer(model="gpt2"))
    await settle()
    roomy.launcher.gate.open()
    assert ((await request).model, (await loading).dtype) == ("gpt2", "float32")
    assert len(roomy.launcher.launched) == 1


async def test_an_operator_who_joins_a_load_that_a_request_began_makes_it_current(roomy):
    roomy.launcher.gate.hold()
    request = asyncio.create_task(roomy.infer(model="gpt2"))
    await settle()
    loading = asyncio.create_task(roomy.lifecycle.load(GPT2))
    await settle()
    roomy.launcher.gate.open()
    await asyncio.gather(request, loading)
    assert roomy.lifecycle.current == GPT2
    assert len(roomy.launcher.launched) == 1


async def test_a_request_cannot_name_what_the_operator_does_not_allow(make_stage):
    stage = await make_stage(allowed_models=("gpt2",))
    with pytest.raises(ModelNotAllowed):
        await stage.infer(model="other")
    assert stage.models.profiled == []


async def test_a_request_for_an_unknown_model_is_told_so_and_disturbs_nobody(roomy):
    engine = await roomy.load("gpt2")
    with pytest.raises(ModelNotFound):
        await roomy.infer(model="nobody")
    assert (roomy.launcher.engines, engine.is_closed) == ([engine], False)


async def test_after_two_failures_in_a_row_requests_are_told_the_last_one_without_another_try(roomy):
    tries = []
    for _ in range(4):
        with pytest.raises(ModelNotFound):
            await roomy.infer(model="nobody")
        tries.append(len(roomy.models.profiled))
    assert tries == [1, 2, 2, 2]
    await roomy.clock.advance(1)
    with pytest.raises(ModelNotFound):
        await roomy.infer(model="nobody")
    assert len(roomy.models.profiled) == 3


async def test_an_operator_need_not_wait_for_another_try(roomy):
    roomy.models.profile_errors["gpt2"] = HubUnavailable(model="gpt2")
    for _ in range(2):
        with pytest.raises(HubUnavailable):
            await roomy.infer(model="gpt2")
    roomy.models.profile_errors.clear()
    assert (await roomy.load("gpt2")).facts.model == "gpt2"
    assert (await roomy.infer(model="gpt2")).model == "gpt2"


async def test_whoever_waits_for_a_load_has_a_lease_before_anybody_can_evict_it(stage):
    stage.launcher.gate.hold()
    waiting = await stage.hold("gpt2")
    rival = asyncio.create_task(stage.lifecycle.load(OTHER))
    await settle()
    assert stage.states() == {"gpt2": "loading", "other": "admitting"}
    stage.launcher.gate.open()
    await settle()
    assert waiting.engine.facts.model == "gpt2"
    assert (waiting.engine.is_closed, rival.done()) == (False, False)
    await waiting.finish()
    assert (await rival).model == "other"


async def test_no_more_wait_for_a_model_than_a_batch_and_a_queue(make_stage):
    stage = await make_stage(max_batch=1, max_queue=2, max_resident_models=2)
    stage.launcher.gate.hold()
    waiting = [await stage.hold("gpt2") for _ in range(3)]
    with pytest.raises(QueueFull) as caught:
        await stage.infer(model="gpt2")
    assert caught.value.facts == {"waiting": 3}
    other = await stage.hold("other")  # another model has a queue of its own
    assert not other.task.done()
    await waiting[0].leave()
    assert not (await stage.hold("gpt2")).task.done()


async def test_requests_that_name_the_current_model_wait_in_the_same_queue_as_those_that_name_none(make_stage):
    stage = await make_stage(max_batch=1, max_queue=1, inactivity_threshold_s=10)
    await stage.load("gpt2")
    await stage.clock.advance(10)
    stage.launcher.gate.hold()
    await stage.hold()
    await stage.hold("gpt2")
    for name in (None, "gpt2"):
        with pytest.raises(QueueFull):
            await stage.infer(model=name)


async def test_a_named_request_waits_no_longer_for_a_load_than_it_may(make_stage):
    stage = await make_stage(load_wait_s=60.0)
    stage.launcher.gate.hold()
    request = asyncio.create_task(stage.infer(model="gpt2"))
    await stage.clock.advance(59)
    assert not request.done()
    await stage.clock.advance(1)
    with pytest.raises(ModelLoading) as caught:
        await request
    assert caught.value.facts == {"model": "gpt2"}


async def test_two_names_of_one_commit_are_one_model_in_memory(roomy):
    roomy.models._profiles["gpt2"] = make_profile("gpt2", commit="abc")
    await roomy.load("gpt2")
    assert (await roomy.infer(model="gpt2@main")).model == "gpt2"
    assert (await roomy.lifecycle.load(ModelRef("gpt2", "main"))).model == "gpt2"
    assert roomy.launcher.live == ["gpt2"]
    assert len(roomy.launcher.launched) == 1
    assert await roomy.lifecycle.unload(ModelRef("gpt2", "main")) == (GPT2, False)
    assert roomy.launcher.live == []


async def test_another_commit_of_one_name_is_another_model(roomy):
    roomy.models._profiles["gpt2"] = make_profile("gpt2", commit=None)
    await roomy.load("gpt2")
    assert (await roomy.infer(model="gpt2@main")).model == "gpt2@main"
    assert roomy.launcher.live == ["gpt2", "gpt2@main"]


async def test_an_operators_wish_to_pin_holds_for_a_twin_too(stage):
    stage.models._profiles["gpt2"] = make_profile("gpt2", commit="abc")
    await stage.load("gpt2")
    await stage.lifecycle.load(ModelRef("gpt2", "main"), pinned=True)
    assert [(line.name, line.pinned) for line in stage.lifecycle.status()] == [("gpt2", True)]
