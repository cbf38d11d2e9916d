from __future__ import annotations

import asyncio

import pytest

from fakes import settle, text_vector
from inferapi.application.embedding import Embedded, Embedding
from inferapi.domain.errors import EmbeddingsRefused, ModelNotLoaded
from inferapi.domain.generation import Embeddings
from inferapi.domain.model import ModelRef


def embedding(stage) -> Embedding:
    return Embedding(stage.lifecycle, stage.clock, 120.0)


async def test_each_text_becomes_a_vector_in_order(stage):
    await stage.load()
    embedded = await embedding(stage).embed(["one two", "three"])
    assert embedded == Embedded("gpt2", Embeddings((text_vector("one two"), text_vector("three")), 3))


async def test_the_engine_is_told_the_deadline_and_the_owner(stage):
    await stage.load()
    now_s = stage.clock.monotonic_s()
    await embedding(stage).embed(["one"], owner="ann")
    (request,) = stage.engine.embedded
    assert (request.texts, request.arrived_s, request.deadline_s) == (("one",), now_s, now_s + 120.0)
    assert request.salt == "ann"


async def test_a_named_model_is_loaded_first(stage):
    embedded = await embedding(stage).embed(["one"], model=ModelRef.parse("gpt2"))
    assert (embedded.model, len(stage.launcher.launched)) == ("gpt2", 1)


async def test_without_a_model_there_is_nothing_to_embed_with(stage):
    with pytest.raises(ModelNotLoaded):
        await embedding(stage).embed(["one"])


async def test_a_model_that_cannot_embed_says_so_and_stays(stage):
    stage.launcher.facts = {"embeds": False}
    await stage.load()
    with pytest.raises(EmbeddingsRefused):
        await embedding(stage).embed(["one"])
    assert stage.states() == {"gpt2": "ready"}


async def test_it_uses_the_model_for_as_long_as_it_takes(stage):
    await stage.load()
    stage.engine.gate.hold()
    work = asyncio.create_task(embedding(stage).embed(["one"]))
    await settle()
    assert [line.in_flight for line in stage.lifecycle.status()] == [1]
    work.cancel()
    await settle()
    assert [line.in_flight for line in stage.lifecycle.status()] == [0]
    assert stage.engine.cancelled == 1
