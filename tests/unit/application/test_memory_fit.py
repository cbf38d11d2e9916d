"""Bytes, to the byte: the expected figures are worked out by hand beside each model."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fakes import GIB, MIB, make_device, make_profile
from inferapi.application.memory_fit import (
    Room,
    fit,
    kv_cache_bytes,
    output_copy_bytes,
    room_for,
    target_dtype,
    weights_bytes,
    working_bytes,
)
from inferapi.domain.model import DeviceKind, LayerShape, LoadOptions
from memory_fit_models import AUTO, DEVICE, GPT2, RESERVE, SMOLLM2, needs, room


@pytest.mark.parametrize(
    ("profile", "dtype", "expected"),
    [
        (SMOLLM2, "bfloat16", 2 * 134_515_008),
        (SMOLLM2, "float16", 2 * 134_515_008),
        (SMOLLM2, "float32", 4 * 134_515_008),
        (GPT2, "bfloat16", 248_879_616),
        (GPT2, "float32", 497_759_232),
        (replace(GPT2, parameters_by_dtype={"F32": 10, "I64": 3, "U8": 5, "F64": 1}), "bfloat16", 22 + 24 + 5),
        (replace(GPT2, parameters_by_dtype={"F8_E4M3": 10, "BOOL": 3}), "bfloat16", 20 + 3),
        (replace(GPT2, prequantized=True, stored_bytes=77_000_001), "float32", 77_000_001),
    ],
)
def test_weights_take_the_width_of_the_dtype_and_packed_ones_what_is_stored(profile, dtype, expected):
    assert weights_bytes(profile, dtype) == expected


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


@pytest.mark.parametrize(
    ("profile", "dtype", "device", "expected"),
    [
        (SMOLLM2, "bfloat16", DeviceKind.CPU, 49_152 * 576 * 2),
        (SMOLLM2, "float32", DeviceKind.CPU, 49_152 * 576 * 4),
        (SMOLLM2, "float16", DeviceKind.CPU, 0),  # the CPU has no packed kernels for it
        (SMOLLM2, "bfloat16", DeviceKind.CUDA, 0),
        (replace(SMOLLM2, ties_output=False), "bfloat16", DeviceKind.CPU, 0),
    ],
)
def test_a_tied_output_layer_is_copied_where_it_is_packed(profile, dtype, device, expected):
    assert output_copy_bytes(profile, dtype, device) == expected


def test_working_memory_is_a_step_and_its_kernels():
    rows, blocks = 512 + 32, 2048 // 64
    activations = rows * (6 * 576 + 4 * 1536) * 2
    mask = rows * 2048 * (1 + 2)
    logits = 32 * 49_152 * (4 * 4 + 2)
    attention = 2 * 2048 * 3 * 128 * 2 + blocks * 9 * 3 * (64 + 64) * 4
    kernels = round(5 * 11.5 * MIB)
    found = working_bytes(SMOLLM2, "bfloat16", DeviceKind.CPU, max_batch=32, kv_cache_tokens=2048)
    assert found == activations + mask + logits + attention + kernels


def test_on_a_gpu_working_memory_has_a_floor_and_no_kernels():
    assert working_bytes(SMOLLM2, "bfloat16", DeviceKind.CUDA, max_batch=1, kv_cache_tokens=2048) == 512 * MIB


def test_scores_in_full_grow_with_the_square_of_the_context():
    biased = replace(GPT2, sequential=True, scores_in_full=True, attention_heads=12)
    plain = replace(biased, scores_in_full=False)
    found = [
        working_bytes(one, "float32", DeviceKind.CPU, max_batch=4, kv_cache_tokens=1024) for one in (biased, plain)
    ]
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
    on_gpu = replace(DEVICE, kind=DeviceKind.CUDA)
    for profile, device in ((SMOLLM2, DEVICE), (SMOLLM2, on_gpu), (replace(SMOLLM2, sequential=True), on_gpu)):
        report = fit(profile, AUTO, device, room(12 * GIB), max_batch=32)
        others = {
            (DeviceKind.CPU, False): report.overhead_bytes,
            (DeviceKind.CUDA, False): report.kv_cache_bytes,  # reserved at once; the CUDA context is not measured
            (DeviceKind.CUDA, True): 0,
        }
        assert report.loaded_bytes == report.weights_bytes + others[device.kind, profile.sequential]
        assert report.weights_bytes > 0 < report.kv_cache_bytes
        assert report.overhead_bytes > 0
