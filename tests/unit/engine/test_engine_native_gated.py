"""Gated products of the native kernels, in their three formats, against what a model computes step by step."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention

from inferapi.engine.native.calls import Activation, Format, Gated, Operation
from inferapi.engine.native.formats import PackedWeight, pack
from inferapi.engine.native.modules import GatedMlp, NativeLinear
from native_kernels import BF16_STEP, PRODUCT_SHAPES, ChosenThreads, Guarded, normal, seen_inputs, seen_weight

formats = pytest.mark.parametrize("fmt", list(Format))
FUNCTIONS = {Activation.SILU: F.silu, Activation.GELU_TANH: partial(F.gelu, approximate="tanh")}
activations = pytest.mark.parametrize("activation", list(Activation))


def gate_and_multiply(
    kernels: ChosenThreads, gate: PackedWeight, up: PackedWeight, inputs: torch.Tensor, activation: Activation
) -> torch.Tensor:
    rows = inputs.shape[0]
    output, scratch = Guarded((rows, gate.outputs)), Guarded((gate.scratch_bytes(rows),), torch.uint8)
    call = Gated(
        Operation.GATED,
        gate.matrix,
        up.matrix,
        inputs.data_ptr(),
        inputs.stride(0),
        output.tensor.data_ptr(),
        gate.outputs,
        activation,
        scratch.tensor.data_ptr(),
    )
    kernels.run(call, rows)
    assert output.is_intact
    assert scratch.is_intact
    return output.tensor


@formats
@activations
@pytest.mark.parametrize("shape", PRODUCT_SHAPES)
def test_a_gated_product_is_what_the_model_would_compute_step_by_step(
    kernels: ChosenThreads, fmt: Format, activation: Activation, shape: tuple[int, int]
) -> None:
    outputs, width = shape
    scale = 2 * width**-0.5
    packed = [
        pack(normal(outputs, width, seed=seed, scale=scale), normal(outputs, seed=seed + 2), fmt) for seed in (0, 1)
    ]

    for rows in (1, 2, 7, 13, 40):
        inputs = normal(rows, width, seed=rows + 10)
        result = gate_and_multiply(kernels, *packed, inputs, activation)
        x = seen_inputs(inputs, fmt)
        gate, up = (x @ seen_weight(each).t() + each.bias.float() for each in packed)
        error = (result.float() - FUNCTIONS[activation](gate) * up).abs()
        # Gate, activation, what it gates and their product are each rounded to bf16.
        allowed = 5 * BF16_STEP * gate.abs() * up.abs() + 1e-3
        assert bool((error <= allowed).all()), float((error - allowed).max())


@formats
@activations
def test_a_gated_row_is_the_same_to_the_bit_alone_among_others_and_by_many_threads(
    kernels: ChosenThreads, fmt: Format, activation: Activation
) -> None:
    gate, up = (pack(normal(700, 190, seed=seed, scale=0.1), None, fmt) for seed in (0, 1))
    inputs = normal(30, 190, seed=2)
    alone = torch.cat([gate_and_multiply(kernels, gate, up, row[None], activation) for row in inputs])

    for kernels.chosen in (1, 2, 4):
        assert torch.equal(gate_and_multiply(kernels, gate, up, inputs, activation), alone)


@activations
def test_an_activation_is_right_but_for_its_rounding(kernels: ChosenThreads, activation: Activation) -> None:
    weight = torch.tensor([[1.0, 0.0]])
    gate, up = pack(weight, None, Format.BF16), pack(torch.zeros(1, 2), torch.ones(1), Format.BF16)
    values = torch.linspace(-8, 8, 1001).bfloat16()
    inputs = torch.stack([values, torch.zeros_like(values)], 1).contiguous()

    result = gate_and_multiply(kernels, gate, up, inputs, activation)[:, 0].float()

    torch.testing.assert_close(result, FUNCTIONS[activation](values.float()), atol=1e-6, rtol=1.02 * BF16_STEP)


@activations
def test_a_gate_far_from_zero_is_open_or_closed_and_never_not_a_number(
    kernels: ChosenThreads, activation: Activation
) -> None:
    weight = torch.zeros(16, 2).bfloat16()
    weight[:, 0] = 1
    gate, up = pack(weight, None, Format.BF16), pack(torch.zeros(16, 2), torch.ones(16), Format.BF16)
    values = torch.tensor([-1e6, -1e4, -100.0, -89.0, 0.0, 89.0, 100.0, 1e4]).bfloat16()
    inputs = torch.stack([values, torch.zeros_like(values)], 1).contiguous()

    result = gate_and_multiply(kernels, gate, up, inputs, activation)[:, 0].float()

    torch.testing.assert_close(result, values.float().clamp_min(0), atol=1e-30, rtol=1e-6)


@formats
def test_a_whole_block_is_its_three_layers(kernels: ChosenThreads, fmt: Format) -> None:
    gate, up = (pack(normal(96, 64, seed=seed, scale=0.2), None, fmt) for seed in (0, 1))
    down = NativeLinear(kernels, pack(normal(64, 96, seed=2, scale=0.2), None, fmt))
    inputs = normal(1, 9, 70, seed=3)[..., :64]

    result = GatedMlp(kernels, gate, up, down, Activation.SILU)(inputs)

    inner = gate_and_multiply(kernels, gate, up, inputs[0], Activation.SILU)
    assert torch.equal(result, down(inner[None]))
