"""What would fit instead, what loads teach, and laws that hold for any model."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes import GIB, MIB, make_profile
from inferapi.application.memory_fit import alternatives, fit, hint, kv_cache_bytes, weights_bytes, working_bytes
from inferapi.domain.model import Alternative, DeviceKind, LoadOptions
from memory_fit_models import AUTO, DEVICE, GPT2, SMOLLM2, needs, room


def test_a_hint_names_the_dtype_that_would_fit():
    options = LoadOptions(dtype="float32")
    tight = room(needs(SMOLLM2, kv_tokens=2048, options=options) - 100 * MIB)
    report = fit(SMOLLM2, options, DEVICE, tight, max_batch=32)
    assert not report.fits
    assert hint(report, SMOLLM2) == "It would fit with dtype bfloat16."


def test_a_hint_offers_no_other_dtype_for_packed_weights():
    packed = replace(SMOLLM2, prequantized=True, stored_bytes=10 * GIB)
    report = fit(packed, LoadOptions(dtype="float32"), DEVICE, room(6 * GIB), max_batch=1)
    assert "dtype" not in hint(report, packed)


def test_a_hint_tells_the_size_that_would_fit():
    huge = make_profile(parameters_by_dtype={"BF16": 10**11})
    report = fit(huge, AUTO, DEVICE, room(6 * GIB), max_batch=1)
    spare = 6 * GIB - report.working_bytes - report.overhead_bytes
    assert hint(report, huge) == (
        f"A model of about {0.4 * spare / 1e9:.2g} billion parameters would fit in bfloat16 on cpu."
    )


def test_a_hint_admits_that_nothing_would_fit():
    report = fit(SMOLLM2, AUTO, DEVICE, room(100 * MIB), max_batch=32)
    assert hint(report, SMOLLM2) == "No model of a useful size would fit."


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
    assert weights_bytes(larger, options.dtype) >= weights_bytes(profile, options.dtype)
    working = [
        working_bytes(profile, options.dtype, DeviceKind.CPU, max_batch=8, kv_cache_tokens=64 + extra)
        for extra in (0, tokens)
    ]
    assert working[0] <= working[1]
    assert kv_cache_bytes(profile, options.dtype, 64) <= kv_cache_bytes(profile, options.dtype, 64 + tokens)


@given(PROFILES, DTYPES, st.floats(0.9, 2.0), st.floats(0.9, 2.0))
def test_a_larger_correction_never_needs_less(profile, options, one, other):
    low, high = (
        fit(profile, options, DEVICE, room(0), max_batch=8, correction=factor) for factor in sorted((one, other))
    )
    assert low.needed_bytes <= high.needed_bytes


@given(PROFILES, DTYPES, AVAILABLE)
def test_an_alternative_always_fits(profile, options, available):
    for one in alternatives(profile, options, DEVICE, room(available), max_batch=8):
        assert one.needed_bytes <= available
        assert one.dtype != options.dtype
