"""Who makes room: the idle and unpinned, the fewest, the cheapest to bring back; never for what is refused."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from fakes import GIB, make_device, make_profile, settle
from inferapi.domain.errors import InsufficientMemory, ModelNotFound, ModelsInUse, OutOfMemory
from inferapi.domain.model import ModelRef

GPT2, OTHER, THIRD = ModelRef("gpt2"), ModelRef("other"), ModelRef("third")


@pytest.fixture
async def pair(make_stage):
    """Two places, and gpt2 and other in them: gpt2 the longer idle."""
    stage = await make_stage(max_resident_models=2)
    await stage.load("gpt2")
    await stage.clock.advance(5)
    await stage.load("other")
    await stage.clock.advance(5)
    return stage


async def test_the_longest_idle_of_models_that_load_alike_makes_room(pair):
    await pair.load("third")
    assert pair.launcher.live == ["other", "third"]


async def test_use_keeps_a_model(pair):
    await pair.infer(model="gpt2")
    await pair.load("third")
    assert pair.launcher.live == ["gpt2", "third"]


async def test_both_go_where_one_is_not_enough(pair):
    pair.probe.reading = make_device(free_bytes=1 * GIB)
    pair.probe.taken = lambda: 2 * GIB * (len(pair.launcher.live) - 2)
    pair.launcher._memory_bytes = 4 * GIB
    pair.models._profiles["third"] = make_profile("third", parameters_by_dtype={"BF16": 1_600_000_000})
    await pair.load("third")
    assert pair.launcher.live == ["third"]


@pytest.mark.parametrize("pinned_by", ["settings", "operator"])
async def test_a_pinned_model_makes_room_for_nobody(make_stage, pinned_by):
    stage = await make_stage(max_resident_models=2, pinned_models=("gpt*",) if pinned_by == "settings" else ())
    await stage.lifecycle.load(GPT2, pinned=None if pinned_by == "settings" else True)
    await stage.clock.advance(100)
    await stage.load("other")
    await stage.load("third")
    assert stage.launcher.live == ["gpt2", "third"]
    assert [(line.name, line.pinned) for line in stage.lifecycle.status()] == [("gpt2", True), ("third", False)]


async def test_a_pinned_model_does_not_go_idle(make_stage):
    stage = await make_stage(pinned_models=("gpt2",), inactivity_threshold_s=10)
    await stage.load("gpt2")
    assert [line.unloads_in_s for line in stage.lifecycle.status()] == [None]
    await stage.clock.advance(1000)
    assert stage.launcher.live == ["gpt2"]


async def test_where_all_are_pinned_a_load_says_who_is_in_the_way(make_stage):
    stage = await make_stage(pinned_models=("gpt2",))
    engine = await stage.load("gpt2")
    with pytest.raises(ModelsInUse) as caught:
        await stage.load("other")
    assert caught.value.facts == {"models": "gpt2"}
    assert (stage.models.fetched, engine.is_closed) == (["gpt2"], False)


@pytest.mark.parametrize("method", ["unload", "change"])
async def test_a_pinned_model_goes_when_an_operator_says_so(make_stage, method):
    stage = await make_stage(pinned_models=("gpt2",))
    await stage.load("gpt2")
    await getattr(stage.lifecycle, method)(*([OTHER] if method == "change" else []))
    assert stage.launcher.live == (["other"] if method == "change" else [])


async def test_pinning_can_be_taken_back(make_stage):
    stage = await make_stage(pinned_models=("gpt2",), max_resident_models=2)
    await stage.load("gpt2")
    await stage.lifecycle.load(GPT2, pinned=False)
    assert [line.pinned for line in stage.lifecycle.status()] == [False]
    await stage.lifecycle.load(OTHER, pinned=True)
    await stage.load("third")
    assert stage.launcher.live == ["other", "third"]


async def test_a_change_to_a_model_in_memory_can_pin_it(pair):
    await pair.lifecycle.change(GPT2, pinned=True)
    assert [(line.name, line.pinned) for line in pair.lifecycle.status()] == [("gpt2", True)]


async def test_the_budget_binds_before_the_places_do(make_stage):
    stage = await make_stage(max_resident_models=5, memory_budget_bytes=6 * GIB)
    for name in ("gpt2", "other", "third"):
        await stage.load(name)
        await stage.clock.advance(1)
    promised = {spec.model: spec.promised_bytes for spec in stage.launcher.launched}
    assert stage.launcher.live == ["other", "third"]
    assert sum(promised[name] for name in stage.launcher.live) <= 6 * GIB < sum(promised.values())


async def test_the_places_bind_before_the_memory_does(make_stage):
    stage = await make_stage(max_resident_models=2)
    stage.probe.reading = make_device(total_bytes=64 * GIB, free_bytes=60 * GIB)
    for name in ("gpt2", "other", "third"):
        await stage.load(name)
        await stage.clock.advance(1)
    assert stage.launcher.live == ["other", "third"]


@pytest.mark.parametrize("refusal", ["unknown", "memory"])
async def test_a_load_that_is_refused_takes_nobodys_place(pair, refusal):
    if refusal == "memory":
        pair.probe.reading = make_device(free_bytes=0)
        pair.launcher.engines[0].memory_bytes = pair.launcher.engines[1].memory_bytes = 0
        for engine in pair.launcher.engines:
            engine._facts = replace(engine.facts, memory_bytes=0)
    name = "third" if refusal == "memory" else "nobody"
    with pytest.raises(InsufficientMemory if refusal == "memory" else ModelNotFound) as caught:
        await pair.load(name)
    assert pair.launcher.live == ["gpt2", "other"]
    assert pair.models.fetched == ["gpt2", "other"]
    assert caught.value.message.endswith("Model gpt2 is still serving. Model other is still serving.")


async def test_when_memory_runs_out_while_loading_all_idle_models_go_and_it_is_tried_once_more(make_stage):
    stage = await make_stage(max_resident_models=4, pinned_models=("third",))
    for name in ("third", "gpt2", "org/name"):
        await stage.load(name)
    running = await stage.hold("gpt2")
    stage.launcher.errors["other"] = [OutOfMemory()]
    await stage.load("other")
    assert stage.launcher.live == ["third", "gpt2", "other"]  # neither the pinned nor the busy one
    assert not running.engine.is_closed
    assert [spec.model for spec in stage.launcher.launched][-2:] == ["other", "other"]


async def test_when_memory_runs_out_twice_everybody_is_back(make_stage):
    stage = await make_stage(max_resident_models=3)
    await stage.load("gpt2")
    await stage.load("third")
    stage.launcher.errors["other"] = [OutOfMemory(), OutOfMemory()]
    with pytest.raises(InsufficientMemory) as caught:
        await stage.load("other")
    assert caught.value.message.endswith(
        "memory ran out while loading. Model gpt2 is serving again. Model third is serving again."
    )
    assert sorted(stage.launcher.live) == ["gpt2", "third"]
    assert stage.lifecycle.current == THIRD
    assert (await stage.infer()).model == "third"


async def test_when_memory_runs_out_and_nobody_is_idle_there_is_no_second_try(stage):
    stage.launcher.errors["other"] = [OutOfMemory(), OutOfMemory()]
    with pytest.raises(InsufficientMemory):
        await stage.load("other")
    assert len(stage.launcher.launched) == 1


async def test_a_model_that_went_for_a_second_try_and_was_unloaded_meanwhile_does_not_come_back(make_stage):
    stage = await make_stage(max_resident_models=2)
    idle = await stage.load("gpt2")
    idle.closing_gate.hold()
    stage.launcher.errors["other"] = [OutOfMemory(), OutOfMemory()]
    loading = asyncio.create_task(stage.lifecycle.load(OTHER))
    await settle()
    assert stage.states()["gpt2"] == "unloading"
    unloading = asyncio.create_task(stage.lifecycle.unload(GPT2))
    await settle()
    idle.closing_gate.open()
    with pytest.raises(InsufficientMemory):
        await loading
    (told,) = await asyncio.gather(unloading, return_exceptions=True)
    if told == (GPT2, False):  # who was told that it is gone must not find it again
        assert stage.launcher.live == []
    else:
        assert stage.launcher.live == ["gpt2"]
