"""Where only operators load, a request gets what is there, and causes no load of its own."""

from __future__ import annotations

import asyncio

import pytest

from fakes import settle
from inferapi.domain.errors import ModelNotLoaded
from inferapi.domain.model import ModelRef


@pytest.fixture
async def strict(make_stage):
    return await make_stage(loads_on_demand=False, max_resident_models=2, inactivity_threshold_s=10)


async def test_a_request_that_names_a_model_which_is_not_there_is_refused_and_no_load_begins(strict):
    await strict.load("gpt2")
    with pytest.raises(ModelNotLoaded):
        await strict.infer(model="other")
    assert [spec.model for spec in strict.launcher.launched] == ["gpt2"]
    assert (strict.states(), strict.told("other")) == ({"gpt2": "ready"}, [])


async def test_before_any_load_nobody_causes_one(strict):
    with pytest.raises(ModelNotLoaded):
        await strict.infer(model="gpt2")
    assert strict.launcher.launched == []


async def test_what_an_operator_loaded_answers_by_its_name(strict):
    await strict.load("gpt2")
    await strict.load("other")
    assert [(await strict.infer(model=name)).model for name in ("gpt2", "other")] == ["gpt2", "other"]


async def test_a_request_waits_for_a_load_that_an_operator_began(strict):
    strict.launcher.gate.hold()
    loading = asyncio.create_task(strict.lifecycle.load(ModelRef("other")))
    await settle()
    waiting = asyncio.create_task(strict.infer(model="other"))
    await settle()
    assert not waiting.done()
    strict.launcher.gate.open()
    await loading
    assert (await waiting).model == "other"


async def test_the_current_model_comes_back_after_it_was_idle_also_by_its_name(strict):
    await strict.load("gpt2")
    for model in (None, "gpt2"):
        await strict.clock.advance(11)
        assert strict.launcher.live == []
        assert (await strict.infer(model=model)).model == "gpt2"


async def test_another_one_that_was_idle_does_not_come_back_by_itself(strict):
    await strict.load("other")
    await strict.load("gpt2")
    await strict.clock.advance(11)
    with pytest.raises(ModelNotLoaded):
        await strict.infer(model="other")
    assert (await strict.infer()).model == "gpt2"


async def test_what_was_unloaded_on_purpose_stays_away(strict):
    await strict.load("gpt2")
    await strict.lifecycle.unload()
    for model in (None, "gpt2"):
        with pytest.raises(ModelNotLoaded):
            await strict.infer(model=model)
