"""Modules that compute what modules of a model compute, by the native kernels, in bf16.

Each takes the place of a module, or several, of any architecture that has them; ``fusing.py`` finds the places and
holds each replacement against the original. Shapes: ``[*, T, I]`` in, ``[*, T, O]`` out.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import nn

from inferapi.engine.native.calls import Activation, Gated, Linear, Norm, Operation, Rotate
from inferapi.engine.native.formats import PackedWeight
from inferapi.engine.native.kernels import Kernels


class NativeLinear(nn.Module):
    """``nn.Linear`` on a packed weight."""

    def __init__(self, kernels: Kernels, packed: PackedWeight) -> None:
        super().__init__()
        self.in_features, self.out_features = packed.inputs, packed.outputs
        self.packed = packed
        self.bias = packed.bias
        self._kernels = kernels
        self._call = Linear(Operation.LINEAR, weight=packed.matrix)

    @property
    def weight(self) -> torch.Tensor:
        """The plain weight, for models that look at it; a copy."""
        return self.packed.plain()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Multiply."""
        if inputs.dtype is not torch.bfloat16:  # a router that computes in float32, say
            bias = None if self.bias is None else self.bias.to(inputs.dtype)
            return F.linear(inputs, self.weight.to(inputs.dtype), bias)
        inputs, rows, stride = _rows(inputs)
        outputs = inputs.new_empty((*inputs.shape[:-1], self.out_features))
        scratch = inputs.new_empty(self.packed.scratch_bytes(rows), dtype=torch.uint8)
        call = Linear.from_buffer_copy(self._call)
        call.input, call.input_stride = inputs.data_ptr(), stride
        call.output, call.output_stride = outputs.data_ptr(), self.out_features
        call.scratch = scratch.data_ptr()
        self._kernels.run(call, rows, self.packed, inputs, outputs, scratch)
        return outputs


class Fused(nn.Module):
    """Several linear layers of the same inputs as one product; its ``Part`` modules stand in their places."""

    def __init__(self, linear: NativeLinear, widths: list[int]) -> None:
        super().__init__()
        self.linear = linear
        self._widths = widths
        self._inputs: torch.Tensor | None = None
        self._outputs: tuple[torch.Tensor, ...] = ()

    def part(self, index: int, inputs: torch.Tensor) -> torch.Tensor:
        """Outputs of one of the layers. The first computes all; the last lets go of them."""
        if self._inputs is not inputs:
            self._inputs, self._outputs = inputs, self.linear(inputs).split(self._widths, -1)
        outputs = self._outputs[index]
        if index == len(self._widths) - 1:
            self._inputs, self._outputs = None, ()
        return outputs


class Part(nn.Module):
    """One of several fused layers."""

    def __init__(self, fused: Fused, index: int, out_features: int, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.fused, self._index = fused, index
        self.in_features, self.out_features = fused.linear.in_features, out_features
        self.bias = bias

    @property
    def weight(self) -> torch.Tensor:
        """The plain weight, for models that look at it; a copy."""
        widths = self.fused._widths  # noqa: SLF001 - the other half of the same thing
        start = sum(widths[: self._index])
        return self.fused.linear.weight[start : start + self.out_features]

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Multiply, all of them at once."""
        return self.fused.part(self._index, inputs)


class GatedMlp(nn.Module):
    """``down(activation(gate(x)) * up(x))`` in two calls."""

    def __init__(
        self, kernels: Kernels, gate: PackedWeight, up: PackedWeight, down: NativeLinear, act: Activation
    ) -> None:
        super().__init__()
        self.down_proj = down
        self._kernels = kernels
        self.packed = gate, up
        self._call = Gated(Operation.GATED, gate=gate.matrix, up=up.matrix, activation=act)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """The whole block."""
        inputs = inputs.to(torch.bfloat16)
        inputs, rows, stride = _rows(inputs)
        gate, _ = self.packed
        inner = inputs.new_empty((*inputs.shape[:-1], gate.outputs))
        scratch = inputs.new_empty(gate.scratch_bytes(rows), dtype=torch.uint8)
        call = Gated.from_buffer_copy(self._call)
        call.input, call.input_stride = inputs.data_ptr(), stride
        call.output, call.output_stride = inner.data_ptr(), gate.outputs
        call.scratch = scratch.data_ptr()
        self._kernels.run(call, rows, self.packed, inputs, inner, scratch)
        return self.down_proj(inner)  # type: ignore[no-any-return]


class NativeNorm(nn.Module):
    """A root mean square norm over the last dimension (Zhang & Sennrich 2019)."""

    def __init__(self, kernels: Kernels, original: nn.Module, epsilon: float, offset: float) -> None:
        super().__init__()
        self.original = original
        self.variance_epsilon = epsilon
        self._kernels = kernels
        self._offset = offset

    @property
    def weight(self) -> torch.Tensor:
        """The original's."""
        return self.original.weight  # type: ignore[return-value]  # nn.Module types every attribute as either

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """``[1, T, I]``, or a vector for each head: ``[1, T, H, I]``; what is not bf16 goes to the original."""
        if inputs.dtype is not torch.bfloat16:
            return self.original(inputs)  # type: ignore[no-any-return]
        if inputs.dim() == 4 and inputs.shape[0] == 1:  # noqa: PLR2004
            if inputs.stride(1) < inputs.stride(2):  # heads first, as they are seen; tokens first, as they lie
                return self.forward(inputs.transpose(1, 2)).transpose(1, 2)
            inputs = inputs if inputs.stride(-1) == 1 else inputs.contiguous()
            rows, repeat, row_stride, repeat_stride = *inputs.shape[1:3], *inputs.stride()[1:3]
        else:
            inputs, rows, row_stride = _rows(inputs)
            repeat, repeat_stride = 1, 0
        outputs = torch.empty_like(inputs, memory_format=torch.contiguous_format)
        call = Norm(
            Operation.NORM,
            inputs.data_ptr(),
            row_stride,
            repeat_stride,
            outputs.data_ptr(),
            self.weight.data_ptr(),
            repeat,
            inputs.shape[-1],
            self.variance_epsilon,
            self._offset,
        )
        self._kernels.run(call, rows, inputs, outputs)
        return outputs


class NativeRotary:
    """transformers' ``apply_rotary_pos_emb``, for whole heads whose halves turn against each other."""

    def __init__(self, kernels: Kernels, original: Any) -> None:
        self._kernels = kernels
        self.original = original

    def __call__(
        self, q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``q`` and ``k`` ``[1, H, T, D]``, ``cos`` and ``sin`` ``[1, T, D]``; anything else goes to the original."""
        if args or kwargs or not self._takes(q, k, cos, sin):
            rotated: tuple[torch.Tensor, torch.Tensor] = self.original(q, k, cos, sin, *args, **kwargs)
            return rotated
        _, heads, rows, dim = q.shape
        queries = q.new_empty((1, rows, heads, dim))
        keys = k.new_empty((1, rows, k.shape[1], dim))
        call = Rotate(
            Operation.ROTATE,
            q.data_ptr(),
            k.data_ptr(),
            cos.data_ptr(),
            sin.data_ptr(),
            q.stride(2),
            q.stride(1),
            k.stride(2),
            k.stride(1),
            cos.stride(1),
            queries.data_ptr(),
            keys.data_ptr(),
            heads,
            k.shape[1],
            dim,
        )
        self._kernels.run(call, rows, q, k, cos, sin, queries, keys)
        return queries.transpose(1, 2), keys.transpose(1, 2)

    @staticmethod
    def _takes(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> bool:
        return (
            all(tensor.dtype is torch.bfloat16 and tensor.stride(-1) == 1 for tensor in (q, k, cos, sin))
            and q.dim() == 4  # noqa: PLR2004
            and q.shape[0] == 1
            and cos.dim() == 3  # noqa: PLR2004
            and cos.shape == sin.shape == (1, q.shape[2], q.shape[3])
            and cos.stride() == sin.stride()
            and k.shape[2:] == q.shape[2:]
        )


class SharedEmbedding(nn.Module):
    """An embedding that reads the packed weight of the output layer that it is tied to."""

    def __init__(self, packed: PackedWeight) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = packed.outputs, packed.inputs
        self._packed = packed

    @property
    def weight(self) -> torch.Tensor:
        """The plain weight, for models that look at it; a copy."""
        return self._packed.plain()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """``[*]`` to ``[*, I]``."""
        lanes = self._packed.numbers.shape[2]
        panels = self._packed.numbers.transpose(1, 2)  # [N, 16, I / 2, 2]
        return panels[ids // lanes, ids % lanes].flatten(-2)


def _rows(inputs: torch.Tensor) -> tuple[torch.Tensor, int, int]:
    """Vectors that lie at equal distances: how many there are, and how far apart."""
    if inputs.stride(-1) != 1 or any(size > 1 for size in inputs.shape[:-2]):
        inputs = inputs.contiguous()
    rows = inputs.numel() // inputs.shape[-1]
    return inputs, rows, inputs.stride(-2) if inputs.dim() > 1 else inputs.shape[-1]
