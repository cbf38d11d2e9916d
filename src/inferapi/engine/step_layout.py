"""Where the tokens of one forward pass go in the cache, and which blocks they look at.

Made once a pass and device, used by every layer. ``T`` tokens of this step, ``E`` blocks, ``P`` tokens a block.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from inferapi.engine.kv_cache import BLOCK_TOKENS
from inferapi.engine.scheduler import Plan

# A view has up to 16 blocks as they are, then a multiple of 8: bf16 kernels for each number are kept, see packing.py.
# A few blocks too many cost a short request 10 % to 80 % of its attention.
_EXACT_BLOCKS, _BLOCK_STEP = 16, 8


@dataclass(frozen=True, slots=True)
class DecodeView:
    """Which blocks the decoding requests read. Either all blocks ``0..E`` in place, or ``gathered`` ones.

    ``owner`` ``[E]``: the request of a block, ``B`` where it has none.
    ``hidden`` ``[E, 1, 1, P]``: what its query must not see.
    """

    num_blocks: int
    gathered: torch.Tensor | None
    owner: torch.Tensor
    hidden: torch.Tensor


@dataclass(slots=True)
class StepLayout:
    """One plan, as tensors: ``write_blocks`` and ``write_offsets`` are ``[T]``. The pool has ``pool_blocks``."""

    plan: Plan
    device: torch.device
    pool_blocks: int
    write_blocks: torch.Tensor = field(init=False)
    write_offsets: torch.Tensor = field(init=False)
    _views: dict[int | None, DecodeView] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        blocks: list[int] = []
        offsets: list[int] = []
        for segment in self.plan.segments:
            for position in range(segment.start, segment.start + segment.length):
                blocks.append(segment.request.blocks[position // BLOCK_TOKENS])
                offsets.append(position % BLOCK_TOKENS)
        self.write_blocks = torch.tensor(blocks, device=self.device)
        self.write_offsets = torch.tensor(offsets, device=self.device)

    def decode_view(self, window_tokens: int | None) -> DecodeView:
        """The decodes' blocks, those wholly outside a sliding window left out."""
        view = self._views.get(window_tokens)
        if view is None:
            view = self._views[window_tokens] = self._make_view(window_tokens)
        return view

    def _make_view(self, window_tokens: int | None) -> DecodeView:
        entries: list[tuple[int, int, int, int]] = []  # block, owner, first and last visible offset
        for owner, segment in enumerate(self.plan.decodes):
            length = segment.start + 1
            first = max(length - window_tokens, 0) if window_tokens else 0
            for nth in range(first // BLOCK_TOKENS, (length - 1) // BLOCK_TOKENS + 1):
                base = nth * BLOCK_TOKENS
                entries.append((segment.request.blocks[nth], owner, first - base, length - 1 - base))
        in_place, num_blocks = (
            self._rounded(count) for count in (max(block for block, *_ in entries) + 1, len(entries))
        )
        gathered = None
        if in_place <= 2 * num_blocks:
            num_blocks = in_place
        else:  # sparse: copying what is needed costs less than reading past it
            spare = [entries[0][0]] * (num_blocks - len(entries))  # any block will do
            gathered = torch.tensor([block for block, *_ in entries] + spare, device=self.device)
            entries = [(index, *entry[1:]) for index, entry in enumerate(entries)]
        # A block of nobody belongs to one past the last request: what was left there reaches no answer.
        table = [(len(self.plan.decodes), 0, -1)] * num_blocks
        for block, *entry in entries:
            table[block] = (entry[0], entry[1], entry[2])
        owner_t, first_t, last_t = torch.tensor(table, device=self.device).unbind(1)
        offsets = torch.arange(BLOCK_TOKENS, device=self.device)
        visible = (offsets >= first_t[:, None]) & (offsets <= last_t[:, None])
        return DecodeView(num_blocks, gathered, owner_t, ~visible[:, None, None, :])

    def _rounded(self, num_blocks: int) -> int:
        """A multiple of the step, if more than a few; never more than there are."""
        if num_blocks <= _EXACT_BLOCKS:
            return num_blocks
        return min(-(-num_blocks // _BLOCK_STEP) * _BLOCK_STEP, self.pool_blocks)
