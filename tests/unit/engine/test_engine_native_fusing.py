"""Which linear layers and gated blocks give way to the native kernels, and which stay although they look alike."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.pytorch_utils import Conv1D

from inferapi.engine.native.calls import Format
from inferapi.engine.native.modules import GatedMlp, NativeLinear, Part
from native_kernels import ChosenThreads, fused, normal

WIDTH, INNER = 64, 96


class Mlp(nn.Module):
    """As in Llama and most others."""

    def __init__(self, act: object, scale: float = 0.2) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(WIDTH, INNER, bias=False)
        self.up_proj = nn.Linear(WIDTH, INNER, bias=False)
        self.down_proj = nn.Linear(INNER, WIDTH, bias=False)
        self.act_fn = act
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=scale, generator=generator)
        self.bfloat16()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class MlpOfTheSum(Mlp):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) + self.up_proj(x))


class MlpOfOnePlus(Mlp):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * (self.up_proj(x) + 1))


class MlpWithAFactor(Mlp):
    def __init__(self, factor: float) -> None:
        super().__init__(nn.SiLU())
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * self.factor


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("name", ["silu", "swish", "gelu_pytorch_tanh", "gelu_new", "gelu_fast"])
def test_a_gated_block_is_replaced_and_computes_the_same(kernels: ChosenThreads, name: str) -> None:
    mlp, inputs = Mlp(ACT2FN[name]), normal(1, 5, WIDTH)
    expected = mlp(inputs)

    (native,) = fused(kernels, mlp)

    assert isinstance(native, GatedMlp)
    torch.testing.assert_close(native(inputs), expected, atol=2**-6 * float(expected.abs().max()), rtol=2**-6)


@pytest.mark.parametrize("scale", [0.2, 0.001, 1e-5, 0.0])
@pytest.mark.parametrize("name", ["gelu", "relu", "relu2", "quick_gelu", "tanh", "sigmoid", "leaky_relu", "mish"])
def test_a_block_with_another_activation_stays_however_small_its_weights(
    kernels: ChosenThreads, name: str, scale: float
) -> None:
    (block,) = fused(kernels, Mlp(ACT2FN[name], scale))

    assert type(block) is Mlp
    assert isinstance(block.gate_proj, NativeLinear)


@pytest.mark.parametrize("kind", [MlpOfTheSum, MlpOfOnePlus])
def test_a_block_that_does_something_else_with_its_layers_stays(kernels: ChosenThreads, kind: type[Mlp]) -> None:
    block, inputs = kind(nn.SiLU()), normal(1, 5, WIDTH)
    expected = block(inputs)

    (left,) = fused(kernels, block)

    assert left is block
    torch.testing.assert_close(left(inputs), expected, atol=0.05, rtol=0.05)


def test_blocks_of_one_class_that_differ_in_more_than_weights_compute_what_they_did(kernels: ChosenThreads) -> None:
    blocks, inputs = [MlpWithAFactor(1.0), MlpWithAFactor(3.0)], normal(1, 5, WIDTH)
    expected = [block(inputs) for block in blocks]

    replaced = fused(kernels, *blocks)

    for block, output in zip(replaced, expected, strict=True):
        torch.testing.assert_close(block(inputs), output, atol=0.3, rtol=0.05)


def test_a_block_with_an_activation_of_another_class_than_the_first_is_tried_anew(kernels: ChosenThreads) -> None:
    replaced = fused(kernels, Mlp(nn.SiLU()), Mlp(nn.ReLU()), Mlp(nn.GELU(approximate="tanh")))

    assert [type(block) for block in replaced] == [GatedMlp, Mlp, GatedMlp]


def test_a_block_with_one_layer_more_stays(kernels: ChosenThreads) -> None:
    block = Mlp(nn.SiLU())
    block.norm = nn.LayerNorm(INNER)

    (left,) = fused(kernels, block)

    assert left is block


class Attention(nn.Module):
    def __init__(self, biases: tuple[bool, bool, bool]) -> None:
        super().__init__()
        self.q_proj = nn.Linear(WIDTH, 64, bias=biases[0]).bfloat16()
        self.k_proj = nn.Linear(WIDTH, 32, bias=biases[1]).bfloat16()
        self.v_proj = nn.Linear(WIDTH, 18, bias=biases[2]).bfloat16()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("order", ["qkv", "vkq", "q", "qq", "kv", "qkvqkv", "qvk"])
def test_layers_of_the_same_inputs_are_one_product_in_whatever_order_they_are_called(
    kernels: ChosenThreads, order: str, *, bias: bool
) -> None:
    attention = Attention((bias,) * 3)
    inputs = [normal(1, 5, WIDTH, seed=seed) for seed in range(2)]
    plain = {name: getattr(attention, f"{name}_proj") for name in "qkv"}

    fused(kernels, attention)

    for each in (*inputs, inputs[0], inputs[1].clone()):
        for name in order:
            part = getattr(attention, f"{name}_proj")
            assert isinstance(part, Part)
            torch.testing.assert_close(part(each), plain[name](each), atol=0.02, rtol=0.02)
            assert torch.equal(part.weight, plain[name].weight)
            assert part.out_features == plain[name].out_features


def test_layers_of_which_one_has_a_bias_are_replaced_one_by_one(kernels: ChosenThreads) -> None:
    attention, inputs = Attention((True, False, True)), normal(1, 5, WIDTH)
    expected = [layer(inputs) for layer in attention.children()]

    fused(kernels, attention)

    layers = list(attention.children())
    assert [type(layer) for layer in layers] == [NativeLinear] * 3
    for layer, output in zip(layers, expected, strict=True):
        torch.testing.assert_close(layer(inputs), output, atol=0.02, rtol=0.02)


class OtherLinear(nn.Linear):
    """A subclass may compute something else."""


def test_only_what_computes_a_linear_layer_is_replaced(kernels: ChosenThreads) -> None:
    conv = Conv1D(40, WIDTH).bfloat16()
    inputs = normal(1, 5, WIDTH)
    expected = conv(inputs)

    parent = fused(kernels, conv, OtherLinear(WIDTH, 8).bfloat16(), nn.Linear(63, 8).bfloat16(), nn.LayerNorm(WIDTH))

    assert [type(child) for child in parent] == [NativeLinear, OtherLinear, nn.Linear, nn.LayerNorm]
    torch.testing.assert_close(parent[0](inputs), expected, atol=0.02, rtol=0.02)


@pytest.mark.parametrize(("quantization", "fmt"), [(None, Format.BF16), ("int8", Format.INT8), ("int4", Format.INT4)])
def test_weights_take_the_format_that_was_asked_for_and_routers_stay_exact(
    kernels: ChosenThreads, quantization: str | None, fmt: Format
) -> None:
    layer = nn.Module()
    layer.gate, layer.router, layer.dense = (nn.Linear(WIDTH, 32).bfloat16() for _ in range(3))

    fused(kernels, layer, quantization=quantization)

    formats = [layer.gate.packed.format, layer.router.packed.format, layer.dense.packed.format]
    assert formats == [Format.BF16, Format.BF16, fmt]
