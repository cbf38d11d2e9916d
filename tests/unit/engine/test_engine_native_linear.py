"""Matrix products of the native kernels, in their three formats, against the same product in float32."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inferapi.engine.native.calls import Format, Linear, Operation
from inferapi.engine.native.formats import PackedWeight, pack
from inferapi.engine.native.modules import NativeLinear
from native_kernels import BF16_STEP, PRODUCT_SHAPES, ChosenThreads, Guarded, normal, seen_inputs, seen_weight

formats = pytest.mark.parametrize("fmt", list(Format))


def assert_is_product(outputs: torch.Tensor, inputs: torch.Tensor, packed: PackedWeight) -> None:
    """But for the rounding of the result to bf16, and of a sum in float32."""
    x, weight = seen_inputs(inputs, packed.format).double(), seen_weight(packed).double()
    bias = 0 if packed.bias is None else packed.bias.double()
    exact = x @ weight.t() + bias
    largest = x.abs() @ weight.abs().t()
    # Numbers of int4 are about their group's minimum: the products that the kernels sum are larger than the weights.
    slack = {Format.BF16: 1e-6, Format.INT8: 4e-6, Format.INT4: 4e-6}[packed.format]
    error = (outputs.double() - exact).abs()
    allowed = BF16_STEP * exact.abs() + slack * largest + 1e-30
    assert bool((error <= allowed).all()), float((error / allowed).max())


def multiply(kernels: ChosenThreads, packed: PackedWeight, inputs: torch.Tensor) -> tuple[torch.Tensor, list[Guarded]]:
    """One call, whose output and scratch memory lie between guards."""
    rows = inputs.shape[0]
    output = Guarded((rows, packed.outputs))
    scratch = Guarded((packed.scratch_bytes(rows),), torch.uint8)
    call = Linear(
        Operation.LINEAR,
        packed.matrix,
        inputs.data_ptr(),
        inputs.stride(0),
        output.tensor.data_ptr(),
        packed.outputs,
        scratch.tensor.data_ptr(),
    )
    kernels.run(call, rows)
    return output.tensor, [output, scratch]


@formats
@pytest.mark.parametrize("shape", PRODUCT_SHAPES)
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_of_any_shape_is_the_product_in_float32(
    kernels: ChosenThreads, fmt: Format, shape: tuple[int, int], *, bias: bool
) -> None:
    outputs, width = shape
    packed = pack(normal(outputs, width), normal(outputs, seed=1) if bias else None, fmt)

    for rows in (1, 2, 5, 8, 9, 12, 13, 14, 31, 70):
        inputs = normal(rows, width, seed=rows)
        assert_is_product(multiply(kernels, packed, inputs)[0], inputs, packed)


@formats
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_shape_and_no_number_of_threads_makes_a_linear_layer_write_beside_its_memory(
    compiled, fmt: Format, data: st.DataObject
) -> None:
    kernels = ChosenThreads(compiled)
    kernels.chosen = data.draw(st.sampled_from([1, 2, 3, 4]), "threads")
    outputs, half, rows = (data.draw(st.integers(1, most)) for most in (200, 150, 70))
    gap = data.draw(st.sampled_from([0, 2, 7]), "gap")
    packed = pack(normal(outputs, 2 * half), normal(outputs, seed=1), fmt)
    inputs = normal(rows, 2 * half + gap, seed=2)[:, : 2 * half]

    result, guarded = multiply(kernels, packed, inputs)

    assert all(memory.is_intact for memory in guarded)
    assert_is_product(result, inputs, packed)


@formats
def test_the_number_of_threads_changes_no_bit(kernels: ChosenThreads, fmt: Format) -> None:
    packed = pack(normal(1000, 190), normal(1000, seed=1), fmt)

    for rows in (1, 3, 7, 13, 48, 70):
        inputs = normal(rows, 190, seed=rows)
        results = []
        for kernels.chosen in (1, 2, 4):
            results += [multiply(kernels, packed, inputs)[0] for _ in range(3)]
        assert all(torch.equal(result, results[0]) for result in results)


@formats
def test_a_row_is_the_same_to_the_bit_alone_and_among_others(kernels: ChosenThreads, fmt: Format) -> None:
    packed = pack(normal(333, 250), normal(333, seed=1), fmt)
    inputs = normal(70, 250, seed=2)
    alone = torch.cat([multiply(kernels, packed, row[None])[0] for row in inputs])

    for begin, end in ((0, 70), (3, 9), (5, 16), (1, 14), (20, 69)):
        together, _ = multiply(kernels, packed, inputs[begin:end])
        assert torch.equal(together, alone[begin:end])


@formats
def test_another_row_that_is_not_a_number_spoils_none_but_itself(kernels: ChosenThreads, fmt: Format) -> None:
    packed = pack(normal(50, 96), None, fmt)
    inputs = normal(9, 96, seed=2)
    expected, _ = multiply(kernels, packed, inputs)
    inputs[4] = float("nan")

    spoiled, _ = multiply(kernels, packed, inputs)

    others = [0, 1, 2, 3, 5, 6, 7, 8]
    assert torch.equal(spoiled[others], expected[others])


@formats
def test_rows_of_zeros_come_to_the_bias(kernels: ChosenThreads, fmt: Format) -> None:
    bias = normal(20, seed=1)
    result, _ = multiply(kernels, pack(normal(20, 64), bias, fmt), torch.zeros(3, 64, dtype=torch.bfloat16))

    assert torch.equal(result, bias.expand(3, -1))


@pytest.mark.parametrize(("fmt", "tolerance"), [(Format.BF16, 0.003), (Format.INT8, 0.012), (Format.INT4, 0.09)])
def test_what_quantization_costs_is_within_its_bound(kernels: ChosenThreads, fmt: Format, tolerance: float) -> None:
    weight, inputs = normal(256, 512), normal(16, 512, seed=1)

    result, _ = multiply(kernels, pack(weight, None, fmt), inputs)

    exact = inputs.float() @ weight.float().t()
    assert float((result.float() - exact).norm() / exact.norm()) < tolerance


@formats
@pytest.mark.parametrize("shape", [(64,), (1, 64), (1, 7, 64), (3, 5, 64), (2, 2, 3, 64), (1, 0, 64)])
def test_the_module_takes_the_shapes_that_nn_linear_takes(
    kernels: ChosenThreads, fmt: Format, shape: tuple[int, ...]
) -> None:
    linear = NativeLinear(kernels, pack(normal(24, 64), normal(24, seed=1), fmt))
    inputs = normal(*shape, seed=2)

    result = linear(inputs)

    assert (result.shape, result.dtype) == ((*shape[:-1], 24), torch.bfloat16)
    assert_is_product(result.reshape(-1, 24), inputs.reshape(-1, 64), linear.packed)


def test_the_module_takes_inputs_that_are_not_dense(kernels: ChosenThreads) -> None:
    linear = NativeLinear(kernels, pack(normal(24, 64), None, Format.INT8))
    wide = normal(6, 5, 130, seed=2)
    strided = {
        "columns of a wider row": wide[:1, :, 3:67],
        "every second number": wide[:1, :, :128:2],
        "transposed": wide[..., :64].transpose(0, 1),
        "the same row for all": wide[:1, :1, :64].expand(1, 4, 64),
        "every second row": wide[0, ::2, :64],
    }

    for name, inputs in strided.items():
        assert torch.equal(linear(inputs), linear(inputs.contiguous())), name


def test_inputs_of_another_dtype_are_computed_in_it(kernels: ChosenThreads) -> None:
    linear = NativeLinear(kernels, pack(normal(4, 64), normal(4, seed=1), Format.BF16))
    inputs = torch.randn(3, 64, generator=torch.Generator().manual_seed(2))

    result = linear(inputs)

    assert result.dtype is torch.float32
    torch.testing.assert_close(result, inputs @ linear.weight.float().t() + linear.bias.float())
