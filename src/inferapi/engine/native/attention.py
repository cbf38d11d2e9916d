"""Paged attention of one step by the native kernels, decodes and prompts alike.

Shapes: ``T`` tokens of this step, ``H`` key-value heads, ``G`` query heads a key-value head, ``D`` head dim.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from inferapi.domain.model import LayerShape
from inferapi.engine.kv_cache import BLOCK_TOKENS, KvCache
from inferapi.engine.native.calls import Attend, Operation, Write
from inferapi.engine.native.kernels import Kernels
from inferapi.engine.scheduler import Plan

_LANES, _MOST_DIM = 16, 256
_TILE_ROWS = 48  # attention.cpp: tokens times query heads that are computed together


class StepTables:
    """One plan in fixed memory, which calls that are repeated point to.

    For each token where its keys and values go, and which of its request's tokens it sees. ``table`` holds the blocks
    of all requests one after the other; a token's begin at ``starts``. Tokens are computed in ``tiles`` of one request.
    """

    def __init__(self, max_tokens: int, num_blocks: int, windows: Collection[int | None], tile_tokens: int) -> None:
        def numbers(count: int) -> torch.Tensor:
            return torch.zeros(count, dtype=torch.int32)

        self._tile_tokens = tile_tokens
        self.blocks, self.offsets = numbers(max_tokens), numbers(max_tokens)
        self.table, self.starts, self.lengths = numbers(num_blocks), numbers(max_tokens), numbers(max_tokens)
        self.firsts = {window: numbers(max_tokens) for window in windows}
        self.tiles, self.tile_count = numbers(max_tokens + 1), torch.zeros(1, dtype=torch.int64)

    def fill(self, plan: Plan) -> None:
        """Set all of it for the next pass."""
        blocks: list[int] = []
        offsets: list[int] = []
        table: list[int] = []
        starts: list[int] = []
        lengths: list[int] = []
        tiles: list[int] = []
        for segment in plan.segments:
            begin, end = segment.start, segment.start + segment.length
            mine = segment.request.blocks
            tiles += range(len(blocks), len(blocks) + segment.length, self._tile_tokens)
            blocks += [mine[position // BLOCK_TOKENS] for position in range(begin, end)]
            offsets += [position % BLOCK_TOKENS for position in range(begin, end)]
            starts += [len(table)] * segment.length
            lengths += range(begin + 1, end + 1)
            table += mine[: -(-end // BLOCK_TOKENS)]
        self.tile_count.fill_(len(tiles))
        tiles.append(len(blocks))
        for target, source in (
            (self.blocks, blocks),
            (self.offsets, offsets),
            (self.table, table),
            (self.starts, starts),
            (self.lengths, lengths),
            (self.tiles, tiles),
        ):
            target[: len(source)] = torch.tensor(source, dtype=torch.int32)
        for window, firsts in self.firsts.items():
            if window is not None:
                torch.clamp(self.lengths[: len(lengths)] - window, min=0, out=firsts[: len(lengths)])


class NativeAttention:
    """Writes the cache and attends, layer by layer, for the plan that the tables were filled with."""

    def __init__(
        self,
        kernels: Kernels,
        layers: Sequence[LayerShape],
        query_heads: Sequence[int],
        cache: KvCache,
        max_tokens: int,
    ) -> None:
        self._kernels = kernels
        self._cache = cache
        self._layers = layers
        group = max(heads // layer.kv_heads for heads, layer in zip(query_heads, layers, strict=True))
        windows = {layer.window_tokens for layer in layers}
        self.tables = StepTables(max_tokens, cache.num_blocks, windows, max(_TILE_ROWS // group, 1))
        values = max(layer.value_dim for layer in layers)
        self._scratch_floats = _TILE_ROWS * (BLOCK_TOKENS + values + 2 + BLOCK_TOKENS // 2)
        self._scratch = torch.empty(kernels.most_threads * self._scratch_floats)

    def __call__(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """``query`` ``[1, H*G, T, D]``, ``key`` and ``value`` ``[1, H, T, D]`` to ``[1, T, H*G, D]``."""
        query, key, value = (_with_dense_heads(tensor) for tensor in (query, key, value))
        shape, tables = self._layers[layer], self.tables
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        rows = query.shape[2]
        self._kernels.run(
            Write(
                Operation.WRITE,
                key.data_ptr(),
                value.data_ptr(),
                key.stride(2),
                key.stride(1),
                value.stride(2),
                value.stride(1),
                keys.data_ptr(),
                values.data_ptr(),
                tables.blocks.data_ptr(),
                tables.offsets.data_ptr(),
                shape.kv_heads,
                shape.key_dim,
                shape.value_dim,
                BLOCK_TOKENS,
            ),
            rows,
            key,
            value,
        )
        heads = query.shape[1]
        output = query.new_empty((1, rows, heads, shape.value_dim))
        self._kernels.run(
            Attend(
                Operation.ATTEND,
                query.data_ptr(),
                query.stride(2),
                query.stride(1),
                output.data_ptr(),
                keys.data_ptr(),
                values.data_ptr(),
                tables.table.data_ptr(),
                tables.starts.data_ptr(),
                tables.firsts[shape.window_tokens].data_ptr(),
                tables.lengths.data_ptr(),
                tables.tiles.data_ptr(),
                tables.tile_count.data_ptr(),
                shape.kv_heads,
                heads // shape.kv_heads,
                shape.key_dim,
                shape.value_dim,
                scale,
                self._scratch.data_ptr(),
                self._scratch_floats,
            ),
            rows,
            query,
            output,
        )
        return output


def can_attend(layers: Sequence[LayerShape], query_heads: Sequence[int], dtype: torch.dtype) -> bool:
    """Whether the kernels are made for such heads."""
    return dtype is torch.bfloat16 and all(
        layer.key_dim % 2 == 0
        and layer.value_dim % _LANES == 0
        and layer.value_dim <= _MOST_DIM
        and heads // layer.kv_heads <= _TILE_ROWS
        for layer, heads in zip(layers, query_heads, strict=True)
    )


def _with_dense_heads(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
