"""Who would have to go for a model, and what fits then; nothing is loaded here."""

from __future__ import annotations

import pytest

from fakes import GIB, make_device, make_profile
from inferapi.domain.errors import InsufficientMemory, ModelTooLarge
from inferapi.domain.model import LoadOptions, ModelRef

OTHER, THIRD = ModelRef("other"), ModelRef("third")


async def test_where_there_is_room_nobody_would_go(make_stage):
    stage = await make_stage(max_resident_models=2)
    await stage.load("gpt2")
    answer = await stage.lifecycle.fit(OTHER)
    assert (answer.fits, answer.would_evict) == (True, ())


async def test_without_a_place_the_idle_model_would_go(stage):
    await stage.load("gpt2")
    answer = await stage.lifecycle.fit(OTHER)
    assert (answer.fits, answer.would_evict) == (True, ("gpt2",))
    assert stage.states() == {"gpt2": "ready"}


async def test_a_busy_model_would_go_only_where_no_idle_one_can(make_stage):
    stage = await make_stage(max_resident_models=2)
    await stage.load("gpt2")
    await stage.load("other")
    await stage.hold("gpt2")
    assert (await stage.lifecycle.fit(THIRD)).would_evict == ("other",)
    await stage.hold("other")
    answer = await stage.lifecycle.fit(THIRD)
    assert (answer.fits, len(answer.would_evict)) == (True, 1)


async def test_a_pinned_model_would_not_go(make_stage):
    stage = await make_stage(pinned_models=("gpt*",))
    await stage.load("gpt2")
    answer = await stage.lifecycle.fit(OTHER)
    assert (answer.fits, answer.would_evict) == (False, ())
    assert answer.report.fits  # there is memory, but no place


async def test_a_change_would_take_the_current_model_away_also_if_it_is_pinned(make_stage):
    stage = await make_stage(pinned_models=("gpt2",), max_resident_models=2)
    await stage.load("gpt2")
    answer = await stage.lifecycle.fit(OTHER, replacing=True)
    assert (answer.fits, answer.would_evict) == (True, ("gpt2",))


async def test_the_same_model_loaded_otherwise_would_go(make_stage):
    stage = await make_stage(max_resident_models=3)
    await stage.load("gpt2")
    answer = await stage.lifecycle.fit(ModelRef("gpt2"), LoadOptions(dtype="float32"))
    assert (answer.fits, answer.would_evict) == (True, ("gpt2",))


async def test_what_unloading_would_give_back_counts_as_available(make_stage):
    stage = await make_stage(max_resident_models=3)
    stage.probe.reading = make_device(free_bytes=3 * GIB)
    await stage.load("gpt2")
    stage.probe.reading = make_device(free_bytes=1 * GIB)
    answer = await stage.lifecycle.fit(OTHER)
    assert (answer.fits, answer.would_evict) == (True, ("gpt2",))
    assert answer.report.available_bytes == 3 * GIB - answer.report.reserve_bytes


async def test_what_fits_in_no_way_names_other_ways_that_would(stage):
    stage.models._profiles["wide"] = make_profile("wide", parameters_by_dtype={"F32": 4_000_000_000})
    answer = await stage.lifecycle.fit(ModelRef("wide"), LoadOptions(dtype="float32"))
    assert (answer.fits, answer.would_evict) == (False, ())
    assert all(one.needed_bytes <= answer.report.available_bytes for one in answer.alternatives)
    assert "bfloat16" in {one.dtype for one in answer.alternatives}


@pytest.mark.parametrize(("parameters", "error"), [(10**12, ModelTooLarge), (6_500_000_000, InsufficientMemory)])
async def test_what_does_not_fit_says_whether_it_ever_could_and_nobody_goes_for_it(make_stage, parameters, error):
    stage = await make_stage(max_resident_models=2)
    engine = await stage.load("gpt2")
    stage.models._profiles["big"] = make_profile("big", parameters_by_dtype={"BF16": parameters})
    stage.probe.reading = make_device(free_bytes=4 * GIB)
    with pytest.raises(error):
        await stage.load("big")
    assert (stage.models.fetched, engine.is_closed) == (["gpt2"], False)
    assert [kind for kind, *_ in stage.told("big")] == ["load_started", "load_refused"]


async def test_an_expected_load_time_is_known_after_a_load(stage):
    assert (await stage.lifecycle.fit(ModelRef("gpt2"))).expected_load_s is None
    await stage.load("gpt2")
    assert (await stage.lifecycle.fit(ModelRef("gpt2"))).expected_load_s == 0.5
