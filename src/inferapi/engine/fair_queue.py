"""Who is next, of those who wait: owners take turns, so that one's flood is its own problem.

Fair queueing after Nagle (RFC 970, 1985): a queue for each owner, served in rotation, and when all of them together are
full, the longest gives way (McKenney, Stochastic Fairness Queueing, INFOCOM 1990, section 3). What is shared here is
slots and not packets, and they are kept for long; so the next one goes to the owner that has the fewest.
Pure Python: the tests drive it without a model.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, Protocol, TypeVar


class Owned(Protocol):
    """Something that waits, and whose it is."""

    @property
    def salt(self) -> str:
        """Its owner."""
        ...


T = TypeVar("T", bound=Owned)


class FairQueue(Generic[T]):
    """Waiting items by owner. Within an owner the first to come is the first to go.

    The next item is of the owner that holds the fewest slots; of several, of the one whose last turn was first. So
    while another owner waits with fewer slots than a flood has, the flood gets none; with as many, one at the most. And
    nobody waits for ever: an owner whose slots have all been given back is overtaken by each other one once at most.

    Memory is that of owners who wait or hold a slot. A turn costs a look at each owner that waits.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, deque[T]] = {}  # in order of their owners' turns; none is empty
        self._slots: Counter[str] = Counter()
        self._length = 0

    def __len__(self) -> int:
        """How many wait."""
        return self._length

    def __iter__(self) -> Iterator[T]:
        """Those who wait, owner by owner."""
        for items in self._waiting.values():
            yield from items

    def push(self, item: T) -> None:
        """Begin to wait, behind those of the same owner; an owner that was not waiting comes behind all others."""
        self._waiting.setdefault(item.salt, deque()).append(item)
        self._length += 1

    def head(self) -> T | None:
        """The next one; it stays until it is taken, and may be another one after a change."""
        if not self._waiting:
            return None
        owner = min(self._waiting, key=self._slots.__getitem__)  # of equals the first one
        return self._waiting[owner][0]

    def take(self) -> T:
        """Take the head out; its owner's turn is over.

        Raises:
            IndexError: nobody waits.
        """
        item = self.head()
        if item is None:
            raise IndexError("nobody waits")
        items = self._waiting.pop(item.salt)
        items.popleft()
        self._length -= 1
        if items:
            self._waiting[item.salt] = items  # behind all others
        return item

    def remove(self, item: T) -> None:
        """Take one out, wherever it is; its owner keeps its turn.

        Raises:
            ValueError: it does not wait.
        """
        items = self._waiting.get(item.salt)
        if items is None:
            raise ValueError("it does not wait")
        items.remove(item)
        self._length -= 1
        if not items:
            del self._waiting[item.salt]

    def hold(self, owner: str) -> None:
        """One of the owner's items has a slot from now on, until ``give_back``."""
        self._slots[owner] += 1

    def give_back(self, owner: str) -> None:
        """A slot of the owner's is free."""
        self._slots[owner] -= 1
        if not self._slots[owner]:
            del self._slots[owner]

    def gives_way_to(self, owner: str) -> T | None:
        """Who would have to go if one of ``owner`` came where there is no place: the last of the longest queue.

        ``None`` when the newcomer's own queue would be as long as that one: then it is the newcomer that goes.
        """
        if not self._waiting:
            return None
        longest = max(self._waiting.values(), key=len)
        return longest[-1] if len(longest) > len(self._waiting.get(owner, ())) + 1 else None


def in_fair_order(items: Iterable[T], size: Callable[[T], int]) -> list[T]:
    """In the order in which they would end if owners shared one server evenly, each with its smallest item first.

    That is by the sizes of an owner's items up to and with each: the finish numbers of Demers, Keshav and Shenker
    (SIGCOMM 1989, section 2.2), without a memory of what was served before. Of one owner, the smallest come first; of
    equals those that are given first.
    """
    asked: Counter[str] = Counter()
    ends: list[tuple[int, T]] = []
    for item in sorted(items, key=size):
        asked[item.salt] += size(item)
        ends.append((asked[item.salt], item))
    ends.sort(key=lambda end: end[0])
    return [item for _, item in ends]
