"""Engines that die, devices that do not answer, memory that comes back late: and who serves afterwards."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from fakes import GIB, make_device, settle
from inferapi.domain.errors import ModelCrashed, ModelLoadFailed
from inferapi.domain.model import DeviceKind, ModelRef

GPT2, OTHER = ModelRef("gpt2"), ModelRef("other")


def break_the_probe(stage):
    def broken() -> int:
        raise OSError("the device does not answer")

    stage.probe.taken = broken


async def test_a_control_loop_that_cannot_decide_makes_the_server_unready_until_it_can(stage):
    await stage.load("gpt2")
    await stage.clock.advance(1)
    await stage.hold("gpt2")
    waiting = await stage.hold("other")  # a load that waits for its turn is weighed at every decision
    break_the_probe(stage)
    await stage.clock.advance(19)
    assert stage.lifecycle.unready_reason is None
    await stage.clock.advance(10)
    assert stage.lifecycle.unready_reason == "the control loop does not decide"
    stage.probe.taken = int
    await stage.clock.advance(5)
    assert stage.lifecycle.unready_reason is None
    assert not waiting.task.done()


async def test_a_control_loop_with_nothing_to_do_is_ready(stage):
    await stage.clock.advance(10_000)
    assert stage.lifecycle.unready_reason is None


async def test_a_device_that_does_not_answer_stops_no_engine_from_ending(stage):
    engine = await stage.load("gpt2")
    running = await stage.hold()
    unloading = asyncio.create_task(stage.lifecycle.unload())
    await settle()
    break_the_probe(stage)
    await running.finish()
    await asyncio.gather(unloading, return_exceptions=True)
    stage.probe.taken = int
    assert (engine.is_closed, stage.states()) == (True, {})


async def test_an_engine_that_does_not_end_in_order_is_forgotten_all_the_same(stage):
    class Stubborn(type(await stage.load("gpt2"))):
        async def aclose(self):
            await super().aclose()
            raise OSError("no such process")

    stage.engine.__class__ = Stubborn
    await stage.lifecycle.unload()
    assert stage.states() == {}
    stage.engine.__class__ = Stubborn.__base__


async def test_a_model_that_dies_while_it_drains_makes_room_at_once(stage):
    engine = await stage.load("gpt2")
    await stage.hold()
    changing = asyncio.create_task(stage.lifecycle.change(OTHER))
    await settle()
    engine.crash()
    assert (await changing).model == "other"
    assert [kind for kind, *_ in stage.told("gpt2")][-1] == "crashed"


async def test_a_model_that_died_while_it_made_room_is_back_when_the_other_fails(stage):
    engine = await stage.load("gpt2")
    await stage.hold()
    stage.launcher.errors["other"] = [ModelLoadFailed(model="other", problem="no")]
    changing = asyncio.create_task(stage.lifecycle.change(OTHER))
    await settle()
    engine.crash()
    with pytest.raises(ModelLoadFailed) as caught:
        await changing
    assert caught.value.message.endswith("Model gpt2 is serving again.")
    assert stage.launcher.live == ["gpt2"]


async def test_a_process_that_dies_while_it_loads_is_told_to_everybody_who_waits(stage):
    stage.launcher.errors["gpt2"] = [ModelCrashed(model="gpt2")]
    stage.launcher.gate.hold()
    waiting = await stage.hold("gpt2")
    loading = asyncio.create_task(stage.lifecycle.load(GPT2))
    await settle()
    stage.launcher.gate.open()
    results = await asyncio.gather(waiting.task, loading, return_exceptions=True)
    assert [type(result) for result in results] == [ModelCrashed, ModelCrashed]
    assert (await stage.infer(model="gpt2")).model == "gpt2"


async def test_requests_that_wait_for_a_model_that_could_not_be_brought_back_try_again(stage):
    await stage.load("gpt2")
    stage.launcher.gate.hold()
    stage.launcher.errors = {name: [ModelLoadFailed(model=name, problem="no")] for name in ("gpt2", "other")}
    changing = asyncio.create_task(stage.lifecycle.change(OTHER))
    await settle()
    waiting = await stage.hold()
    stage.launcher.gate.open()
    with pytest.raises(ModelLoadFailed):
        await changing
    await settle()
    assert waiting.engine.facts.model == "gpt2"


@pytest.fixture
async def gpu(make_stage):
    """A GPU whose driver gives memory back when ``stage.freed_bytes`` says so."""
    stage = await make_stage(max_resident_models=2)
    stage.probe.reading = replace(
        make_device(total_bytes=80 * GIB, free_bytes=60 * GIB), kind=DeviceKind.CUDA, name="fake GPU"
    )
    await stage.load("gpt2")
    return stage


async def test_a_gpu_model_is_gone_when_nine_tenths_of_its_bytes_are_back(gpu):
    unloading = asyncio.create_task(gpu.lifecycle.unload())
    await gpu.clock.advance(1)
    assert (gpu.launcher.live, gpu.states()) == ([], {"gpt2": "reclaiming"})
    gpu.probe.taken = lambda: -int(1.7 * GIB)
    await gpu.clock.advance(1)
    assert not unloading.done()
    gpu.probe.taken = lambda: -int(1.85 * GIB)
    await gpu.clock.advance(1)
    assert await unloading == (GPT2, False)
    (event,) = [event for event in gpu.lifecycle.events(limit=10) if event.kind == "unloaded"]
    assert (event.facts["held_bytes"], event.facts["returned_bytes"]) == (2 * GIB, int(1.85 * GIB))


async def test_a_gpu_whose_bytes_do_not_come_back_is_waited_for_ten_seconds(gpu):
    unloading = asyncio.create_task(gpu.lifecycle.unload())
    await gpu.clock.advance(9.5)
    assert not unloading.done()
    await gpu.clock.advance(0.5)
    assert await unloading == (GPT2, False)
    (event,) = [event for event in gpu.lifecycle.events(limit=10) if event.kind == "unloaded"]
    assert event.facts["returned_bytes"] == 0


async def test_the_next_model_is_not_launched_before_the_bytes_are_back(gpu):
    changing = asyncio.create_task(gpu.lifecycle.change(OTHER))
    await gpu.clock.advance(2)
    assert [spec.model for spec in gpu.launcher.launched] == ["gpt2"]
    gpu.probe.taken = lambda: -2 * GIB
    await gpu.clock.advance(1)
    assert (await changing).model == "other"


async def test_the_processes_of_a_cpu_are_not_waited_for(stage):
    await stage.load("gpt2")
    assert await stage.lifecycle.unload() == (GPT2, False)
    assert stage.states() == {}


async def test_the_end_answers_everybody(make_stage):
    stage = await make_stage(max_resident_models=1)
    await stage.load("gpt2")
    running = await stage.hold("gpt2")
    waiting = [await stage.hold("other"), await stage.hold("third")]
    changing = asyncio.create_task(stage.lifecycle.change(OTHER))
    await settle()
    draining = asyncio.create_task(stage.lifecycle.drain())
    await settle()
    results = await asyncio.gather(*(one.task for one in waiting), changing, return_exceptions=True)
    assert [result.code for result in results] == ["shutting_down"] * 3
    assert not draining.done()
    await running.finish()
    await draining
    assert (stage.launcher.live, stage.states()) == ([], {"gpt2": "unloaded"})
