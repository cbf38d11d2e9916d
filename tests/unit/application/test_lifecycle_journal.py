"""Why things happened: every load, refusal, eviction and crash with its reason, estimate and receipt."""

from __future__ import annotations

import asyncio

import pytest

from fakes import GIB, make_profile, settle
from inferapi.domain.errors import InferapiError, ModelLoadFailed
from inferapi.domain.model import ModelRef

GPT2, OTHER = ModelRef("gpt2"), ModelRef("other")


def facts_of(stage, kind: str) -> list[dict]:
    return [dict(event.facts) for event in stage.lifecycle.events(limit=1000) if event.kind == kind]


async def test_a_load_tells_its_begin_and_its_end(stage):
    await stage.load("gpt2")
    assert stage.told() == [
        ("load_started", "gpt2", "asked for"),
        ("loaded", "gpt2", "bfloat16 on cpu, attention scripted (there is no other), continuous batching"),
    ]


async def test_a_load_tells_what_was_estimated_and_what_it_became(stage):
    await stage.load("gpt2")
    (facts,) = facts_of(stage, "loaded")
    assert (facts["actual_bytes"], facts["peak_bytes"], facts["load_s"]) == (2 * GIB, 2 * GIB, 0.5)
    assert facts["estimated_bytes"] > 0
    assert facts["estimate_error_ratio"] == pytest.approx(2 * GIB / facts["estimated_bytes"], abs=1e-4)
    assert facts["promised_bytes"] == stage.launcher.launched[0].promised_bytes


async def test_a_load_for_a_request_says_so(stage):
    await stage.infer(model="gpt2")
    assert stage.told("gpt2")[0] == ("load_started", "gpt2", "a request needs it")


async def test_a_refused_load_tells_the_reason_and_the_code(make_stage):
    stage = await make_stage(memory_budget_bytes=1 * GIB)
    with pytest.raises(InferapiError):
        await stage.load("gpt2")
    assert [kind for kind, *_ in stage.told()] == ["load_started", "load_refused"]
    (facts,) = facts_of(stage, "load_refused")
    assert facts["code"] == "model_too_large"


async def test_a_failed_change_tells_the_failure_and_the_return(stage):
    await stage.load("gpt2")
    stage.launcher.errors["other"] = [ModelLoadFailed(model="other", problem="no")]
    with pytest.raises(ModelLoadFailed):
        await stage.lifecycle.change(OTHER)
    assert [(kind, model) for kind, model, _ in stage.told()][2:] == [
        ("load_started", "other"),
        ("unloaded", "gpt2"),
        ("restored", "gpt2"),
        ("load_failed", "other"),
    ]
    assert stage.told("other")[-1][2].endswith("Model gpt2 is serving again.")


async def test_a_return_that_fails_is_told_too(stage):
    await stage.load("gpt2")
    stage.launcher.errors = {name: [ModelLoadFailed(model=name, problem="no")] for name in ("gpt2", "other")}
    with pytest.raises(ModelLoadFailed):
        await stage.lifecycle.change(OTHER)
    assert stage.told("gpt2")[-1] == ("restore_failed", "gpt2", "ModelLoadFailed")


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("unload", "asked for"),
        ("change", "replaced by other"),
        ("load", "made room for other"),
        ("drain", "the server ends"),
    ],
)
async def test_an_unload_tells_why(make_stage, how, reason):
    stage = await make_stage()
    await stage.load("gpt2")
    await getattr(stage.lifecycle, how)(*([OTHER] if how in {"change", "load"} else []))
    assert stage.told("gpt2")[-1] == ("unloaded", "gpt2", reason)


async def test_an_idle_unload_tells_the_threshold(make_stage):
    stage = await make_stage(inactivity_threshold_s=10)
    await stage.load("gpt2")
    await stage.clock.advance(10)
    assert stage.told("gpt2")[-1] == ("unloaded", "gpt2", "not used for 10 s")


async def test_an_unload_is_receipted_with_bytes_and_time(stage):
    engine = await stage.load("gpt2")
    engine.memory_bytes = 3 * GIB  # it grew with its requests
    engine.closing_gate.hold()
    unloading = asyncio.create_task(stage.lifecycle.unload())
    await stage.clock.advance(4)
    engine.closing_gate.open()
    await unloading
    assert facts_of(stage, "unloaded") == [
        {"held_bytes": 3 * GIB, "returned_bytes": 3 * GIB, "duration_s": 4, "requests_cut_off": 0}
    ]


async def test_requests_that_were_cut_off_are_counted(make_stage):
    stage = await make_stage(drain_timeout_s=30.0)
    await stage.load("gpt2")
    for _ in range(2):
        await stage.hold()
    changing = asyncio.create_task(stage.lifecycle.change(OTHER))
    await stage.clock.advance(30)
    await changing
    assert [facts["requests_cut_off"] for facts in facts_of(stage, "unloaded")] == [2]


async def test_a_crash_tells_how_many_requests_it_met(stage):
    engine = await stage.load("gpt2")
    await stage.hold()
    engine.crash()
    await settle()
    assert stage.told("gpt2")[-1] == ("crashed", "gpt2", "its process ended")
    assert facts_of(stage, "crashed") == [{"requests_in_flight": 1}]


async def test_a_new_threshold_is_told(stage):
    stage.lifecycle.set_inactivity_threshold(77)
    assert stage.told() == [("threshold_changed", None, "asked for")]
    assert facts_of(stage, "threshold_changed") == [{"threshold_s": 77}]


async def test_events_count_up_and_can_be_asked_for_by_model_and_from_one_on(stage):
    await stage.load("gpt2")
    await stage.load("other")
    events = stage.lifecycle.events(limit=1000)
    assert [event.event_id for event in events] == list(range(1, len(events) + 1))
    assert {event.model for event in stage.lifecycle.events(model="gpt2", limit=1000)} == {"gpt2"}
    assert stage.lifecycle.events(after_id=2, limit=1000) == events[2:]
    assert stage.lifecycle.events(limit=2) == events[-2:]
    assert (
        stage.lifecycle.events(model="gpt2", after_id=1, limit=1)
        == [event for event in events if event.model == "gpt2"][-1:]
    )


async def test_only_the_last_thousand_are_kept(stage):
    for threshold_s in range(1, 1102):
        stage.lifecycle.set_inactivity_threshold(threshold_s)
    events = stage.lifecycle.events(limit=2000)
    assert (len(events), events[0].event_id, events[-1].event_id) == (1000, 102, 1101)


async def test_a_load_that_turns_out_to_be_in_memory_already_is_told_to_an_end_too(stage):
    stage.models._profiles["gpt2"] = make_profile("gpt2", commit="abc")
    await stage.load("gpt2")
    await stage.lifecycle.load(ModelRef("gpt2", "main"))
    kinds = [kind for kind, *_ in stage.told("gpt2@main")]
    assert (kinds[0], len(kinds)) == ("load_started", 2)
