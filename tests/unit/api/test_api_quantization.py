"""``quantization`` on the model endpoints: what is asked for, what is left out, and where it is told."""

from __future__ import annotations

import pytest

from fakes import make_device, make_profile
from inferapi.domain.model import LinearShape, LoadOptions, Quantization

ASKS = {"/load_model": "model_name", "/change_model": "new_model_name"}


@pytest.fixture
def make_native(make_stage):
    """Stages on a CPU that can have native kernels."""

    async def make(**policy):
        return await make_stage(device=make_device(native_kernels=True), **policy)

    return make


@pytest.mark.parametrize("path", ASKS)
@pytest.mark.parametrize("quantization", ["int8", "int4", None])
async def test_a_load_takes_a_quantization(make_native, client_of, path, quantization):
    stage = await make_native()
    await stage.load("other")
    async with client_of(stage.app()) as client:
        answer = await client.post(path, json={ASKS[path]: "gpt2", "quantization": quantization})
    assert answer.status_code == 200
    assert stage.launcher.launched[-1].quantization == quantization


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, ("bfloat16", "int4")),
        ({"quantization": None}, ("bfloat16", None)),
        ({"quantization": "int8"}, ("bfloat16", "int8")),
        ({"dtype": "auto"}, ("bfloat16", "int4")),
        ({"dtype": None}, ("bfloat16", "int4")),
        ({"dtype": "float32", "quantization": None}, ("float32", None)),
    ],
)
async def test_what_is_left_out_is_the_servers_choice_and_null_is_none(make_native, client_of, asked, expected):
    stage = await make_native(default_options=LoadOptions("bfloat16", Quantization.INT4))
    async with client_of(stage.app()) as client:
        await client.post("/load_model", json={"model_name": "gpt2"} | asked)
    (spec,) = stage.launcher.launched
    assert (spec.dtype, spec.quantization) == expected


@pytest.mark.parametrize("path", ASKS)
async def test_a_dry_run_tells_the_format_and_the_other_formats(make_native, client_of, path):
    stage = await make_native()
    await stage.load("other")
    stage.models._profiles["gpt2"] = make_profile(linears=(LinearShape(1600, 40_000, 15),))
    async with client_of(stage.app()) as client:
        body = {ASKS[path]: "gpt2", "dry_run": True, "quantization": "int8"}
        report = (await client.post(path, json=body)).json()
    assert (report["dtype"], report["quantization"]) == ("bfloat16", "int8")
    assert report["weights_bytes"] == 2 * 40_000_000 + 960_000_000 * 17 // 16
    assert [(one["dtype"], one["quantization"]) for one in report["alternatives"]] == [("bfloat16", "int4")]
    assert stage.launcher.live == ["other"]


async def test_the_status_tells_the_format_and_the_kernels(make_native, client_of):
    stage = await make_native()
    async with client_of(stage.app()) as client:
        await client.post("/load_model", json={"model_name": "gpt2", "quantization": "int8"})
        (line,) = (await client.get("/status")).json()["models"]
        await stage.clock.advance(300)
        (idle,) = (await client.get("/status")).json()["models"]
    assert (line["quantization"], line["kernels"], line["kernels_reason"]) == ("int8", "", "")
    assert (idle["state"], idle["quantization"], idle["kernels"]) == ("unloaded", None, None)


async def test_weights_that_are_stored_quantized_refuse_another_format(make_native, client_of):
    stage = await make_native()
    stage.models._profiles["gpt2"] = make_profile(prequantized=True)
    async with client_of(stage.app()) as client:
        answer = await client.post("/load_model", json={"model_name": "gpt2", "quantization": "int8"})
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (400, "quantization_refused")
    assert problem["detail"] == (
        "Weights cannot be quantized to int8: those of model gpt2 are stored quantized; load it with quantization null."
    )


async def test_the_manual_names_the_formats(client):
    schemas = (await client.get("/openapi.json")).json()["components"]["schemas"]
    assert schemas["Quantization"]["enum"] == ["int8", "int4"]
    assert schemas["LoadBody"]["properties"]["quantization"]["anyOf"][1] == {"type": "null"}
