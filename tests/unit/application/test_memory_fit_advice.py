"""What would fit instead, what loads teach, and laws that hold for any model."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes import GIB, MIB, make_profile
from inferapi.application.memory_advice import alternatives, hint
from inferapi.application.memory_fit import fit, kv_cache_bytes, working_bytes
from inferapi.application.weight_memory import quantization_problem, weights_bytes
from inferapi.domain.model import Alternative, LinearShape, LoadOptions, Quantization
from memory_fit_models import AUTO, DEVICE, GPT2, NATIVE, ON_GPU, SMOLLM2, needs, room

INT8, INT4 = Quantization.INT8, Quantization.INT4


def test_a_hint_names_the_dtype_that_would_fit():
    options = LoadOptions(dtype="float32")
    tight = room(needs(SMOLLM2, kv_tokens=2048, options=options) - 100 * MIB)
    report = fit(SMOLLM2, options, DEVICE, tight, max_batch=32)
    assert not report.fits
    assert hint(report, SMOLLM2, DEVICE, max_batch=32) == "It would fit with dtype bfloat16."


def test_a_hint_offers_no_other_dtype_for_packed_weights():
    packed = replace(SMOLLM2, prequantized=True, stored_bytes=10 * GIB)
    report = fit(packed, LoadOptions(dtype="float32"), DEVICE, room(6 * GIB), max_batch=1)
    assert "dtype" not in hint(report, packed, DEVICE, max_batch=1)


def test_a_hint_tells_the_size_that_would_fit():
    huge = make_profile(parameters_by_dtype={"BF16": 10**11})
    report = fit(huge, AUTO, DEVICE, room(6 * GIB), max_batch=1)
    spare = 6 * GIB - report.working_bytes - report.overhead_bytes
    assert hint(report, huge, DEVICE, max_batch=1) == (
        f"A model of about {0.4 * spare / 1e9:.2g} billion parameters would fit in bfloat16 on cpu."
    )


def test_a_hint_admits_that_nothing_would_fit():
    report = fit(SMOLLM2, AUTO, DEVICE, room(100 * MIB), max_batch=32)
    assert hint(report, SMOLLM2, DEVICE, max_batch=32) == "No model of a useful size would fit."


def test_a_correction_multiplies_what_is_taken_by_loading_alone():
    plain, corrected = (
        fit(SMOLLM2, AUTO, DEVICE, room(12 * GIB), max_batch=32, correction=factor) for factor in (1.0, 1.25)
    )
    assert (plain.correction, corrected.correction) == (1.0, 1.25)
    assert corrected.loaded_bytes == pytest.approx(1.25 * plain.loaded_bytes, abs=2)
    assert (corrected.kv_cache_bytes, corrected.working_bytes) == (plain.kv_cache_bytes, plain.working_bytes)


def test_a_sequential_model_gets_the_cache_of_one_request():
    assert fit(replace(GPT2, sequential=True), AUTO, DEVICE, room(12 * GIB), max_batch=32).kv_cache_tokens == 1024


def test_a_narrower_dtype_that_fits_is_an_alternative():
    options = LoadOptions(dtype="float32")
    tight = room(needs(SMOLLM2, kv_tokens=2048, options=options) - 100 * MIB)
    found = alternatives(SMOLLM2, options, DEVICE, tight, max_batch=32)
    assert {one.dtype for one in found} == {"bfloat16", "float16"}
    assert [one.kv_cache_tokens for one in found] == sorted((one.kv_cache_tokens for one in found), reverse=True)
    for one in found:
        again = fit(SMOLLM2, LoadOptions(dtype=one.dtype), DEVICE, tight, max_batch=32)
        assert one == Alternative(one.dtype, None, again.kv_cache_tokens, again.needed_bytes)
        assert again.fits


def test_an_alternative_is_as_much_corrected_as_what_was_asked_for():
    options = LoadOptions(dtype="float32")
    plain = needs(SMOLLM2, kv_tokens=2048, options=LoadOptions(dtype="bfloat16"))
    found = {
        factor: alternatives(SMOLLM2, options, DEVICE, room(plain + 10 * MIB), max_batch=32, correction=factor)
        for factor in (1.0, 1.5)
    }
    assert {one.dtype for one in found[1.0]} == {"bfloat16", "float16"}
    assert found[1.5] == ()  # it would take more than there is


def test_there_is_no_alternative_without_room_nor_for_packed_weights():
    options = LoadOptions(dtype="float32")
    assert alternatives(SMOLLM2, options, DEVICE, room(100 * MIB), max_batch=32) == ()
    packed = replace(SMOLLM2, prequantized=True, stored_bytes=10 * MIB)
    assert alternatives(packed, options, DEVICE, room(12 * GIB), max_batch=32) == ()


LARGE = make_profile(  # 14 GB in bf16, and nearly all of it in linear layers
    "large",
    parameters_by_dtype={"BF16": 7_000_000_000},
    linears=(LinearShape(4096, 4096, 400),),
    output=LinearShape(32_000, 4096),
)


def ways(found: tuple[Alternative, ...]) -> list[tuple[str, Quantization | None]]:
    return [(one.dtype, one.quantization) for one in found]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (LoadOptions("float32"), [("bfloat16", None), ("float16", None), ("bfloat16", INT8), ("bfloat16", INT4)]),
        (LoadOptions("bfloat16"), [("bfloat16", INT8), ("bfloat16", INT4)]),
        (LoadOptions("float16"), [("bfloat16", None), ("bfloat16", INT8), ("bfloat16", INT4)]),
        (LoadOptions("bfloat16", INT8), [("bfloat16", INT4)]),
        (LoadOptions("bfloat16", INT4), []),
    ],
)
def test_alternatives_change_the_dtype_first_then_quantize_to_int8_then_to_int4(asked, expected):
    found = alternatives(SMOLLM2, asked, NATIVE, room(12 * GIB), max_batch=32)
    assert ways(found) == expected
    for one in found:
        again = fit(SMOLLM2, LoadOptions(one.dtype, one.quantization), NATIVE, room(12 * GIB), max_batch=32)
        assert (one.kv_cache_tokens, one.needed_bytes) == (again.kv_cache_tokens, again.needed_bytes)


def test_only_what_fits_is_an_alternative():
    tight = room(needs(LARGE, kv_tokens=2048, options=LoadOptions(quantization=INT4), device=NATIVE))
    assert ways(alternatives(LARGE, AUTO, NATIVE, tight, max_batch=4)) == [("bfloat16", INT4)]


def test_a_cpu_without_native_kernels_is_offered_no_quantization():
    options = LoadOptions("float32")
    assert ways(alternatives(SMOLLM2, options, DEVICE, room(12 * GIB), max_batch=32)) == [
        ("bfloat16", None),
        ("float16", None),
    ]
    report = fit(LARGE, AUTO, DEVICE, room(10 * GIB), max_batch=1)
    assert "quantization" not in hint(report, LARGE, DEVICE, max_batch=1)


def test_a_gpu_quantizes_in_any_dtype():
    asked = LoadOptions("float32", INT4)
    found = alternatives(SMOLLM2, asked, ON_GPU, room(12 * GIB), max_batch=32)
    assert ways(found) == [("bfloat16", INT4), ("float16", INT4), ("bfloat16", INT8)]
    found = alternatives(SMOLLM2, LoadOptions("float16"), ON_GPU, room(12 * GIB), max_batch=32)
    assert ways(found) == [("float16", INT8), ("float16", INT4)]


def test_a_gpu_quantizes_without_native_kernels_and_in_float16_if_it_has_no_bf16():
    old = replace(ON_GPU, supports_bfloat16=False)
    found = alternatives(SMOLLM2, LoadOptions("float32"), old, room(12 * GIB), max_batch=32)
    assert ways(found)[2:] == [("float16", INT8), ("float16", INT4)]


@pytest.mark.parametrize(
    ("dtype", "fitting", "expected"),
    [
        ("float32", LoadOptions("bfloat16"), "dtype bfloat16"),
        ("float32", LoadOptions("bfloat16", INT8), "dtype bfloat16 and quantization int8"),
        ("float32", LoadOptions("bfloat16", INT4), "dtype bfloat16 and quantization int4"),
        ("bfloat16", LoadOptions("bfloat16", INT8), "quantization int8"),
        ("bfloat16", LoadOptions("bfloat16", INT4), "quantization int4"),
    ],
)
def test_a_hint_names_the_least_change_that_is_enough(dtype, fitting, expected):
    tight = room(needs(LARGE, kv_tokens=2048, options=fitting, max_batch=4, device=NATIVE))
    report = fit(LARGE, LoadOptions(dtype), NATIVE, tight, max_batch=4)
    assert not report.fits
    assert hint(report, LARGE, NATIVE, max_batch=4) == f"It would fit with {expected}."


def test_a_hint_knows_what_earlier_loads_taught():
    tight = room(needs(LARGE, kv_tokens=2048, options=LoadOptions(quantization=INT8), max_batch=4, device=NATIVE))
    report = fit(LARGE, AUTO, NATIVE, tight, max_batch=4, correction=1.2)
    assert hint(report, LARGE, NATIVE, max_batch=4) == "It would fit with quantization int4."


def test_weights_that_are_stored_quantized_have_no_alternative_and_no_hint_of_one():
    packed = replace(LARGE, prequantized=True, stored_bytes=20 * GIB)
    report = fit(packed, AUTO, NATIVE, room(12 * GIB), max_batch=1)
    assert alternatives(packed, AUTO, NATIVE, room(12 * GIB), max_batch=1) == ()
    assert "quantization" not in hint(report, packed, NATIVE, max_batch=1)


PROFILES = st.builds(
    make_profile,
    parameters_by_dtype=st.fixed_dictionaries({"BF16": st.integers(1, 10**10)}),
    hidden_size=st.integers(64, 8192),
    intermediate_size=st.integers(64, 30_000),
    vocab_size=st.integers(1, 300_000),
    context_window_tokens=st.integers(1, 200_000),
    ties_output=st.booleans(),
    sequential=st.booleans(),
    scores_in_full=st.booleans(),
    matrix_shapes=st.integers(1, 20),
)
DTYPES = st.sampled_from(["bfloat16", "float16", "float32"]).map(LoadOptions)
OPTIONS = st.builds(
    LoadOptions, st.sampled_from(["bfloat16", "float16", "float32"]), st.sampled_from([None, INT8, INT4])
)
DEVICES = st.sampled_from([DEVICE, NATIVE, ON_GPU])
AVAILABLE = st.integers(0, 15 * GIB)


@given(PROFILES, DTYPES, AVAILABLE, st.integers(1, 256))
def test_it_never_fits_into_less_than_it_needs(profile, options, available, max_batch):
    report = fit(profile, options, DEVICE, room(available), max_batch=max_batch)
    assert report.fits == (report.needed_bytes <= available)
    assert report.kv_cache_tokens % 64 == 0
    assert report.kv_cache_tokens >= min(profile.context_window_tokens, 2048)


@given(PROFILES, DTYPES, AVAILABLE, st.integers(0, 4 * GIB))
def test_more_room_never_gives_a_smaller_cache(profile, options, available, more):
    small, large = (fit(profile, options, DEVICE, room(size), max_batch=8) for size in (available, available + more))
    assert small.kv_cache_tokens <= large.kv_cache_tokens


@given(PROFILES, DTYPES, st.integers(0, 10**10), st.integers(0, 10_000))
def test_more_parameters_and_more_tokens_never_need_less(profile, options, more, tokens):
    larger = replace(profile, parameters_by_dtype={"BF16": profile.parameters_by_dtype["BF16"] + more})
    assert weights_bytes(larger, options, DEVICE) >= weights_bytes(profile, options, DEVICE)
    working = [
        working_bytes(profile, options, DEVICE, max_batch=8, kv_cache_tokens=64 + extra) for extra in (0, tokens)
    ]
    assert working[0] <= working[1]
    assert kv_cache_bytes(profile, options.dtype, 64) <= kv_cache_bytes(profile, options.dtype, 64 + tokens)


@given(PROFILES, DTYPES, st.floats(0.9, 2.0), st.floats(0.9, 2.0))
def test_a_larger_correction_never_needs_less(profile, options, one, other):
    low, high = (
        fit(profile, options, DEVICE, room(0), max_batch=8, correction=factor) for factor in sorted((one, other))
    )
    assert low.needed_bytes <= high.needed_bytes


@given(PROFILES, OPTIONS, DEVICES, AVAILABLE)
def test_an_alternative_always_fits_and_is_never_what_was_asked_for(profile, options, device, available):
    for one in alternatives(profile, options, device, room(available), max_batch=8):
        assert one.needed_bytes <= available
        assert LoadOptions(one.dtype, one.quantization) != options
        assert quantization_problem(LoadOptions(one.dtype, one.quantization), device) is None
