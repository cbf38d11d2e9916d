"""What listeners hear of a load, from the first wish to the model in memory."""

from __future__ import annotations

import asyncio

import pytest

from fakes import GIB, settle
from inferapi.domain.errors import ModelLoadFailed
from inferapi.domain.model import ModelRef
from inferapi.domain.states import ModelState

S = ModelState
GPT2, OTHER = ModelRef("gpt2"), ModelRef("other")


def stages(heard):
    return list(dict.fromkeys(step.stage for step in heard))


async def test_a_listener_hears_every_stage_in_order(stage):
    heard = []
    await stage.lifecycle.load(GPT2, listener=heard.append)
    assert stages(heard)[-6:] == [S.RESOLVING, S.DOWNLOADING, S.ADMITTING, S.LOADING, S.WARMING, S.READY]
    assert {step.model for step in heard} == {"gpt2"}


async def test_a_listener_hears_the_bytes_of_each_stage(stage):
    stage.models.fetch_reports = [(S.DOWNLOADING, done, 100) for done in (0, 40, 100)]
    heard = []
    await stage.lifecycle.load(GPT2, listener=heard.append)
    bytes_of = {
        one: [(step.done_bytes, step.total_bytes) for step in heard if step.stage is one and step.total_bytes]
        for one in (S.DOWNLOADING, S.LOADING)
    }
    assert bytes_of == {
        S.DOWNLOADING: [(0, 100), (40, 100), (100, 100)],
        S.LOADING: [(0, 2 * GIB), (2 * GIB, 2 * GIB)],
    }


async def test_who_joins_hears_the_same_from_where_it_is(stage):
    first, second = [], []
    stage.models.fetch_gate.hold()
    loads = [asyncio.create_task(stage.lifecycle.load(GPT2, listener=first.append))]
    await settle()
    loads.append(asyncio.create_task(stage.lifecycle.load(GPT2, listener=second.append)))
    await settle()
    assert stages(second) == [S.DOWNLOADING]
    stage.models.fetch_gate.open()
    await asyncio.gather(*loads)
    assert stages(second) == [S.DOWNLOADING, S.ADMITTING, S.LOADING, S.WARMING, S.READY]
    assert second == first[-len(second) :]


async def test_who_joins_a_load_that_a_request_began_hears_it_too(stage):
    stage.launcher.gate.hold()
    await stage.hold("gpt2")
    heard = []
    loading = asyncio.create_task(stage.lifecycle.load(GPT2, listener=heard.append))
    await settle()
    stage.launcher.gate.open()
    await loading
    assert stages(heard) == [S.LOADING, S.WARMING, S.READY]


async def test_a_listener_whose_client_left_hears_no_more(stage):
    heard = []
    stage.models.fetch_gate.hold()
    loading = asyncio.create_task(stage.lifecycle.load(GPT2, listener=heard.append))
    await settle()
    loading.cancel()
    await settle()
    stage.models.fetch_gate.open()
    await settle()
    assert stage.launcher.live == ["gpt2"]
    assert stages(heard)[-1] is S.DOWNLOADING


async def test_what_is_in_memory_has_no_steps(stage):
    await stage.load("gpt2")
    heard = []
    await stage.lifecycle.load(GPT2, listener=heard.append)
    assert heard == []


async def test_a_failure_is_the_last_step(stage):
    heard = []
    stage.launcher.errors["gpt2"] = [ModelLoadFailed(model="gpt2", problem="no")]
    with pytest.raises(ModelLoadFailed):
        await stage.lifecycle.load(GPT2, listener=heard.append)
    assert stages(heard)[-2:] == [S.WARMING, S.FAILED]


async def test_a_second_load_is_expected_to_take_as_long_as_the_first(stage):
    first, second = [], []
    await stage.lifecycle.load(GPT2, listener=first.append)
    await stage.lifecycle.unload()
    await stage.lifecycle.load(GPT2, listener=second.append)
    assert {step.expected_s for step in first} == {None}
    assert {step.expected_s for step in second} == {0.5}


async def test_status_shows_the_bytes_and_the_time_of_a_load(stage):
    stage.models.fetch_reports = [(S.DOWNLOADING, 30, 100)]
    stage.models.fetch_gate.hold()
    await stage.hold("gpt2")
    await stage.clock.advance(6)
    (line,) = stage.lifecycle.status()
    progress = line.progress
    assert (progress.stage, progress.done_bytes, progress.total_bytes) == (S.DOWNLOADING, 30, 100)
    assert (progress.elapsed_s, progress.expected_s, line.queued) == (6, 20, 1)


@pytest.mark.parametrize("gate", ["profile", "fetch", "loading", "warming"])
async def test_a_load_that_stalls_is_given_up_and_the_old_model_serves(make_stage, gate):
    stage = await make_stage(load_stall_timeout_s=60.0, inactivity_threshold_s=-1)
    await stage.load("gpt2")
    gates = {
        "profile": stage.models.profile_gate,
        "fetch": stage.models.fetch_gate,
        "loading": stage.launcher.gate,
        "warming": stage.launcher.warming_gate,
    }
    gates[gate].hold()
    changing = asyncio.create_task(stage.lifecycle.change(OTHER))
    await stage.clock.advance(59)
    assert not changing.done()
    await stage.clock.advance(1)
    gates[gate].open()
    await settle()
    (error,) = await asyncio.gather(changing, return_exceptions=True)
    code = "hub_timeout" if gate in {"profile", "fetch"} else "load_stalled"
    serves = "Model gpt2 is still serving." if code == "hub_timeout" else "Model gpt2 is serving again."
    assert error.code == code
    assert error.message.endswith(serves)
    assert (stage.launcher.live, stage.lifecycle.current) == (["gpt2"], GPT2)


async def test_waiting_for_the_others_requests_is_no_stall(make_stage):
    stage = await make_stage(load_stall_timeout_s=5.0, drain_timeout_s=100.0)
    await stage.load("gpt2")
    running = await stage.hold()
    changing = asyncio.create_task(stage.lifecycle.change(OTHER))
    await stage.clock.advance(50)
    await running.finish()
    assert (await changing).model == "other"
