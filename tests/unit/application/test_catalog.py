from __future__ import annotations

import pytest

from fakes import settle
from inferapi.application.catalog import Catalog, KnownModel
from inferapi.domain.errors import ModelNotAllowed, ModelNotFound
from inferapi.domain.model import ModelRef
from inferapi.domain.states import ModelState

SINCE_S = 1_700_001_000.0  # when the fake clock begins


def catalog(stage, *allowed: str) -> Catalog:
    return Catalog(stage.lifecycle, stage.models, stage.clock, allowed or ("*",))


async def test_it_knows_the_models_of_the_folder_and_of_memory(stage):
    stage.models.local_models = {ModelRef("gpt2"): 5.0, ModelRef("a/b"): 6.0}
    await stage.load()
    await stage.load("other")
    await stage.clock.advance(60)
    assert await catalog(stage).all() == [
        KnownModel("a/b", ModelState.UNLOADED, 6.0),
        KnownModel("gpt2", ModelState.UNLOADED, 5.0),
        KnownModel("other", ModelState.READY, SINCE_S + 60),
    ]


async def test_a_model_on_its_way_is_known_by_its_stage(stage):
    stage.launcher.warming_gate.hold()
    held = await stage.hold("third")
    assert await catalog(stage).one(ModelRef("third")) == KnownModel("third", ModelState.WARMING, SINCE_S)
    stage.launcher.warming_gate.open()
    await settle()
    assert (await catalog(stage).one(ModelRef("third"))).state is ModelState.READY
    await held.finish()


async def test_it_asks_no_hub(stage):
    with pytest.raises(ModelNotFound):
        await catalog(stage).one(ModelRef("gpt2"))
    assert (stage.models.profiled, stage.states()) == ([], {})


async def test_what_is_not_allowed_is_not_there_and_says_so(stage):
    stage.models.local_models = {ModelRef("gpt2"): 5.0, ModelRef("a/b"): 6.0}
    listed = catalog(stage, "a/*", "c")
    assert [model.name for model in await listed.all()] == ["a/b"]
    with pytest.raises(ModelNotAllowed):
        await listed.one(ModelRef("gpt2"))
    with pytest.raises(ModelNotFound):
        await listed.one(ModelRef("c"))
