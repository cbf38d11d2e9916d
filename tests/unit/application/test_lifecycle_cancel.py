"""An operator calls off a load: in every stage, for everybody who waits for it, and with nothing left behind."""

from __future__ import annotations

import asyncio

import pytest

from fakes import make_device, settle
from inferapi.domain.errors import LoadCancelled, ModelLoadFailed, ModelNotLoaded, OperationInProgress
from inferapi.domain.model import ModelRef

GPT2, OTHER = ModelRef("gpt2"), ModelRef("other")


async def hold_at(stage, state: str) -> None:
    """Stop the next load of a model in that stage."""
    gates = {
        "resolving": stage.models.profile_gate,
        "downloading": stage.models.fetch_gate,
        "loading": stage.launcher.gate,
        "warming": stage.launcher.warming_gate,
    }
    if state in gates:
        gates[state].hold()
    else:
        await stage.load("third")
        await stage.hold("third")  # so that there is no place
    await settle()


STAGES = ["resolving", "downloading", "admitting", "loading", "warming"]


@pytest.mark.parametrize("state", STAGES)
async def test_unloading_a_model_that_is_being_loaded_cancels_its_load_for_everybody(stage, state):
    await hold_at(stage, state)
    loads = [asyncio.create_task(stage.lifecycle.load(GPT2)) for _ in range(3)]
    await settle()
    waiting = await stage.hold("gpt2")
    assert stage.states()["gpt2"] == state
    assert await stage.lifecycle.unload(GPT2) == (GPT2, True)
    results = await asyncio.gather(*loads, waiting.task, return_exceptions=True)
    assert [type(result) for result in results] == [LoadCancelled] * 4
    assert "gpt2" not in stage.states()
    assert "gpt2" not in stage.launcher.live
    assert stage.told("gpt2")[-1] == ("load_cancelled", "gpt2", state)


@pytest.mark.parametrize("state", ["resolving", "downloading", "loading", "warming"])
async def test_a_cancelled_load_can_be_asked_for_again(stage, state):
    await hold_at(stage, state)
    loading = asyncio.create_task(stage.lifecycle.load(GPT2))
    await settle()
    await stage.lifecycle.unload(GPT2)
    await asyncio.gather(loading, return_exceptions=True)
    for gate in (stage.models.profile_gate, stage.models.fetch_gate, stage.launcher.gate, stage.launcher.warming_gate):
        gate.open()
    await stage.load("gpt2")
    assert (stage.launcher.live, stage.states()) == (["gpt2"], {"gpt2": "ready"})


async def test_unloading_without_a_name_cancels_the_first_load(stage):
    stage.launcher.gate.hold()
    loading = asyncio.create_task(stage.lifecycle.load(GPT2))
    await settle()
    assert await stage.lifecycle.unload() == (GPT2, True)
    with pytest.raises(LoadCancelled):
        await loading
    with pytest.raises(ModelNotLoaded):
        await stage.infer()


@pytest.mark.parametrize("ticks", range(8))
async def test_a_load_can_be_cancelled_as_early_as_one_likes(stage, ticks):
    stage.models.profile_gate.hold()
    loading = asyncio.create_task(stage.lifecycle.load(GPT2))
    for _ in range(ticks):
        await asyncio.sleep(0)
    unloading = asyncio.create_task(stage.lifecycle.unload(GPT2))
    await settle()
    stage.models.profile_gate.open()
    told = await asyncio.gather(loading, unloading, return_exceptions=True)
    if ticks:
        assert [type(one) for one in told] == [LoadCancelled, tuple]
    assert (await stage.load("other")).facts.model == "other"  # nothing stands in the way
    assert stage.states() == {"other": "ready"}


@pytest.mark.parametrize("ticks", range(12))
async def test_a_load_that_is_cancelled_as_its_engine_comes_leaves_no_engine(stage, ticks):
    stage.launcher.gate.hold()
    loading = asyncio.create_task(stage.lifecycle.load(GPT2))
    await settle()
    stage.launcher.gate.open()
    for _ in range(ticks):
        await asyncio.sleep(0)
    await stage.lifecycle.unload(GPT2)
    (told,) = await asyncio.gather(loading, return_exceptions=True)
    assert isinstance(told, LoadCancelled) or told.model == "gpt2"
    assert (stage.launcher.live, stage.states()) == ([], {})


async def test_a_change_that_is_cancelled_brings_the_old_model_back_and_says_so(stage):
    await stage.load("gpt2")
    stage.launcher.gate.hold()
    changing = asyncio.create_task(stage.lifecycle.change(OTHER))
    await settle()
    assert stage.launcher.live == []
    unloading = asyncio.create_task(stage.lifecycle.unload(OTHER))
    await settle()
    stage.launcher.gate.open()
    with pytest.raises(LoadCancelled) as caught:
        await changing
    assert caught.value.message == "Loading model other was cancelled. Model gpt2 is serving again."
    assert await unloading == (OTHER, True)
    assert (stage.launcher.live, stage.lifecycle.current) == (["gpt2"], GPT2)


@pytest.mark.parametrize("state", ["resolving", "downloading"])
async def test_a_change_that_is_cancelled_early_leaves_the_old_model_and_says_so(stage, state):
    engine = await stage.load("gpt2")
    await hold_at(stage, state)
    changing = asyncio.create_task(stage.lifecycle.change(OTHER))
    await settle()
    await stage.lifecycle.unload(OTHER)
    with pytest.raises(LoadCancelled) as caught:
        await changing
    assert (stage.launcher.engines, engine.is_closed) == ([engine], False)
    assert caught.value.message == "Loading model other was cancelled. Model gpt2 is still serving."


async def test_a_change_that_is_cancelled_while_the_old_model_drains_lets_it_go_on(stage):
    await stage.load("gpt2")
    running = await stage.hold()
    changing = asyncio.create_task(stage.lifecycle.change(OTHER))
    await settle()
    assert stage.states()["gpt2"] == "draining"
    await stage.lifecycle.unload(OTHER)
    with pytest.raises(LoadCancelled) as caught:
        await changing
    assert caught.value.message == "Loading model other was cancelled. Model gpt2 is still serving."
    assert (stage.states(), (await stage.hold()).engine) == ({"gpt2": "ready"}, running.engine)
    await stage.clock.advance(60)
    assert not running.engine.is_closed


@pytest.mark.parametrize("gate", ["the old model ends", "the old model is loaded again"])
async def test_cancelling_twice_brings_the_old_model_back_as_cancelling_once_does(stage, gate):
    old = await stage.load("gpt2")
    held = old.closing_gate if gate == "the old model ends" else stage.launcher.gate
    held.hold()
    changing = asyncio.create_task(stage.lifecycle.change(OTHER))
    await settle()
    unloads = []
    for _ in range(3):
        unloads.append(asyncio.create_task(stage.lifecycle.unload(OTHER)))
        await settle()
    held.open()
    await asyncio.gather(*unloads, return_exceptions=True)
    with pytest.raises(LoadCancelled) as caught:
        await changing
    assert caught.value.message == "Loading model other was cancelled. Model gpt2 is serving again."
    assert [spec.model for spec in stage.launcher.launched].count("gpt2") == 2
    assert (stage.launcher.live, stage.states()) == (["gpt2"], {"gpt2": "ready"})


async def test_a_load_that_is_asked_for_again_while_the_old_model_comes_back_is_not_cancelled_with_the_first(stage):
    await stage.load("gpt2")
    stage.launcher.gate.hold()
    changing = asyncio.create_task(stage.lifecycle.change(OTHER))
    await settle()
    unloading = asyncio.create_task(stage.lifecycle.unload(OTHER))
    await settle()
    again = asyncio.create_task(stage.lifecycle.load(OTHER))
    await settle()
    stage.launcher.gate.open()
    results = await asyncio.gather(changing, unloading, again, return_exceptions=True)
    assert isinstance(results[0], LoadCancelled)
    assert not isinstance(results[2], LoadCancelled)
    assert isinstance(results[2], OperationInProgress) or results[2].model == "other"


async def test_a_model_that_was_unloaded_on_purpose_is_not_brought_back_by_the_failure_of_another(stage):
    await stage.load("gpt2")
    running = await stage.hold()
    unloading = asyncio.create_task(stage.lifecycle.unload(GPT2))
    await settle()
    stage.launcher.errors["other"] = [ModelLoadFailed(model="other", problem="no")]
    loading = asyncio.create_task(stage.lifecycle.load(OTHER))
    await settle()
    await running.finish()
    with pytest.raises(ModelLoadFailed):
        await loading
    assert await unloading == (GPT2, False)
    assert (stage.launcher.live, [spec.model for spec in stage.launcher.launched]) == ([], ["gpt2", "other"])


async def test_the_model_that_makes_room_cannot_be_unloaded_meanwhile(stage):
    await stage.load("gpt2")
    stage.launcher.gate.hold()
    changing = asyncio.create_task(stage.lifecycle.change(OTHER))
    await settle()
    with pytest.raises(OperationInProgress) as caught:
        await stage.lifecycle.unload(GPT2)
    assert caught.value.facts == {"operation": "changing to other"}
    stage.launcher.gate.open()
    assert (await changing).model == "other"


async def test_a_change_that_joined_a_requests_load_takes_the_old_model_away_though_its_client_left(make_stage):
    stage = await make_stage(max_resident_models=2)
    await stage.load("gpt2")
    stage.launcher.gate.hold()
    await stage.hold("other")
    changing = asyncio.create_task(stage.lifecycle.change(OTHER))
    await settle()
    changing.cancel()
    await settle()
    stage.launcher.gate.open()
    await settle()
    assert (stage.launcher.live, stage.lifecycle.current) == (["other"], OTHER)


@pytest.mark.parametrize("failure", ["no memory", "no process"])
async def test_calling_off_a_load_that_failed_already_lets_the_old_model_come_back(make_stage, failure):
    stage = await make_stage(load_stall_timeout_s=60.0, inactivity_threshold_s=-1)
    old = await stage.load("gpt2")
    old.closing_gate.hold()
    changing = asyncio.create_task(stage.lifecycle.change(OTHER))
    await settle()
    if failure == "no memory":
        stage.probe.reading = make_device(free_bytes=0)  # found when gpt2 is gone
    old.closing_gate.open()
    stage.launcher.gate.hold()
    stage.launcher.errors["other"] = [ModelLoadFailed(model="other", problem="no")]
    await settle()
    if failure == "no process":
        stage.launcher.gate.open()
        stage.launcher.warming_gate.hold()
        await settle()
        stage.launcher.gate.hold()
        stage.launcher.warming_gate.open()
        await settle()
    assert stage.states()["gpt2"] == "loading"
    unloading = asyncio.create_task(stage.lifecycle.unload(OTHER))
    await settle()
    stage.launcher.gate.open()
    (told, _) = await asyncio.gather(changing, unloading, return_exceptions=True)
    assert told.message.endswith("Model gpt2 is serving again.")
    assert (stage.launcher.live, stage.states()) == (["gpt2"], {"gpt2": "ready"})
