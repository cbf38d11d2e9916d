"""Bytes, to the byte: the expected figures are worked out by hand beside each model."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fakes import GIB, MIB, make_device, make_profile
from inferapi.application.memory_fit import (
    Room,
    fit,
    kv_cache_bytes,
    room_for,
    target_dtype,
    working_bytes,
)
from inferapi.domain.model import DeviceKind, LayerShape, LinearShape, LoadOptions, Quantization
from memory_fit_models import AUTO, DEVICE, GPT2, NATIVE, ON_GPU, RESERVE, SMOLLM2, needs, room

BF16, F32 = LoadOptions("bfloat16"), LoadOptions("float32")
INT8, INT4 = (LoadOptions("bfloat16", quantization) for quantization in Quantization)


SLIDING = (LayerShape(8, 192, 128), LayerShape(2, 64, 64, window_tokens=128))
RECURRENT = (LayerShape(0, 0, 0, state_elements=1000), LayerShape(2, 64, 64, state_elements=10))


@pytest.mark.parametrize(
    ("profile", "dtype", "expected"),
    [
        (SMOLLM2, "bfloat16", 640 * 30 * 3 * 128 * 2),
        (GPT2, "float32", 640 * 12 * 12 * 128 * 4),
        (replace(GPT2, layers=SLIDING), "float16", 640 * 5632),  # the paged cache keeps what a window hides
        (replace(GPT2, layers=SLIDING, sequential=True), "float16", 640 * 5120 + 128 * 512),
        (replace(GPT2, layers=RECURRENT, sequential=True), "float32", 640 * 256 * 4 + 1010 * 4),
        (replace(GPT2, layers=()), "float16", 0),
    ],
)
def test_the_cache_holds_keys_values_and_states_of_all_layers(profile, dtype, expected):
    assert kv_cache_bytes(profile, dtype, 640) == expected


def test_working_memory_is_a_step_and_its_kernels():
    rows, blocks = 512 + 32, 2048 // 64
    activations = rows * (6 * 576 + 4 * 1536) * 2
    mask = rows * 2048 * (1 + 2)
    logits = 32 * 49_152 * (4 * 4 + 2)
    attention = 2 * 2048 * 3 * 128 * 2 + blocks * 9 * 3 * (64 + 64) * 4
    kernels = round(5 * 11.5 * MIB)
    found = working_bytes(SMOLLM2, BF16, DEVICE, max_batch=32, kv_cache_tokens=2048)
    assert found == activations + mask + logits + attention + kernels


NATIVE_AT_LOAD, NATIVE_SERVING = 2 * MIB, 6 * MIB


@pytest.mark.parametrize("options", [BF16, INT8, INT4])
def test_native_kernels_compile_nothing_more_for_shapes_and_rows(options):
    shapes = [
        fit(replace(SMOLLM2, matrix_shapes=count), options, NATIVE, room(12 * GIB), max_batch=32) for count in (1, 50)
    ]
    assert shapes[0] == shapes[1]
    assert shapes[0].overhead_bytes == 160 * MIB + 49_152 * 600 + NATIVE_AT_LOAD


@pytest.mark.parametrize("max_batch", [1, 8, 256])
def test_with_native_kernels_working_memory_is_tapes_and_the_sampler_s_logits(max_batch):
    found = working_bytes(SMOLLM2, BF16, NATIVE, max_batch=max_batch, kv_cache_tokens=2048)
    tapes = 145 * 30 * (9 * 576 + 2 * 1536) * 2 + 52 * 49_152 * 2
    assert found == tapes + max_batch * 49_152 * (4 * 4 + 2) + NATIVE_SERVING


def test_a_model_that_attends_without_native_kernels_needs_a_step_s_memory_as_ever():
    capped = replace(SMOLLM2, scores_in_full=True)
    found, compiled = (
        working_bytes(capped, BF16, device, max_batch=8, kv_cache_tokens=2048) for device in (NATIVE, DEVICE)
    )
    assert compiled - found == round(5 * 11.5 * MIB) - NATIVE_SERVING


def test_beside_native_kernels_experts_are_still_computed_by_compiled_ones():
    plain, mixture = (
        fit(replace(SMOLLM2, expert_shapes=count), BF16, NATIVE, room(12 * GIB), max_batch=32) for count in (0, 2)
    )
    assert mixture.overhead_bytes - plain.overhead_bytes == 2 * 10 * MIB
    assert mixture.working_bytes - plain.working_bytes == 2 * 125 * MIB


def test_a_sequential_model_has_native_kernels_too():
    alone = replace(SMOLLM2, sequential=True)
    reports = [fit(alone, BF16, device, room(12 * GIB), max_batch=1) for device in (DEVICE, NATIVE)]
    assert reports[1].overhead_bytes - reports[0].overhead_bytes == NATIVE_AT_LOAD
    assert reports[1].working_bytes - reports[0].working_bytes == NATIVE_SERVING - round(5 * 0.5 * MIB)


def test_in_float32_native_kernels_change_nothing():
    reports = [fit(SMOLLM2, F32, device, room(12 * GIB), max_batch=32) for device in (DEVICE, NATIVE)]
    assert reports[0] == reports[1]


def test_a_report_of_quantized_weights_adds_up_to_the_byte():
    asked = LoadOptions(quantization=Quantization.INT4)
    report = fit(SMOLLM2, asked, NATIVE, room(12 * GIB), max_batch=32)
    assert (report.dtype, report.quantization) == ("bfloat16", Quantization.INT4)
    linears = 106_168_320
    output = 49_152 * (576 + 36)
    assert report.weights_bytes == 2 * (134_515_008 - linears) + linears * 5 // 8 + output
    assert report.loaded_bytes == report.weights_bytes + report.overhead_bytes
    assert report.needed_bytes == report.loaded_bytes + report.kv_cache_bytes + report.working_bytes
    assert report.kv_cache_bytes == fit(SMOLLM2, AUTO, NATIVE, room(12 * GIB), max_batch=32).kv_cache_bytes


@pytest.mark.parametrize("stored", ["F32", "F16"])
def test_what_is_converted_before_it_is_quantized_must_find_room(stored):
    converted = replace(SMOLLM2, parameters_by_dtype={stored: 10**9 + 134_515_008})
    linears = (*SMOLLM2.linears, LinearShape(1000, 1_000_000))
    profile = replace(converted, linears=linears)
    tight = fit(profile, INT4, NATIVE, room(0), max_batch=32)
    assert tight.needed_bytes == 2 * (10**9 + 134_515_008) + tight.overhead_bytes
    mapped = replace(profile, parameters_by_dtype={"BF16": 10**9 + 134_515_008})
    for other, options, device in ((mapped, INT4, NATIVE), (profile, BF16, NATIVE), (profile, INT4, ON_GPU)):
        found = fit(other, options, device, room(0), max_batch=32)
        assert found.working_bytes == working_bytes(other, options, device, max_batch=32, kv_cache_tokens=2048)


def test_what_is_converted_is_gone_before_the_cache_is_written():
    profile = replace(SMOLLM2, parameters_by_dtype={"F32": 134_515_008})
    report = fit(profile, INT4, NATIVE, room(12 * GIB), max_batch=32)
    assert report.working_bytes == working_bytes(profile, INT4, NATIVE, max_batch=32, kv_cache_tokens=32 * 1024)


def test_on_a_gpu_working_memory_has_a_floor_and_no_kernels():
    assert working_bytes(SMOLLM2, BF16, ON_GPU, max_batch=1, kv_cache_tokens=2048) == 512 * MIB


def test_scores_in_full_grow_with_the_square_of_the_context():
    biased = replace(GPT2, sequential=True, scores_in_full=True, attention_heads=12)
    plain = replace(biased, scores_in_full=False)
    found = [working_bytes(one, F32, DEVICE, max_batch=4, kv_cache_tokens=1024) for one in (biased, plain)]
    assert found[0] - found[1] == 5 * 12 * 1024 * 1024 * 4


@pytest.mark.parametrize(
    ("asked", "supported", "expected"),
    [
        ("auto", True, "bfloat16"),
        ("auto", False, "float32"),
        ("bfloat16", False, "bfloat16"),
        ("float16", True, "float16"),
        ("float32", True, "float32"),
    ],
)
def test_auto_is_bf16_where_the_processor_computes_in_it(asked, supported, expected):
    assert target_dtype(LoadOptions(dtype=asked), make_device(bfloat16=supported)) == expected


def test_a_report_adds_up_to_the_byte():
    report = fit(SMOLLM2, AUTO, DEVICE, room(12 * GIB), max_batch=32)
    assert report.weights_bytes == 269_030_016 + 49_152 * 576 * 2
    assert (report.kv_cache_tokens, report.kv_cache_bytes) == (32 * 1024, 32 * 1024 * 23_040)
    trial = round(5 * 2.6 * MIB)
    assert report.overhead_bytes == 160 * MIB + 49_152 * 600 + trial
    assert report.loaded_bytes == report.weights_bytes + report.overhead_bytes
    assert report.reserve_bytes == RESERVE
    assert report.needed_bytes == report.loaded_bytes + report.kv_cache_bytes + report.working_bytes
    assert (report.fits, report.can_ever_fit) == (True, True)


def test_the_reserve_is_a_share_of_a_large_machine():
    device = make_device(total_bytes=100 * GIB, free_bytes=90 * GIB)
    found = room_for(device, budget_bytes=None, resident_bytes=0, reclaimable_bytes=0)
    reserve = int(0.03 * 100 * GIB)
    assert found == Room(100 * GIB - reserve, 90 * GIB - reserve, reserve)


@pytest.mark.parametrize(
    ("profile", "max_batch", "expected"),
    [
        (SMOLLM2, 1, 8192),  # one request may be as long as the context window
        (SMOLLM2, 32, 32 * 1024),  # a full batch of typical requests
        (GPT2, 1, 1024),
        (GPT2, 4, 4 * 1024),
        (replace(GPT2, context_window_tokens=100), 4, 448),  # no more than all contexts, in blocks of 64
        (replace(SMOLLM2, context_window_tokens=131_072), 1, 8192),  # a long context is not promised to all
    ],
)
def test_with_room_the_kv_cache_is_what_a_full_batch_wants(profile, max_batch, expected):
    assert fit(profile, AUTO, DEVICE, room(12 * GIB), max_batch=max_batch).kv_cache_tokens == expected


def test_the_kv_cache_shrinks_before_a_model_is_refused():
    report = fit(SMOLLM2, AUTO, DEVICE, room(needs(SMOLLM2, kv_tokens=4096)), max_batch=32)
    assert (report.kv_cache_tokens, report.fits) == (4096, True)


@pytest.mark.parametrize("tokens", [2049, 3001, 4095, 4097, 31_999])
def test_a_shrunken_kv_cache_fits_whatever_the_room(tokens):
    report = fit(SMOLLM2, AUTO, DEVICE, room(needs(SMOLLM2, kv_tokens=tokens)), max_batch=32)
    assert report.kv_cache_tokens == tokens // 64 * 64
    assert report.fits


def test_the_kv_cache_shrinks_to_one_short_context_and_no_further():
    least = needs(SMOLLM2, kv_tokens=2048)
    fitting = fit(SMOLLM2, AUTO, DEVICE, room(least), max_batch=32)
    refused = fit(SMOLLM2, AUTO, DEVICE, room(least - 1), max_batch=32)
    assert (fitting.kv_cache_tokens, fitting.fits) == (2048, True)
    assert (refused.kv_cache_tokens, refused.fits, refused.can_ever_fit) == (2048, False, True)


def test_a_model_of_a_short_context_needs_no_longer_cache():
    report = fit(GPT2, AUTO, DEVICE, room(needs(GPT2, kv_tokens=1024)), max_batch=32)
    assert (report.kv_cache_tokens, report.fits) == (1024, True)


def test_a_model_larger_than_the_machine_can_never_fit():
    report = fit(make_profile(parameters_by_dtype={"BF16": 10**11}), AUTO, DEVICE, room(16 * GIB), max_batch=1)
    assert (report.fits, report.can_ever_fit) == (False, False)


@pytest.mark.parametrize(
    ("budget", "resident", "reclaimable", "total", "available"),
    [
        (None, 0, 0, 16 * GIB - RESERVE, 12 * GIB - RESERVE),
        (None, 2 * GIB, 2 * GIB, 16 * GIB - RESERVE, 14 * GIB - RESERVE),
        (None, 6 * GIB, 6 * GIB, 16 * GIB - RESERVE, 16 * GIB - RESERVE),  # never more than there is
        (4 * GIB, 0, 0, 4 * GIB, 4 * GIB),
        (4 * GIB, 3 * GIB, 0, 4 * GIB, 1 * GIB),
        (4 * GIB, 3 * GIB, 2 * GIB, 4 * GIB, 3 * GIB),
        (4 * GIB, 5 * GIB, 0, 4 * GIB, 0),
        (64 * GIB, 0, 0, 16 * GIB - RESERVE, 12 * GIB - RESERVE),  # a budget makes no memory
    ],
)
def test_a_budget_is_a_ceiling_and_what_can_be_freed_counts(budget, resident, reclaimable, total, available):
    found = room_for(DEVICE, budget_bytes=budget, resident_bytes=resident, reclaimable_bytes=reclaimable)
    assert found == Room(total, available, RESERVE)


def test_a_full_machine_has_no_room_at_all():
    device = make_device(free_bytes=RESERVE - 1)
    found = room_for(device, budget_bytes=None, resident_bytes=0, reclaimable_bytes=0)
    assert found.available_bytes == 0


def test_what_is_taken_once_loaded_is_what_a_worker_on_that_device_measures():
    for profile, device in ((SMOLLM2, DEVICE), (SMOLLM2, ON_GPU), (replace(SMOLLM2, sequential=True), ON_GPU)):
        report = fit(profile, AUTO, device, room(12 * GIB), max_batch=32)
        others = {
            (DeviceKind.CPU, False): report.overhead_bytes,
            (DeviceKind.CUDA, False): report.kv_cache_bytes,  # reserved at once; the CUDA context is not measured
            (DeviceKind.CUDA, True): 0,
        }
        assert report.loaded_bytes == report.weights_bytes + others[device.kind, profile.sequential]
        assert report.weights_bytes > 0 < report.kv_cache_bytes
        assert report.overhead_bytes > 0
