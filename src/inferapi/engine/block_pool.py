"""Which KV blocks are free, taken and promised: pure bookkeeping, no tensors."""

from __future__ import annotations

import heapq
from collections.abc import Iterable


class BlockPool:
    """A fixed number of blocks of ``block_tokens`` tokens each.

    A request reserves the most it can ever need when it is admitted, so that a running request never
    waits for memory, and takes blocks one by one as it grows. The lowest free block is taken first:
    taken blocks stay dense at the start of the tensors, where attention reads them in place.
    """

    def __init__(self, num_blocks: int, block_tokens: int) -> None:
        self.num_blocks = num_blocks
        self.block_tokens = block_tokens
        self._free = list(range(num_blocks))
        self._reserved = 0

    def blocks_for(self, num_tokens: int) -> int:
        """How many blocks hold that many tokens."""
        return -(-num_tokens // self.block_tokens)

    @property
    def capacity_tokens(self) -> int:
        """Tokens that all blocks hold together."""
        return self.num_blocks * self.block_tokens

    @property
    def usage_ratio(self) -> float:
        """Reserved part of the pool, 0 to 1."""
        return self._reserved / self.num_blocks

    def reserve(self, num_blocks: int) -> bool:
        """Promise blocks; false, and nothing promised, when they are not there."""
        if self._reserved + num_blocks > self.num_blocks:
            return False
        self._reserved += num_blocks
        return True

    def take(self) -> int:
        """One block, out of what was reserved."""
        return heapq.heappop(self._free)

    def give_back(self, blocks: Iterable[int], *, reserved: int) -> None:
        """Return the taken blocks of a request and the whole of its reservation."""
        for block in blocks:
            heapq.heappush(self._free, block)
        self._reserved -= reserved
