"""``GET /v1/models``: what can be named, in memory or in the models folder, and in which state it is."""

from __future__ import annotations

import pytest

from fakes import settle
from inferapi.domain.model import ModelRef


@pytest.fixture(autouse=True)
def folder(stage):
    stage.models.local_models = {ModelRef("org/name"): 1_600_000_000.5, ModelRef("other"): 1_500_000_000.0}


async def test_models_of_the_folder_and_of_memory_are_listed_by_name(client, stage):
    await stage.load()
    answer = await client.get("/v1/models")
    assert answer.status_code == 200
    assert answer.json() == {
        "object": "list",
        "data": [
            {
                "id": "gpt2",
                "object": "model",
                "created": 1_700_001_000,  # since when this server runs
                "owned_by": "inferapi",
                "state": "ready",
            },
            {
                "id": "org/name",
                "object": "model",
                "created": 1_600_000_000,
                "owned_by": "org",
                "state": "unloaded",
            },
            {
                "id": "other",
                "object": "model",
                "created": 1_500_000_000,
                "owned_by": "inferapi",
                "state": "unloaded",
            },
        ],
    }


async def test_a_model_that_is_being_loaded_says_so(client, stage):
    stage.launcher.gate.hold()
    held = await stage.hold("other")
    states = {model["id"]: model["state"] for model in (await client.get("/v1/models")).json()["data"]}
    stage.launcher.gate.open()
    await settle()
    after = (await client.get("/v1/models/other")).json()["state"]
    await held.finish()
    assert states == {"org/name": "unloaded", "other": "loading"}
    assert after == "ready"


async def test_one_model_is_told_by_its_name_with_a_slash(client):
    answer = await client.get("/v1/models/org/name")
    assert answer.status_code == 200
    assert answer.json() == {
        "id": "org/name",
        "object": "model",
        "created": 1_600_000_000,
        "owned_by": "org",
        "state": "unloaded",
    }


@pytest.mark.parametrize(
    ("name", "status", "code"),
    [
        ("nobody/here", 404, "model_not_found"),
        ("third", 404, "model_not_found"),  # the hub has it, this machine not
        ("org/name@main", 404, "model_not_found"),
        ("..%2Fetc%2Fpasswd", 400, "invalid_request"),
        ("%00", 400, "invalid_request"),
        ("x" * 5000, 400, "invalid_request"),
        ("a/b/c", 400, "invalid_request"),
    ],
)
async def test_what_is_not_there_or_no_name_is_told_so(client, stage, name, status, code):
    answer = await client.get(f"/v1/models/{name}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert answer.json()["error"]["param"] == "model"
    assert stage.models.profiled == []


async def test_what_the_operator_does_not_allow_is_not_listed(make_stage, client_of):
    stage = await make_stage(allowed_models=("org/*",))
    stage.models.local_models = {ModelRef("org/name"): 0.0, ModelRef("other"): 0.0}
    async with client_of(stage.app()) as client:
        listed = (await client.get("/v1/models")).json()["data"]
        denied = await client.get("/v1/models/other")
    assert [model["id"] for model in listed] == ["org/name"]
    assert (denied.status_code, denied.json()["error"]["code"]) == (403, "model_not_allowed")


async def test_looking_neither_wakes_a_model_nor_keeps_it(make_stage, client_of):
    stage = await make_stage(inactivity_threshold_s=10)
    await stage.load()
    async with client_of(stage.app()) as client:
        await stage.clock.advance(9)
        await client.get("/v1/models")
        await stage.clock.advance(1)
        listed = (await client.get("/v1/models")).json()["data"]
    assert [(model["id"], model["state"]) for model in listed] == [("gpt2", "unloaded")]
    assert stage.launcher.live == []
