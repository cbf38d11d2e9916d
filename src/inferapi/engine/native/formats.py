"""Weights in the layouts of the native kernels: panels of 16 outputs, plain or quantized in groups.

Shapes: ``O`` outputs, ``I`` inputs, ``N`` panels (``O / 16`` rounded up), ``G`` groups of inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention

from inferapi.engine.native.calls import Format, Matrix
from inferapi.engine.native.huge_pages import Empty

_LANES = 16
_GROUPS = {Format.INT8: 64, Format.INT4: 32}
_INPUT_ALIGN = 64


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A weight as the kernels read it; ``matrix`` points into the tensors."""

    format: Format
    outputs: int
    inputs: int
    numbers: torch.Tensor
    scales: torch.Tensor | None = None
    minima: torch.Tensor | None = None
    bias: torch.Tensor | None = None

    @property
    def matrix(self) -> Matrix:
        """For a call; valid while this object lives."""
        pointers = (None if tensor is None else tensor.data_ptr() for tensor in (self.scales, self.minima, self.bias))
        return Matrix(self.format, self.outputs, self.inputs, self.numbers.data_ptr(), *pointers)

    @property
    def num_bytes(self) -> int:
        """What it takes."""
        tensors = (self.numbers, self.scales, self.minima, self.bias)
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)

    def scratch_bytes(self, rows: int) -> int:
        """What a call needs beside its output: the rounded inputs of quantized weights."""
        if self.format is Format.BF16:
            return 0
        padded = _padded(self.inputs)
        return rows * (padded + 8 * (padded // _GROUPS[self.format]))

    def plain(self) -> torch.Tensor:
        """The weight again, ``[O, I]`` in bf16, as the kernels see it."""
        return _unpack(self)[: self.outputs, : self.inputs].bfloat16()


def can_pack(weight: torch.Tensor) -> bool:
    """Whether the layouts hold it: inputs come in pairs."""
    return weight.dim() == 2 and weight.shape[1] % 2 == 0  # noqa: PLR2004


def pack(weight: torch.Tensor, bias: torch.Tensor | None, wanted: Format, empty: Empty = torch.empty) -> PackedWeight:
    """Pack ``weight`` ``[O, I]`` into memory from ``empty``.

    int8: a group of 64 inputs is ``scale * q``, ``-127 <= q <= 127``; int4: a group of 32 is ``scale * q + minimum``,
    ``0 <= q <= 15`` (llama.cpp's Q4_1), so that weights which were stored so come back as they were.
    """
    outputs, inputs = weight.shape
    weight = weight.detach()
    held = None if bias is None else bias.detach().to(torch.bfloat16).clone()
    rows = -outputs % _LANES
    if wanted is Format.BF16:
        numbers = _panels(F.pad(weight.to(torch.bfloat16), (0, 0, 0, rows)), 2, empty)
        return PackedWeight(wanted, outputs, inputs, numbers, bias=held)
    padded = F.pad(weight.float(), (0, -inputs % _INPUT_ALIGN, 0, rows))
    groups = padded.view(padded.shape[0], -1, _GROUPS[wanted])  # [O, G, group]
    if wanted is Format.INT8:
        scales = groups.abs().amax(-1) / 127
        q = (groups / scales.clamp_min(1e-30).unsqueeze(-1)).round_().clamp_(-127, 127)
        numbers = _panels((q + 128).to(torch.uint8).view(padded.shape), 4, empty)
        return PackedWeight(wanted, outputs, inputs, numbers, _by_lane(scales), bias=held)
    minima = groups.amin(-1).half()
    scales = ((groups.amax(-1) - minima.float()) / 15).half()
    q = (groups - minima.float().unsqueeze(-1)) / scales.float().clamp_min(1e-30).unsqueeze(-1)
    eights = q.round_().clamp_(0, 15).to(torch.uint8).view(padded.shape[0], -1, 2, 4)
    numbers = _panels((eights[:, :, 0] | eights[:, :, 1] << 4).view(padded.shape[0], -1), 4, empty)
    return PackedWeight(wanted, outputs, inputs, numbers, _by_lane(scales), _by_lane(minima), held)


def _padded(inputs: int) -> int:
    return -(-inputs // _INPUT_ALIGN) * _INPUT_ALIGN


def _panels(numbers: torch.Tensor, width: int, empty: Empty) -> torch.Tensor:
    """``[O, K]`` to ``[N, K / width, 16, width]``; ``width`` numbers have four bytes, and are moved as one word."""
    words = numbers.contiguous().view(torch.int32).view(-1, _LANES, numbers.shape[1] // width)
    panels = empty((words.shape[0], words.shape[2], _LANES, width), dtype=numbers.dtype)
    panels.view(torch.int32).squeeze(-1).copy_(words.transpose(1, 2))
    return panels


def _by_lane(values: torch.Tensor) -> torch.Tensor:
    """``[O, G]`` to ``[N, G, 16]``."""
    return values.view(-1, _LANES, values.shape[1]).transpose(1, 2).contiguous()


def _unpack(weight: PackedWeight) -> torch.Tensor:
    numbers = weight.numbers.transpose(1, 2)  # [N, 16, K / width, width]
    if weight.format is Format.BF16:
        return numbers.reshape(-1, weight.inputs)
    if weight.format is Format.INT4:
        numbers = torch.stack([numbers & 15, numbers >> 4], 3)
    assert weight.scales is not None  # noqa: S101 - quantized weights have them
    scales = weight.scales.float().transpose(1, 2).reshape(numbers.shape[0] * _LANES, -1, 1)
    groups = numbers.reshape(numbers.shape[0] * _LANES, -1, _GROUPS[weight.format]).float()
    if weight.minima is None:
        groups = (groups - 128) * scales
    else:
        groups = groups * scales + weight.minima.float().transpose(1, 2).reshape(scales.shape)
    return groups.flatten(1)
