"""The compiled kernels for tests, and what they are compared with."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from inferapi.engine.native.calls import Call
from inferapi.engine.native.kernels import Kernels
from inferapi.engine.native.library import NoKernelsError, load_library

BF16_STEP = 2**-8  # half of a bf16 number's last place, relative


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


def run(kernels: Kernels, call: Call, rows: int) -> None:
    """Make one call."""
    kernels.run(call, rows)
