"""Which KV blocks are free, taken, promised and worth keeping: pure bookkeeping, no tensors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import zip_longest

from inferapi.engine.prefix_cache import PrefixCache

Moves = tuple[tuple[int, int], ...]
"""Blocks to copy, all at once: ``(source, target)`` each, no target twice. A target may be another one's source."""


class BlockPool:
    """A fixed number of blocks of ``block_tokens`` tokens each.

    A request reserves the most it can ever need when it is admitted, so that a running request never
    waits for memory, and takes blocks one by one as it grows. A block is *held* by one request or *vacant*.
    A vacant block is *idle* where its keys and values may serve a later prompt, else *blank*.

    Held blocks stay dense at the start of the tensors, where attention reads them in place: the lowest vacant
    block is taken first, as if nothing were idle. What is idle there is moved out of the way, to a blank block
    or over the idle one that was used least recently. What moved is told by ``collect_moves``.
    """

    def __init__(self, num_blocks: int, block_tokens: int) -> None:
        self.num_blocks = num_blocks
        self.block_tokens = block_tokens
        self._cache = PrefixCache()
        self._vacant = self._blank = (1 << num_blocks) - 1  # sets of blocks, a bit each
        self._reserved = 0
        self._moves: dict[int, int] = {}  # where what a block holds now was when moves were collected last

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

    @property
    def num_held(self) -> int:
        """Blocks that requests hold."""
        return self.num_blocks - self._vacant.bit_count()

    @property
    def num_idle(self) -> int:
        """Vacant blocks that may serve a later prompt."""
        return self._vacant.bit_count() - self._blank.bit_count()

    def reserve(self, num_blocks: int) -> bool:
        """Promise blocks; false, and nothing promised, when they are not there."""
        if self._reserved + num_blocks > self.num_blocks:
            return False
        self._reserved += num_blocks
        return True

    def take(self) -> int:
        """One block, out of what was reserved."""
        block = _lowest(self._vacant)
        if not self._blank >> block & 1:
            spare = _highest(self._blank) if self._blank else self._cache.evict()
            if spare != block:
                self._cache.exchange(block, spare)
                self._move(block, spare)
            self._blank &= ~(1 << spare)
        self._moves.pop(block, None)  # nothing that was moved here is wanted any more
        self._hold(block)
        return block

    def adopt(self, digests: Iterable[bytes]) -> list[int]:
        """Blocks with what the first digests name, as many as are known in a row, out of what was reserved.

        The request holds them alone: what another one holds is copied, what is idle far away is moved.
        """
        found: list[tuple[int, bool]] = []  # block, and whether another request holds it
        for digest in digests:
            block = self._cache.block(digest)
            if block is None:
                break
            found.append((block, not self._vacant >> block & 1))
        for block, is_held in found:
            if not is_held:
                self._cache.hold(block)
                self._hold(block)
        dense = self.num_held + sum(is_held for _, is_held in found)
        return [self._copy(block) if is_held else self._draw_near(block, dense) for block, is_held in found]

    def register(self, block: int, digest: bytes) -> None:
        """A held block is full: it holds what the digest names, from now on unchanged."""
        self._cache.add(digest, block)

    def give_back(self, blocks: Sequence[int], digests: Sequence[bytes] = (), *, reserved: int) -> None:
        """Return the blocks that a request held and the whole of its reservation.

        ``digests`` name what the first of the blocks hold: those are kept for later prompts, the others are blank.
        """
        # The last first: an end is worth nothing once its beginning was evicted.
        for block, digest in reversed(list(zip_longest(blocks, digests))):
            self._vacant |= 1 << block
            if digest is not None:
                self._cache.add(digest, block)
                self._cache.touch(digest)
            if self._cache.knows(block):
                self._cache.release(block)
            else:
                self._blank |= 1 << block
        self._reserved -= reserved

    def forget(self) -> None:
        """Nothing computed so far serves a later prompt; requests keep what they hold."""
        self._cache.clear()
        self._blank = self._vacant

    def collect_moves(self) -> Moves:
        """What is to be copied before any block is written that was handed out since the last call."""
        moves = tuple((source, target) for target, source in self._moves.items() if source != target)
        self._moves.clear()
        return moves

    def _hold(self, block: int) -> None:
        self._vacant &= ~(1 << block)
        self._blank &= ~(1 << block)

    def _move(self, source: int, target: int) -> None:
        self._moves[target] = self._moves.get(source, source)

    def _copy(self, block: int) -> int:
        target = self.take()
        self._move(block, target)
        return target

    def _draw_near(self, block: int, dense: int) -> int:
        """A held block below ``dense`` with what ``block`` holds; what is idle there changes places with it."""
        if block < dense:
            return block
        target = _lowest(self._vacant)
        is_blank = bool(self._blank >> target & 1)
        moves = self._moves
        moves[target], moves[block] = moves.get(block, block), moves.get(target, target)
        self._cache.exchange(block, target)
        self._hold(target)
        self._vacant |= 1 << block
        if is_blank:
            self._blank |= 1 << block
            del moves[block]
        return target


def _lowest(blocks: int) -> int:
    return (blocks & -blocks).bit_length() - 1


def _highest(blocks: int) -> int:
    return blocks.bit_length() - 1
