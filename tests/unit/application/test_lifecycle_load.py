from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from fakes import GIB, MIB, make_device, make_profile, settle
from inferapi.domain.errors import (
    HubUnavailable,
    InsufficientMemory,
    InsufficientStorage,
    ModelLoadFailed,
    ModelNotAllowed,
    ModelNotFound,
    ModelTooLarge,
    OperationInProgress,
    OutOfMemory,
)
from inferapi.domain.model import LoadOptions, ModelRef

GPT2, OTHER, THIRD = ModelRef("gpt2"), ModelRef("other"), ModelRef("third")


async def test_ten_loads_of_one_model_are_one_load(stage):
    stage.launcher.gate.hold()
    loads = [asyncio.create_task(stage.lifecycle.load(GPT2)) for _ in range(10)]
    await settle()
    stage.launcher.gate.open()
    facts = await asyncio.gather(*loads)
    assert {fact.model for fact in facts} == {"gpt2"}
    assert (stage.models.profiled, stage.models.fetched) == (["gpt2"], ["gpt2"])
    assert len(stage.launcher.launched) == 1


async def test_loading_what_is_current_answers_at_once(stage):
    engine = await stage.load()
    facts = await stage.lifecycle.load(GPT2)
    assert facts == engine.facts
    assert stage.models.profiled == ["gpt2"]
    assert not engine.is_closed


async def test_another_model_takes_the_place_of_an_idle_one(stage):
    await stage.load("gpt2")
    await stage.load("other")
    assert stage.launcher.live == ["other"]
    assert stage.lifecycle.current == OTHER
    assert (await stage.infer()).model == "other"


async def test_the_worker_is_told_what_was_decided(make_stage):
    stage = await make_stage(max_batch=7, max_queue=9, threads=2)
    await stage.lifecycle.load(ModelRef("org/name", "v1"), LoadOptions(dtype="float32"))
    spec = stage.launcher.launched[0]
    assert (spec.model, spec.path, spec.dtype) == ("org/name@v1", "/models/org/name", "float32")
    assert (spec.max_batch, spec.max_queue, spec.threads) == (7, 9, 2)
    assert spec.kv_cache_tokens == 7 * 1024


async def test_the_same_model_loaded_otherwise_takes_its_own_place(make_stage):
    stage = await make_stage(max_resident_models=2)
    await stage.load()
    await stage.lifecycle.load(GPT2, LoadOptions(dtype="float16"))
    assert stage.launcher.live == ["gpt2"]
    assert [spec.dtype for spec in stage.launcher.launched] == ["bfloat16", "float16"]


@pytest.mark.parametrize("error", [ModelNotFound(model="other"), HubUnavailable(model="other")])
async def test_a_load_that_fails_early_leaves_what_serves_untouched(stage, error):
    engine = await stage.load()
    stage.models.profile_errors["other"] = error
    with pytest.raises(type(error)) as caught:
        await stage.load("other")
    assert caught.value.message == error.message
    assert stage.launcher.engines == [engine]
    assert (await stage.infer()).model == "gpt2"
    assert not engine.is_closed


async def test_a_download_that_fails_leaves_what_serves_untouched(stage):
    engine = await stage.load()
    stage.models.fetch_errors["other"] = InsufficientStorage(model="other")
    with pytest.raises(InsufficientStorage):
        await stage.load("other")
    assert stage.launcher.engines == [engine]
    assert not engine.is_closed


async def test_the_old_model_answers_while_the_new_one_is_downloaded(stage):
    await stage.load()
    stage.models.fetch_gate.hold()
    loading = asyncio.create_task(stage.lifecycle.load(OTHER))
    await settle()
    assert (await stage.infer()).model == "gpt2"
    stage.models.fetch_gate.open()
    await loading
    assert (await stage.infer()).model == "other"


async def test_a_launch_that_fails_brings_the_old_model_back_and_says_so(stage):
    await stage.load()
    stage.launcher.errors["other"] = [ModelLoadFailed(model="other", problem="its process ended")]
    with pytest.raises(ModelLoadFailed) as caught:
        await stage.load("other")
    assert caught.value.message == ("Model other could not be loaded: its process ended. Model gpt2 is serving again.")
    assert stage.launcher.live == ["gpt2"]
    assert stage.lifecycle.current == GPT2
    assert (await stage.infer()).model == "gpt2"


async def test_memory_that_runs_out_while_loading_is_told_with_the_bytes(stage):
    await stage.load()
    stage.launcher.errors["other"] = [OutOfMemory()]
    with pytest.raises(InsufficientMemory) as caught:
        await stage.load("other")
    assert caught.value.facts["weights_bytes"] == 2_000_000_000
    assert caught.value.message.endswith(
        "The estimate said it fits, but memory ran out while loading. Model gpt2 is serving again."
    )


async def test_an_old_model_that_does_not_come_back_is_tried_again_by_the_next_request(stage):
    await stage.load()
    stage.launcher.errors = {
        "other": [ModelLoadFailed(model="other", problem="no")],
        "gpt2": [ModelLoadFailed(model="gpt2", problem="no")],
    }
    with pytest.raises(ModelLoadFailed) as caught:
        await stage.load("other")
    assert caught.value.message.endswith("Model gpt2 could not be brought back; the next request tries again.")
    assert stage.launcher.live == []
    assert (await stage.infer()).model == "gpt2"


async def test_a_model_that_can_never_fit_evicts_nothing_and_loads_nothing(stage):
    engine = await stage.load()
    huge = make_profile("huge", parameters_by_dtype={"BF16": 10**12})
    stage.models._profiles["huge"] = huge
    with pytest.raises(ModelTooLarge) as caught:
        await stage.load("huge")
    assert caught.value.facts["weights_bytes"] == 2 * 10**12
    assert caught.value.facts["total_bytes"] == 16 * GIB - 512 * MIB  # all but the reserve
    assert stage.models.fetched == ["gpt2"]
    assert (stage.launcher.engines, engine.is_closed) == ([engine], False)


async def test_a_model_that_does_not_fit_now_evicts_nothing_and_loads_nothing(stage):
    engine = await stage.load()
    stage.probe.reading = make_device(free_bytes=0)
    with pytest.raises(InsufficientMemory) as caught:
        await stage.load("other")
    assert caught.value.facts["available_bytes"] == 2 * GIB - 512 * MIB  # what unloading gpt2 would give back
    assert stage.models.fetched == ["gpt2"]
    assert (stage.launcher.engines, engine.is_closed) == ([engine], False)


async def test_a_model_fits_into_the_memory_of_the_one_it_replaces(stage):
    stage.probe.reading = make_device(free_bytes=3 * GIB)
    stage.probe.taken = lambda: 2 * GIB * len(stage.launcher.live)
    await stage.load("gpt2")
    await stage.load("other")
    assert stage.launcher.live == ["other"]


async def test_memory_that_does_not_come_back_is_noticed_before_the_launch(stage):
    await stage.load()
    stage.probe.reading = make_device(free_bytes=1 * GIB)  # and unloading gives nothing back
    with pytest.raises(InsufficientMemory) as caught:
        await stage.load("other")
    assert caught.value.message.endswith("Model gpt2 is serving again.")
    assert [spec.model for spec in stage.launcher.launched] == ["gpt2", "gpt2"]


async def test_a_budget_is_a_ceiling_on_all_models_together(make_stage):
    stage = await make_stage(max_resident_models=2, memory_budget_bytes=4 * GIB, pinned_models=("gpt2",))
    await stage.load("gpt2")
    promised = max(stage.launcher.launched[0].promised_bytes, 2 * GIB)  # also what is not written yet
    with pytest.raises(InsufficientMemory) as caught:
        await stage.load("other")
    assert caught.value.facts["available_bytes"] == 4 * GIB - promised
    assert stage.launcher.live == ["gpt2"]


async def test_at_the_limit_the_least_recently_used_idle_model_makes_room(make_stage):
    stage = await make_stage(max_resident_models=2)
    for name in ("gpt2", "other", "gpt2"):
        await stage.load(name)
        await stage.clock.advance(1)
    await stage.load("third")
    assert stage.launcher.live == ["gpt2", "third"]


async def test_a_model_in_use_is_not_the_one_to_make_room(make_stage):
    stage = await make_stage(max_resident_models=2)
    await stage.load("gpt2")
    async with stage.lifecycle.lease() as used:
        await stage.clock.advance(1)
        await stage.load("other")
        await stage.load("third")
        assert not used.is_closed
    assert stage.launcher.live == ["gpt2", "third"]


async def test_only_what_the_operator_allows_is_loaded(make_stage):
    stage = await make_stage(allowed_models=("gpt*", "org/*"))
    await stage.load("gpt2")
    await stage.load("org/name")
    for refused in ("other", "GPT2", "organisation"):
        with pytest.raises(ModelNotAllowed):
            await stage.load(refused)
    assert stage.models.profiled == ["gpt2", "org/name"]
    assert stage.launcher.live == ["org/name"]


@pytest.mark.parametrize("method", ["change", "fit"])
async def test_what_is_not_allowed_can_neither_be_changed_to_nor_asked_about(make_stage, method):
    stage = await make_stage(allowed_models=("gpt2",))
    await stage.load("gpt2")
    with pytest.raises(ModelNotAllowed):
        await getattr(stage.lifecycle, method)(OTHER)
    assert stage.models.profiled == ["gpt2"]


async def test_a_client_that_leaves_does_not_cancel_the_load(stage):
    stage.launcher.gate.hold()
    client = asyncio.create_task(stage.lifecycle.load(GPT2))
    await settle()
    client.cancel()
    with pytest.raises(asyncio.CancelledError):
        await client
    stage.launcher.gate.open()
    await settle()
    assert (stage.launcher.live, stage.launcher.cancelled) == (["gpt2"], 0)
    assert stage.lifecycle.current == GPT2


@pytest.mark.parametrize(
    "conflict",
    [
        lambda lifecycle: lifecycle.load(OTHER),
        lambda lifecycle: lifecycle.load(GPT2, LoadOptions(dtype="float32")),
        lambda lifecycle: lifecycle.unload(THIRD),
        lambda lifecycle: lifecycle.change(OTHER),
    ],
)
async def test_a_change_while_another_is_under_way_is_refused(stage, conflict):
    await stage.load("third")
    stage.launcher.gate.hold()
    loading = asyncio.create_task(stage.lifecycle.load(GPT2))
    await settle()
    with pytest.raises(OperationInProgress) as caught:
        await conflict(stage.lifecycle)
    assert caught.value.facts == {"operation": "loading gpt2"}
    stage.launcher.gate.open()
    assert (await loading).model == "gpt2"


async def test_asking_what_a_load_needs_loads_nothing(stage):
    answer = await stage.lifecycle.fit(GPT2)
    report = answer.report
    assert (answer.fits, answer.would_evict) == (True, ())
    assert (report.model, report.weights_bytes, report.fits) == ("gpt2", 2_000_000_000, True)
    assert (stage.models.fetched, stage.launcher.launched, stage.lifecycle.status()) == ([], [], [])


async def test_status_tells_how_far_a_load_has_come(stage):
    gates = [stage.models.profile_gate, stage.models.fetch_gate, stage.launcher.gate]
    for gate in gates:
        gate.hold()
    loading = asyncio.create_task(stage.lifecycle.load(GPT2))
    seen = []
    for gate in gates:
        await settle()
        seen += [(line.name, line.state.value) for line in stage.lifecycle.status()]
        gate.open()
    await loading
    seen += [(line.name, line.state.value) for line in stage.lifecycle.status()]
    assert seen == [("gpt2", "resolving"), ("gpt2", "downloading"), ("gpt2", "loading"), ("gpt2", "ready")]


async def test_a_model_is_loaded_on_the_device_that_was_probed(stage):
    stage.probe.reading = replace(make_device(bfloat16=False), count=2)
    await stage.load()
    spec = stage.launcher.launched[0]
    assert (spec.dtype, spec.device, spec.device_count) == ("float32", "cpu", 2)
