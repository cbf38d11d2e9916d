"""Requests on a paged cache of the native kernels, every answer held against plain attention in float32."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch

from inferapi.domain.generation import SamplingParams
from inferapi.domain.model import LayerShape
from inferapi.engine.kv_cache import BLOCK_TOKENS, KvCache
from inferapi.engine.native.attention import NativeAttention
from inferapi.engine.native.calls import Attend, Call
from inferapi.engine.native.kernels import Kernels
from inferapi.engine.request import Request
from inferapi.engine.scheduler import Plan, Segment
from native_kernels import ChosenThreads, Guarded

MOST_TOKENS = 400


class Conversation:
    """Requests on one layer's cache, what they have written so far, and what attention should answer.

    The cache begins full of NaN, as an earlier request may have left it: whatever is read that was not written shows.
    """

    def __init__(
        self,
        compiled: Kernels,
        layer: LayerShape,
        group: int,
        *,
        threads: int = 1,
        num_requests: int = 4,
        seed: int = 0,
    ) -> None:
        self.kernels = ChosenThreads(compiled)
        self.kernels.most_threads = self.kernels.chosen = threads
        self.layer, self.group = layer, group
        self._random = torch.Generator().manual_seed(seed)
        blocks_each = MOST_TOKENS // BLOCK_TOKENS
        num_blocks = num_requests * blocks_each + 1
        self.cache = KvCache([layer], num_blocks, torch.bfloat16, [torch.device("cpu")])
        self._guarded = [
            Guarded((num_blocks, layer.kv_heads, BLOCK_TOKENS, dim)) for dim in (layer.key_dim, layer.value_dim)
        ]
        self.cache.keys[0], self.cache.values[0] = (memory.tensor.fill_(float("nan")) for memory in self._guarded)
        self.attention = NativeAttention(
            self.kernels, [layer], [layer.kv_heads * group], self.cache, num_requests * MOST_TOKENS
        )
        scratch = Guarded(self.attention._scratch.shape, torch.float32)
        self.attention._scratch = scratch.tensor
        self._guarded.append(scratch)
        self.kernels.redirect = self._guard_output
        blocks = list(range(num_blocks))
        random.Random(seed).shuffle(blocks)
        self.requests = []
        for number in range(num_requests):
            request = Request(number, [], 0, SamplingParams(), 0.0)
            request.blocks = [blocks.pop() for _ in range(blocks_each)]
            self.requests.append(request)
        self.seen = [torch.zeros(0, layer.kv_heads, layer.key_dim + layer.value_dim) for _ in self.requests]

    def _guard_output(self, call: Call, rows: int, alive: tuple[Any, ...]) -> None:
        """Make the call, an output of attention between guards."""
        memory = Guarded(alive[-1].shape)
        if isinstance(call, Attend):
            call.output = memory.tensor.data_ptr()
        self.kernels.library.run(self.kernels.library.list_of([call]), 1, rows, self.kernels.threads)
        assert memory.is_intact
        if isinstance(call, Attend):
            alive[-1].copy_(memory.tensor)

    def _randn(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self._random).bfloat16()

    def draw(self, num_tokens: int) -> torch.Tensor:
        """Projections of so many tokens, one after the other ``[T, (H*G + H) * Dk + H * Dv]``."""
        layer = self.layer
        return self._randn(num_tokens, layer.kv_heads * ((self.group + 1) * layer.key_dim + layer.value_dim))

    def step(self, lengths: Sequence[tuple[int, int]], projected: torch.Tensor | None = None) -> torch.Tensor:
        """Compute the next tokens of requests, ``(request, how many)``: ``[T, H*G, Dv]``, held against the expected."""
        layer = self.layer
        rows = sum(length for _, length in lengths)
        projected = self.draw(rows) if projected is None else projected
        widths = [layer.kv_heads * width for width in (self.group * layer.key_dim, layer.key_dim, layer.value_dim)]
        dims = (layer.key_dim, layer.key_dim, layer.value_dim)
        query, key, value = (
            part[None].unflatten(-1, (-1, dim)).transpose(1, 2)
            for part, dim in zip(projected.split(widths, -1), dims, strict=True)
        )
        segments = []
        expected = []
        begin = 0
        for number, length in lengths:
            start = len(self.seen[number])
            segments.append(Segment(self.requests[number], start, length))
            end = begin + length
            new = torch.cat([key[0, :, begin:end], value[0, :, begin:end]], -1).transpose(0, 1).float()
            self.seen[number] = torch.cat([self.seen[number], new])
            expected.append(self._expected(number, query[0, :, begin:end].float(), start))
            begin = end
        self.attention.tables.fill(Plan(tuple(segments), ()))
        result = self.attention(0, query, key, value, layer.key_dim**-0.5)[0]
        exact, spread = (torch.cat(parts) for parts in zip(*expected, strict=True))
        error = (result.float() - exact).abs()
        # Weights and the answer are rounded to bf16.
        assert bool((error <= 2**-7 * spread + 1e-5).all()), float((error / spread).nan_to_num(torch.inf).max())
        assert all(memory.is_intact for memory in self._guarded)
        return result

    def _expected(self, number: int, query: torch.Tensor, start: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The answer ``[T, H*G, Dv]``, and how large what is summed for it is."""
        layer = self.layer
        keys, values = self.seen[number].split([layer.key_dim, layer.value_dim], -1)
        keys, values = (part.repeat_interleave(self.group, 1).transpose(0, 1) for part in (keys, values))
        position = torch.arange(start, len(self.seen[number]))[:, None]
        other = torch.arange(len(self.seen[number]))[None]
        mask = other <= position
        if layer.window_tokens is not None:
            mask &= other > position - layer.window_tokens
        scores = (query @ keys.transpose(1, 2) * layer.key_dim**-0.5).masked_fill(~mask, -torch.inf)
        weights = scores.softmax(-1)
        return (weights @ values).transpose(0, 1), (weights @ values.abs()).transpose(0, 1)
