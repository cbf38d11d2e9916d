"""The compiled kernels for tests, and what they are compared with."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import nn

from inferapi.engine.fusing import Fuser
from inferapi.engine.native.calls import Format
from inferapi.engine.native.formats import PackedWeight, _unpack
from inferapi.engine.native.kernels import Kernels
from inferapi.engine.native.library import NoKernelsError, load_library

BF16_STEP = 2**-8  # half of a bf16 number's last place, relative
GROUPS = {Format.INT8: 64, Format.INT4: 32}
PRODUCT_SHAPES = [
    (1, 2),
    (3, 30),
    (15, 64),
    (16, 66),
    (17, 62),
    (40, 126),
    (64, 128),
    (100, 200),
    (130, 578),
]  # outputs, inputs


class ChosenThreads(Kernels):
    """As many threads as a test wants, whatever the machine has."""

    def __init__(self, kernels: Kernels) -> None:
        super().__init__(kernels.library)
        self.most_threads = self.chosen = 1

    @property
    def threads(self) -> int:
        return self.chosen


@pytest.fixture(scope="session")
def compiled() -> Kernels:
    """Compiled once a machine; a test that asks for them is skipped where they cannot be."""
    try:
        return Kernels(load_library())
    except NoKernelsError as error:
        pytest.skip(str(error))


@pytest.fixture
def kernels(compiled: Kernels) -> ChosenThreads:
    """On one thread, until ``chosen`` says otherwise."""
    return ChosenThreads(compiled)


class Guarded:
    """A tensor with known bytes before and after it."""

    _MARK, _GUARD_BYTES = 0xA5, 256

    def __init__(self, shape: Sequence[int], dtype: torch.dtype = torch.bfloat16) -> None:
        num_bytes = int(torch.Size(shape).numel()) * dtype.itemsize
        self._memory = torch.full((num_bytes + 2 * self._GUARD_BYTES,), self._MARK, dtype=torch.uint8)
        self.tensor = self._memory[self._GUARD_BYTES : self._GUARD_BYTES + num_bytes].view(dtype).view(*shape)

    @property
    def is_intact(self) -> bool:
        """Nobody wrote beside the tensor."""
        guards = self._memory[: self._GUARD_BYTES], self._memory[-self._GUARD_BYTES :]
        return all(bool((guard == self._MARK).all()) for guard in guards)


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    """Random numbers in bf16, the same at every run."""
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale).bfloat16()


def seen_weight(packed: PackedWeight) -> torch.Tensor:
    """The weight as the kernels see it, in float32."""
    return _unpack(packed)[: packed.outputs, : packed.inputs].float()


def seen_inputs(inputs: torch.Tensor, fmt: Format) -> torch.Tensor:
    """The inputs ``[T, I]`` as the kernels see them: for quantized weights rounded to int8, a scale a group."""
    if fmt is Format.BF16:
        return inputs.float()
    rows, width = inputs.shape
    padded = torch.nn.functional.pad(inputs.float(), (0, -width % 64))
    groups = padded.view(rows, padded.shape[1] // GROUPS[fmt], GROUPS[fmt])
    scales = groups.abs().amax(-1, keepdim=True) / 127
    inverses = torch.where(scales > 0, 1 / scales, 0.0)
    return ((groups * inverses).round() * scales).flatten(1)[:, :width]


@torch.inference_mode()
def fused(kernels: Kernels, *modules: nn.Module, quantization: str | None = None) -> nn.ModuleList:
    """The modules in a list, after what can be was replaced in it."""
    parent = nn.ModuleList(modules)
    Fuser(kernels, quantization).replace_in(parent)
    return parent


class Weighted(nn.Module):
    """What a native norm takes the place of: something with a weight."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
