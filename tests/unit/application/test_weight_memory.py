"""Bytes of weights in every format, worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes import NO_COMPILER, make_profile
from inferapi.application.weight_memory import (
    output_copy_bytes,
    quantization_problem,
    uses_native_kernels,
    weights_bytes,
)
from inferapi.domain.model import LinearShape, LoadOptions, Quantization
from memory_fit_models import DEVICE, GPT2, NATIVE, ON_GPU, SMOLLM2

INT8, INT4 = Quantization.INT8, Quantization.INT4
LINEAR_PARAMETERS = 30 * (2 * 576 * 576 + 2 * 192 * 576 + 3 * 1536 * 576)
LINEAR_ROWS = 30 * (2 * 576 + 2 * 192 + 2 * 1536 + 576)
OTHERS = 134_515_008 - LINEAR_PARAMETERS  # the embedding and the norms
TIED_INT8 = 49_152 * (576 + 576 // 64 * 4)
ODD = make_profile(
    parameters_by_dtype={"BF16": 3 * 5 * 100 + 7 * 100 + 1000, "I64": 10},
    linears=(LinearShape(5, 100, 3),),
    output=LinearShape(7, 100),
)


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
    assert [weights_bytes(profile, LoadOptions(dtype), device) for device in (DEVICE, NATIVE, ON_GPU)] == [expected] * 3


@pytest.mark.parametrize(
    ("quantization", "expected"),
    [
        (INT8, 2 * OTHERS + LINEAR_PARAMETERS + LINEAR_PARAMETERS // 64 * 4),
        (INT4, 2 * OTHERS + LINEAR_PARAMETERS // 2 + LINEAR_PARAMETERS // 32 * 4),
    ],
)
def test_on_a_cpu_linear_layers_are_quantized_in_groups_and_the_rest_keeps_the_dtype(quantization, expected):
    assert weights_bytes(SMOLLM2, LoadOptions("bfloat16", quantization), NATIVE) == expected


@pytest.mark.parametrize(("quantization", "linears"), [(INT8, 3 * 16 * (128 + 2 * 4)), (INT4, 3 * 16 * (64 + 4 * 4))])
def test_matrices_are_padded_to_whole_panels_and_groups_and_an_output_layer_of_its_own_has_eight_bits(
    quantization, linears
):
    found = weights_bytes(ODD, LoadOptions("bfloat16", quantization), NATIVE)
    assert found == 2 * 1000 + 8 * 10 + linears + 16 * (128 + 2 * 4)


@pytest.mark.parametrize(
    ("quantization", "linears"),
    [(INT8, LINEAR_PARAMETERS + 4 * LINEAR_ROWS), (INT4, LINEAR_PARAMETERS * 9 // 16)],
)
def test_on_a_gpu_bitsandbytes_quantizes_the_linear_layers_and_nothing_else(quantization, linears):
    options = LoadOptions("bfloat16", quantization)
    assert weights_bytes(SMOLLM2, options, ON_GPU) == 2 * OTHERS + linears
    assert output_copy_bytes(SMOLLM2, options, ON_GPU) == 0
    untied = replace(ODD, linears=())
    assert weights_bytes(untied, options, ON_GPU) == weights_bytes(untied, LoadOptions("bfloat16"), ON_GPU)


@pytest.mark.parametrize(
    ("profile", "dtype", "device", "expected"),
    [
        (SMOLLM2, "bfloat16", DEVICE, 49_152 * 576 * 2),
        (SMOLLM2, "float32", DEVICE, 49_152 * 576 * 4),
        (SMOLLM2, "float16", DEVICE, 0),  # the CPU has no packed kernels for it
        (SMOLLM2, "bfloat16", NATIVE, 0),
        (SMOLLM2, "float32", NATIVE, 49_152 * 576 * 4),  # oneDNN computes it, native kernels or not
        (SMOLLM2, "bfloat16", ON_GPU, 0),
        (replace(SMOLLM2, ties_output=False), "bfloat16", DEVICE, 0),
    ],
)
def test_a_tied_output_layer_is_copied_where_it_is_packed(profile, dtype, device, expected):
    assert output_copy_bytes(profile, LoadOptions(dtype), device) == expected


@pytest.mark.parametrize("quantization", [INT8, INT4])
def test_a_tied_output_layer_has_a_copy_of_eight_bits_beside_quantized_layers(quantization):
    assert output_copy_bytes(SMOLLM2, LoadOptions("bfloat16", quantization), NATIVE) == TIED_INT8


@pytest.mark.parametrize(
    ("dtype", "quantization", "expected"),
    [
        ("bfloat16", None, True),
        ("float16", None, False),
        ("float32", None, False),
        ("bfloat16", INT8, True),
        ("bfloat16", INT4, True),
    ],
)
def test_native_kernels_compute_in_bf16_where_they_are_to_be_had(dtype, quantization, expected):
    options = LoadOptions(dtype, quantization)
    assert uses_native_kernels(options, NATIVE) is expected
    assert not uses_native_kernels(options, DEVICE)
    assert not uses_native_kernels(options, replace(ON_GPU, native_kernels=True))


@pytest.mark.parametrize(
    ("dtype", "quantization", "device", "expected"),
    [
        ("bfloat16", INT8, NATIVE, None),
        ("bfloat16", INT4, NATIVE, None),
        ("float32", None, DEVICE, None),
        ("float16", INT4, ON_GPU, None),
        ("bfloat16", INT8, DEVICE, f"on a CPU that takes kernels compiled for it, and {NO_COMPILER}"),
        ("float32", INT8, DEVICE, f"on a CPU that takes kernels compiled for it, and {NO_COMPILER}"),
        ("float32", INT8, NATIVE, "a CPU multiplies quantized weights in bfloat16, not in float32"),
        ("float16", INT4, NATIVE, "a CPU multiplies quantized weights in bfloat16, not in float16"),
    ],
)
def test_a_cpu_quantizes_in_bf16_by_native_kernels_alone_and_says_why_not(dtype, quantization, device, expected):
    assert quantization_problem(LoadOptions(dtype, quantization), device) == expected


LINEARS = st.builds(LinearShape, st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 50))


@given(
    st.lists(LINEARS, min_size=1, max_size=5),
    st.one_of(st.none(), LINEARS),
    st.integers(0, 10**8),
    st.sampled_from([NATIVE, ON_GPU]),
)
def test_fewer_bits_never_take_less_than_the_bits_and_int4_less_than_int8(linears, output, rest, device):
    parameters = sum(linear.parameters for linear in linears)
    stored = parameters + (output.parameters if output else 0) + rest
    profile = make_profile(parameters_by_dtype={"BF16": stored}, linears=tuple(linears), output=output)
    int8, int4 = (weights_bytes(profile, LoadOptions("bfloat16", one), device) for one in (INT8, INT4))
    assert parameters + 2 * rest < int8
    assert parameters / 2 + 2 * rest < int4 < int8
