"""Quantized weights through a model's life: what is the same model, what comes back, and what is refused."""

from __future__ import annotations

import pytest

from fakes import GIB, NO_COMPILER, make_device, make_profile
from inferapi.domain.errors import ModelLoadFailed, ModelTooLarge, QuantizationRefused
from inferapi.domain.model import EngineSpec, LinearShape, LoadOptions, ModelRef, Quantization

GPT2, OTHER, PACKED = ModelRef("gpt2"), ModelRef("other"), ModelRef("packed")
INT8, INT4 = LoadOptions(quantization=Quantization.INT8), LoadOptions(quantization=Quantization.INT4)


def formats(launched: list[EngineSpec]) -> list[tuple[str, str, str | None]]:
    return [(spec.model, spec.dtype, spec.quantization) for spec in launched]


@pytest.fixture
def make_native(make_stage):
    """Stages on a CPU that can have native kernels."""

    async def make(**policy):
        stage = await make_stage(device=make_device(native_kernels=True), **policy)
        stage.models._profiles["packed"] = make_profile("packed", prequantized=True)
        return stage

    return make


@pytest.fixture
async def native(make_native):
    return await make_native()


async def test_the_worker_and_the_status_are_told_the_format(native):
    facts = await native.lifecycle.load(GPT2, INT4)
    assert formats(native.launcher.launched) == [("gpt2", "bfloat16", "int4")]
    (line,) = native.lifecycle.status()
    assert (facts.quantization, line.facts.quantization) == ("int4", "int4")
    assert native.told("gpt2")[1][2].startswith("bfloat16 with int4 weights on cpu, ")


async def test_what_was_loaded_so_already_is_the_same(native):
    first = await native.lifecycle.load(GPT2, INT8)
    assert await native.lifecycle.load(GPT2, LoadOptions("bfloat16", Quantization.INT8)) == first
    assert len(native.launcher.launched) == 1


@pytest.mark.parametrize(("before", "after"), [(None, INT8), (INT8, None), (INT8, INT4)])
async def test_the_same_model_in_another_format_replaces_it(make_native, before, after):
    native = await make_native(max_resident_models=2)
    await native.lifecycle.load(GPT2, before)
    await native.lifecycle.load(GPT2, after)
    assert native.launcher.live == ["gpt2"]
    expected = [("gpt2", "bfloat16", options and options.quantization) for options in (before, after)]
    assert formats(native.launcher.launched) == expected


async def test_a_change_to_another_format_that_fails_brings_the_old_one_back(native):
    await native.lifecycle.load(GPT2, INT8)
    native.launcher.errors["gpt2"] = [ModelLoadFailed(model="gpt2", problem="no")]
    with pytest.raises(ModelLoadFailed, match="no") as caught:
        await native.lifecycle.change(GPT2, INT4)
    assert caught.value.message.endswith("Model gpt2 is serving again.")
    assert [spec.quantization for spec in native.launcher.launched] == ["int8", "int4", "int8"]
    assert native.engine.facts.quantization == "int8"


async def test_after_an_idle_unload_it_comes_back_as_it_was(native):
    await native.lifecycle.load(GPT2, INT8)
    await native.clock.advance(300)
    assert native.launcher.live == []
    await native.infer()
    assert [spec.quantization for spec in native.launcher.launched] == ["int8", "int8"]


async def test_the_operators_format_is_for_all_who_do_not_say(make_native):
    native = await make_native(default_options=INT8, max_resident_models=2)
    await native.load("gpt2")
    await native.infer(model="other")
    assert [spec.quantization for spec in native.launcher.launched] == ["int8", "int8"]
    assert native.lifecycle.default_options == INT8


async def test_a_model_named_at_start_is_loaded_in_the_operators_format(make_native):
    native = await make_native(default_options=INT4, preload=GPT2)
    await native.infer()
    assert formats(native.launcher.launched) == [("gpt2", "bfloat16", "int4")]


async def test_what_a_load_teaches_holds_for_its_format_alone(native):
    await native.lifecycle.load(GPT2, INT8)
    plain, int8, int4 = [(await native.lifecycle.fit(GPT2, options)).report for options in (None, INT8, INT4)]
    assert (plain.correction, int4.correction) == (1.0, 1.0)
    assert int8.correction != 1.0


async def test_a_dry_run_tells_the_format_and_other_formats(native):
    answer = await native.lifecycle.fit(GPT2, INT8)
    assert answer.report.quantization is Quantization.INT8
    native.models._profiles["large"] = make_profile(
        "large", parameters_by_dtype={"BF16": 7_000_000_000}, linears=(LinearShape(1000, 64_000, 105),)
    )
    large = await native.lifecycle.fit(ModelRef("large"))
    assert not large.fits
    assert [(one.dtype, one.quantization) for one in large.alternatives] == [("bfloat16", "int8"), ("bfloat16", "int4")]


@pytest.mark.parametrize("options", [INT8, INT4])
async def test_a_cpu_without_native_kernels_refuses_before_anything_is_looked_at(stage, options):
    engine = await stage.load("gpt2")
    for ask in (stage.lifecycle.load, stage.lifecycle.change, stage.lifecycle.fit):
        with pytest.raises(QuantizationRefused) as caught:
            await ask(OTHER, options)
        quantization = options.quantization.value
        assert caught.value.message == (
            f"Weights cannot be quantized to {quantization}: on a CPU that takes kernels compiled for it, "
            f"and {NO_COMPILER}."
        )
    assert stage.models.profiled == ["gpt2"]
    assert (stage.launcher.live, engine.is_closed) == (["gpt2"], False)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
async def test_a_cpu_refuses_to_quantize_in_another_dtype_than_that_of_its_kernels(native, dtype):
    with pytest.raises(QuantizationRefused, match=f"in bfloat16, not in {dtype}"):
        await native.lifecycle.load(GPT2, LoadOptions(dtype, Quantization.INT8))
    assert native.models.profiled == []


async def test_a_server_that_is_to_quantize_and_cannot_does_not_start(make_stage):
    with pytest.raises(QuantizationRefused, match=NO_COMPILER):
        await make_stage(default_options=INT8)


async def test_weights_that_are_stored_quantized_are_not_quantized_again(native):
    engine = await native.load("gpt2")
    for ask in (native.lifecycle.load, native.lifecycle.change, native.lifecycle.fit):
        with pytest.raises(QuantizationRefused) as caught:
            await ask(PACKED, INT8)
        assert str(caught.value) == (
            "Weights cannot be quantized to int8: "
            "those of model packed are stored quantized; load it with quantization null."
        )
    assert (native.models.fetched, engine.is_closed) == (["gpt2"], False)
    assert [kind for kind, *_ in native.told("packed")] == ["load_started", "load_refused"] * 2


async def test_weights_that_are_stored_quantized_load_as_they_are(make_native):
    native = await make_native(default_options=INT8)
    with pytest.raises(QuantizationRefused):
        await native.infer(model="packed")
    await native.lifecycle.load(PACKED, LoadOptions())
    assert (await native.infer(model="packed")).model == "packed"
    assert [spec.quantization for spec in native.launcher.launched] == [None]


async def test_a_refusal_for_want_of_memory_names_the_format_that_would_fit(make_native):
    native = await make_native(memory_budget_bytes=5 * GIB)
    native.models._profiles["large"] = make_profile(
        "large",
        parameters_by_dtype={"BF16": 3_000_000_000},
        linears=(LinearShape(1000, 64_000, 45),),
    )
    with pytest.raises(ModelTooLarge) as caught:
        await native.lifecycle.load(ModelRef("large"))
    assert caught.value.message.endswith("It would fit with quantization int8.")
