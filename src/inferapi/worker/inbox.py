"""What one thread asks of another: handed over in turns of owners, so that a flood of one delays nobody else."""

from __future__ import annotations

import threading
from typing import Generic, TypeVar

from inferapi.engine.fair_queue import FairQueue, Owned

T = TypeVar("T", bound=Owned)


class FairInbox(Generic[T]):
    """A ``FairQueue`` between threads."""

    def __init__(self) -> None:
        self._waiting: FairQueue[T] = FairQueue()
        self._filled = threading.Condition()

    def put(self, item: T) -> None:
        """Add to it."""
        with self._filled:
            self._waiting.push(item)
            self._filled.notify()

    def get(self) -> T:
        """Whose turn it is; waits for one."""
        with self._filled:
            while not self._waiting:
                self._filled.wait()
            return self._waiting.take()

    def displaced_by(self, owner: str) -> T | None:
        """Take out the one that gives way to a newcomer of ``owner``, if one does; see ``FairQueue.gives_way_to``."""
        with self._filled:
            item = self._waiting.gives_way_to(owner)
            if item is not None:
                self._waiting.remove(item)
            return item
