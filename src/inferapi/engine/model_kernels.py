"""What computes a model's matrix products on a CPU, and the weights as it wants them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from inferapi.domain.errors import ModelInvalid
from inferapi.domain.model import DeviceKind, EngineSpec
from inferapi.domain.states import ModelState, Report
from inferapi.engine.fusing import fuse, packed_bytes
from inferapi.engine.native.kernels import Kernels, load_kernels
from inferapi.engine.native.library import NoKernelsError
from inferapi.engine.packing import can_pack, largest_list, module_bytes, pack_linears
from inferapi.engine.weights import weights_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class ModelKernels:
    """What computes, after the weights were packed for it.

    Attributes:
        native: ours, if it is them.
        name: of what computes; empty where PyTorch chooses by itself.
        reason: why nothing faster does.
        weights_bytes: what the weights take now.
    """

    native: Kernels | None
    name: str
    reason: str
    weights_bytes: int


def pack_for_kernels(spec: EngineSpec, model: PreTrainedModel, report: Report) -> ModelKernels:
    """Choose the kernels, and pack the model's weights for them in place.

    Raises:
        ModelInvalid: its weights are to be quantized, and no kernel here computes with such.
    """
    read_bytes = weights_bytes(model)
    report(ModelState.WARMING, 0, read_bytes)
    native, name, reason = _choose_kernels(spec, model)
    if native is not None:
        fuse(model, native, spec.quantization, _packing_reported(read_bytes, report))
        return ModelKernels(native, name, reason, weights_bytes(model) + packed_bytes(model))
    if name == "onednn":
        _pack(model, read_bytes, report)
    return ModelKernels(None, name, reason, read_bytes)


def use_native_threads(kernels: Kernels, threads: int) -> None:
    """For a model whose steps are native, PyTorch gets no threads but the caller's.

    OpenMP's threads go on spinning for milliseconds after the little that a step leaves to PyTorch, on the cores that
    the kernels' threads want: 12 to 15 ms of a step of 8 and 32 requests were lost so.
    """
    torch.set_num_threads(1)
    kernels.wanted_threads = threads


def _choose_kernels(spec: EngineSpec, model: PreTrainedModel) -> tuple[Kernels | None, str, str]:
    """What computes matrix products on a CPU, its name, and why nothing faster does."""
    if spec.device is not DeviceKind.CPU:
        return None, "", ""
    reason = f"the native kernels compute in bfloat16, not in {str(model.dtype).removeprefix('torch.')}"
    if model.dtype is torch.bfloat16:
        try:
            return load_kernels(), "native", ""
        except NoKernelsError as error:
            reason = str(error)
    if spec.quantization is not None:
        raise ModelInvalid(model=spec.model, problem=f"it cannot be quantized here: {reason}")
    return None, "onednn" if can_pack(model.dtype) else "torch", reason


def _pack(model: PreTrainedModel, weights_bytes: int, report: Report) -> None:
    """Pack layer by layer for oneDNN."""
    reported = _packing_reported(weights_bytes, report)
    for layer in largest_list(model):
        reported(layer)
        pack_linears(layer)
    pack_linears(model)  # what is not in a layer


def _packing_reported(weights_bytes: int, report: Report) -> Callable[[nn.Module], None]:
    """To be told of each layer before it is packed: weights that were only mapped are read from the disk there."""
    done_bytes = 0

    def begins(layer: nn.Module) -> None:
        nonlocal done_bytes
        report(ModelState.WARMING, min(done_bytes, weights_bytes), weights_bytes)
        done_bytes += module_bytes(layer)

    return begins
