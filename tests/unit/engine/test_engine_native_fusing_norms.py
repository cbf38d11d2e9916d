"""Which norms give way to the native kernels, and which stay although they look alike."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import nn

from inferapi.engine.native.modules import NativeNorm
from native_kernels import ChosenThreads, fused, normal

WIDTH = 64


class RMSNorm(nn.Module):
    """As in Llama."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.weight = nn.Parameter(normal(width, seed=1))
        self.variance_epsilon = 1e-5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * wide.to(x.dtype)


class GemmaRMSNorm(nn.Module):
    """The weight is an offset from 1."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.weight = nn.Parameter(normal(width, seed=1))
        self.eps = 1e-6

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return (wide * (1 + self.weight.float())).to(x.dtype)


class BiasedRMSNorm(RMSNorm):
    def __init__(self, bias: float) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.full((WIDTH,), bias).bfloat16())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + self.bias


class CentredRMSNorm(RMSNorm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x - x.mean(-1, keepdim=True))


class GatedRMSNorm(RMSNorm):
    """As in Mamba 2: it may be given a gate."""

    def forward(self, x: torch.Tensor, gate: torch.Tensor | None = None) -> torch.Tensor:
        return super().forward(x if gate is None else x * F.silu(gate))


class MustBeGatedRMSNorm(RMSNorm):
    def forward(self, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * F.silu(gate)


class QuietRMSNorm(RMSNorm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).clamp(-3, 3)


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("kind", [RMSNorm, GemmaRMSNorm])
def test_a_norm_is_replaced_and_computes_the_same(kernels: ChosenThreads, kind: type[nn.Module]) -> None:
    norm, inputs = kind(), normal(1, 5, WIDTH)
    expected = norm(inputs)

    (native,) = fused(kernels, norm)

    assert isinstance(native, NativeNorm)
    torch.testing.assert_close(native(inputs), expected, atol=0, rtol=2**-7)


@pytest.mark.parametrize("bias", [1.0, 0.0])
def test_a_norm_with_a_bias_stays(kernels: ChosenThreads, bias: float) -> None:
    norm = BiasedRMSNorm(bias)

    (left,) = fused(kernels, norm)

    assert left is norm


def test_norms_of_one_class_of_which_the_first_has_no_bias_to_speak_of_compute_what_they_did(
    kernels: ChosenThreads,
) -> None:
    norms, inputs = [BiasedRMSNorm(0.0), BiasedRMSNorm(1.0)], normal(1, 5, WIDTH)
    expected = [norm(inputs) for norm in norms]

    replaced = fused(kernels, *norms)

    for norm, output in zip(replaced, expected, strict=True):
        torch.testing.assert_close(norm(inputs), output, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("width", [64, 4096])
def test_a_norm_that_takes_the_mean_away_stays(kernels: ChosenThreads, width: int) -> None:
    norm = CentredRMSNorm(width)

    (left,) = fused(kernels, norm)

    assert left is norm


def test_a_norm_that_bounds_its_outputs_stays(kernels: ChosenThreads) -> None:
    norm = QuietRMSNorm()

    (left,) = fused(kernels, norm)

    assert left is norm


@pytest.mark.parametrize("kind", [GatedRMSNorm, MustBeGatedRMSNorm])
def test_a_norm_that_takes_a_gate_still_takes_it(kernels: ChosenThreads, kind: type[RMSNorm]) -> None:
    norm, inputs, gate = kind(), normal(1, 5, WIDTH), normal(1, 5, WIDTH, seed=2)
    expected = norm(inputs, gate)

    (left,) = fused(kernels, norm)

    torch.testing.assert_close(left(inputs, gate), expected, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("kind", [RMSNorm, GemmaRMSNorm])
def test_a_norm_of_a_float32_residual_stream_computes_what_it_did(
    kernels: ChosenThreads, kind: type[nn.Module]
) -> None:
    norm = kind()
    inputs = torch.randn(1, 5, WIDTH, generator=torch.Generator().manual_seed(0)) * 3
    expected = norm(inputs)

    (native,) = fused(kernels, norm)
    result = native(inputs)

    assert result.dtype == expected.dtype
    torch.testing.assert_close(result, expected, atol=0.02, rtol=0.02)


def test_a_norm_whose_weight_is_float32_stays(kernels: ChosenThreads) -> None:
    norm = RMSNorm().float()

    (left,) = fused(kernels, norm)

    assert left is norm
