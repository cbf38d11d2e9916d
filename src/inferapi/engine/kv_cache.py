"""Keys and values of every running request, in blocks.

Paged after vLLM (Kwon et al., SOSP 2023, section 4): a request's tokens lie in blocks that are handed out
as it grows. Unlike there, attention needs no kernel of its own: see ``attention.py``.

Shapes: ``N`` blocks, ``P`` tokens a block, ``H`` key-value heads, ``D`` head dim, ``T`` tokens of this step.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence

import torch

from inferapi.domain.model import KV_BLOCK_TOKENS, LayerShape

BLOCK_TOKENS = KV_BLOCK_TOKENS


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros that, on the CPU, take no memory until they are written.

    ``torch.zeros`` touches every page; an anonymous mapping is zero for free, and the operating system
    counts only the blocks that requests really use.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    num_elements = int(torch.Size(shape).numel())
    return torch.frombuffer(mmap.mmap(-1, num_elements * dtype.itemsize), dtype=dtype).view(shape)


class KvCache:
    """``keys[layer]`` and ``values[layer]``, each ``[N, H, P, D]``."""

    def __init__(
        self,
        layers: Sequence[LayerShape],
        num_blocks: int,
        dtype: torch.dtype,
        devices: Sequence[torch.device],
    ) -> None:
        self.num_blocks = num_blocks
        self.keys = [
            _zeros((num_blocks, layer.kv_heads, BLOCK_TOKENS, layer.key_dim), dtype, device)
            for layer, device in zip(layers, devices, strict=True)
        ]
        self.values = [
            _zeros((num_blocks, layer.kv_heads, BLOCK_TOKENS, layer.value_dim), dtype, device)
            for layer, device in zip(layers, devices, strict=True)
        ]
        self._used = torch.zeros(num_blocks, dtype=torch.bool)

    def write(
        self, layer: int, keys: torch.Tensor, values: torch.Tensor, blocks: torch.Tensor, offsets: torch.Tensor
    ) -> None:
        """Store this step's ``keys`` and ``values`` ``[T, H, D]`` at ``(blocks[t], offsets[t])``."""
        self.keys[layer][blocks, :, offsets] = keys
        self.values[layer][blocks, :, offsets] = values

    def move(self, moves: Sequence[tuple[int, int]]) -> None:
        """Copy whole blocks, ``(source, target)`` each, as if all at once: a target may be another one's source."""
        self._used[[target for _, target in moves]] = True
        devices = {tensor.device for tensor in self.keys}
        blocks = {device: torch.tensor(moves, device=device).unbind(1) for device in devices}
        for tensor in (*self.keys, *self.values):
            sources, targets = blocks[tensor.device]
            tensor.index_copy_(0, targets, tensor.index_select(0, sources))

    def clean(self, blocks: Sequence[int]) -> None:
        """Zero blocks that an earlier request left something in.

        Attention gives masked places the weight 0; a NaN or infinity there, left by another request,
        would still spoil the sum.
        """
        stale = [block for block in blocks if self._used[block]]
        self._used[list(blocks)] = True
        if stale:
            index = torch.tensor(stale)
            for tensor in (*self.keys, *self.values):
                tensor.index_fill_(0, index.to(tensor.device), 0)
