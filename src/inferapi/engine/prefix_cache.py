"""Which block holds which beginning of a prompt or an answer: digests and their order of use, no tensors.

After vLLM's automatic prefix caching (Kwon et al., SOSP 2023, section 4.4, and its documentation): a full block is
known by a digest of its tokens and of all that came before them.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence

_DIGEST_BYTES = 32


def salt_digest(salt: str) -> bytes:
    """Where a chain of digests begins: nothing is found by way of another salt."""
    return hashlib.blake2b(salt.encode(), digest_size=_DIGEST_BYTES, person=b"salt").digest()


def block_digest(parent: bytes, tokens: Sequence[int]) -> bytes:
    """What a full block of ``tokens`` is known by, after the block (or the salt) of the digest ``parent``.

    A cryptographic digest: two beginnings that were taken for one would show a client what another one said.
    """
    return hashlib.blake2b(parent + array("q", tokens).tobytes(), digest_size=_DIGEST_BYTES).digest()


class PrefixCache:
    """Blocks by digest, one block each. Those that no request holds are *idle*, and may be evicted."""

    def __init__(self) -> None:
        self._blocks: dict[bytes, int] = {}
        self._digests: dict[int, bytes] = {}
        self._idle: OrderedDict[bytes, None] = OrderedDict()  # least recently used first

    def block(self, digest: bytes) -> int | None:
        """Where what the digest names is to be found."""
        return self._blocks.get(digest)

    def knows(self, block: int) -> bool:
        """Whether the block is the one of a digest."""
        return block in self._digests

    def add(self, digest: bytes, block: int) -> None:
        """Know a block that a request holds; where the digest has a block already, that one stays."""
        if digest not in self._blocks:
            self._blocks[digest] = block
            self._digests[block] = digest

    def hold(self, block: int) -> None:
        """A request holds an idle block: it cannot be evicted."""
        del self._idle[self._digests[block]]

    def release(self, block: int) -> None:
        """Nobody holds the block any more: it was used just now."""
        self._idle[self._digests[block]] = None

    def touch(self, digest: bytes) -> None:
        """What the digest names was used just now, by a request that had a block of its own for it."""
        if digest in self._idle:
            self._idle.move_to_end(digest)

    def evict(self) -> int:
        """Forget the idle block that was used least recently.

        Raises:
            KeyError: there is none.
        """
        digest, _ = self._idle.popitem(last=False)
        block = self._blocks.pop(digest)
        del self._digests[block]
        return block

    def exchange(self, block: int, other: int) -> None:
        """What was in one block is in the other, and the other way round; either may be unknown."""
        digests = self._digests.pop(block, None), self._digests.pop(other, None)
        for digest, place in zip(digests, (other, block), strict=True):
            if digest is not None:
                self._blocks[digest] = place
                self._digests[place] = digest

    def clear(self) -> None:
        """Forget all blocks, those that requests hold too."""
        self._blocks.clear()
        self._digests.clear()
        self._idle.clear()
