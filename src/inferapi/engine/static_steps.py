"""Steps of decodes as numbers in one tensor, in few sizes: what a CUDA graph needs to be used again.

The numbers are each row's token, position and place in the cache, then for each sliding window of the model the blocks
that attention reads. Sizes are rounded up: rows to those in ``ROWS``, blocks to powers of two and the halves between
them. Rows that are filled up compute token 0 at position 0, read no block, and leave their keys and values in a
scratch block, the last of the cache, which nobody is given.

Shapes: ``R`` rows, ``E`` blocks of a view.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from inferapi.domain.generation import SamplingParams
from inferapi.engine.kv_cache import BLOCK_TOKENS
from inferapi.engine.request import Request
from inferapi.engine.scheduler import Plan, Segment
from inferapi.engine.step_layout import DecodeView

ROWS = (1, 2, 4, 8, 16, 32, 64)
_ROW_NUMBERS = 4  # of a row: token, position, and the block and offset that its keys and values go to
_NOBODY = Segment(Request(-1, [0], 1, SamplingParams(), 0.0), 0, 1)

Numbers = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, slots=True)
class Size:
    """What one graph is for: ``R`` rows, and for each of the model's windows ``E``, and whether they are gathered."""

    rows: int
    views: tuple[tuple[int, bool], ...]


@dataclass(frozen=True, slots=True)
class StaticStep:
    """Stands where attention looks for a ``StepLayout``; all of it follows from one tensor of numbers."""

    plan: Plan  # of nobody: how many decodes there are is all that attention asks it
    write_blocks: torch.Tensor
    write_offsets: torch.Tensor
    views: dict[int | None, DecodeView]

    def decode_view(self, window_tokens: int | None) -> DecodeView:
        """The blocks that the decoding requests read."""
        return self.views[window_tokens]


def static_step(
    size: Size, inputs: torch.Tensor, windows_tokens: Sequence[int | None]
) -> tuple[torch.Tensor, torch.Tensor, StaticStep]:
    """Tokens and positions, ``[R]`` each, and what attention looks for: computed from the numbers in ``inputs``."""
    lengths = [_ROW_NUMBERS * size.rows, *((3 + is_gathered) * blocks for blocks, is_gathered in size.views)]
    row_numbers, *view_numbers = inputs.split(lengths)
    tokens, positions, write_blocks, write_offsets = row_numbers.view(_ROW_NUMBERS, size.rows).unbind()
    views = {
        window_tokens: _view(numbers.view(-1, blocks), is_gathered=is_gathered)
        for window_tokens, numbers, (blocks, is_gathered) in zip(windows_tokens, view_numbers, size.views, strict=True)
    }
    return tokens, positions, StaticStep(Plan((_NOBODY,) * size.rows, ()), write_blocks, write_offsets, views)


def step_numbers(
    decodes: Sequence[Segment], windows_tokens: Sequence[int | None], num_blocks: int
) -> tuple[Size, Numbers]:
    """A step as the numbers that its graph reads: those of the rows, then those of each window's view."""
    rows = next(rows for rows in ROWS if rows >= len(decodes))
    row_numbers = np.zeros((_ROW_NUMBERS, rows), dtype=np.int64)
    row_numbers[2] = num_blocks - 1  # the scratch block
    for row, segment in enumerate(decodes):
        block, offset = divmod(segment.start, BLOCK_TOKENS)
        request = segment.request
        row_numbers[:, row] = request.tokens[segment.start], segment.start, request.blocks[block], offset
    tables, views = [row_numbers.ravel()], []
    for window_tokens in windows_tokens:
        table, is_gathered = _view_numbers(decodes, window_tokens, rows, num_blocks)
        tables.append(table.ravel())
        views.append((table.shape[1], is_gathered))
    return Size(rows, tuple(views)), np.concatenate(tables)


def rounded_blocks(num_blocks: int) -> int:
    """The next of 1, 2, 3, 4, 6, 8, 12, 16, 24 and so on: at most half as much again, and two sizes an octave."""
    power = 1 << (num_blocks - 1).bit_length()
    halfway = power * 3 // 4
    return halfway if num_blocks <= halfway else power


def _view_numbers(
    decodes: Sequence[Segment], window_tokens: int | None, rows: int, num_blocks: int
) -> tuple[Numbers, bool]:
    """A ``DecodeView`` as numbers ``[3 or 4, E]``: owner, first and last visible offset, and the block if gathered."""
    seen: list[tuple[int, int, int, int]] = []
    for owner, segment in enumerate(decodes):
        last = segment.start
        first = max(last + 1 - window_tokens, 0) if window_tokens else 0
        for nth in range(first // BLOCK_TOKENS, last // BLOCK_TOKENS + 1):
            base = nth * BLOCK_TOKENS
            seen.append((owner, first - base, last - base, segment.request.blocks[nth]))
    numbers = np.asarray(seen, dtype=np.int64).T
    blocks = numbers[3]
    in_place = min(rounded_blocks(int(blocks.max()) + 1), num_blocks)
    gathered = rounded_blocks(len(seen))
    is_gathered = in_place > 2 * gathered  # copying what is needed costs less than reading past it
    table = np.empty((3 + is_gathered, gathered if is_gathered else in_place), dtype=np.int64)
    table[:3] = [[rows], [0], [-1]]  # nobody's: the owner is one past the last row, and nothing is visible
    if is_gathered:
        table[3] = blocks[0]  # any block will do
        table[:, : len(seen)] = numbers
    else:
        table[:, blocks] = numbers[:3]
    return table, is_gathered


def _view(numbers: torch.Tensor, *, is_gathered: bool) -> DecodeView:
    owner, first, last = numbers[:3]
    offsets = torch.arange(BLOCK_TOKENS, device=numbers.device)
    visible = (offsets >= first[:, None]) & (offsets <= last[:, None])
    return DecodeView(numbers.shape[1], numbers[3] if is_gathered else None, owner, ~visible[:, None, None, :])
