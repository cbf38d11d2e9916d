"""How much one API key may ask: requests in any minute, and requests under way at once."""

from __future__ import annotations

import math
from array import array
from collections import Counter

from inferapi.domain.errors import ConcurrencyLimitExceeded, RateLimitExceeded
from inferapi.domain.ports import Clock

_MINUTE_S = 60.0


class _Window:
    """When the last ``most`` requests of a key were let in, the oldest of them at ``place``: 8 bytes each.

    The one to come is the ``most + 1``st of a minute exactly when the oldest is younger than that.
    """

    __slots__ = ("_let_in_s", "_place")

    def __init__(self, most: int) -> None:
        self._let_in_s = array("d", [-math.inf]) * most
        self._place = 0

    def wait_s(self, now_s: float) -> float:
        """How long until another one may come; not above 0 when it may come now."""
        return _MINUTE_S - (now_s - self._let_in_s[self._place])

    def let_in(self, now_s: float) -> None:
        self._let_in_s[self._place] = now_s
        self._place = (self._place + 1) % len(self._let_in_s)


class KeyLimits:
    """Counts the requests of each key, and refuses those beyond what one key may ask.

    A sliding window, not one that begins anew at full minutes: no 60 s have more requests than the limit, wherever they
    begin. A refused request is not counted. Keys are those of the settings, so there are as many windows at the most.

    Args:
        requests_per_minute: of one key; ``None`` for any number.
        max_concurrency: requests of one key under way at once; ``None`` for any number.
    """

    def __init__(
        self, clock: Clock, *, requests_per_minute: int | None = None, max_concurrency: int | None = None
    ) -> None:
        self._clock = clock
        self._requests_per_minute = requests_per_minute
        self._max_concurrency = max_concurrency
        self._windows: dict[str, _Window] = {}
        self._under_way: Counter[str] = Counter()

    def count(self, key_id: str) -> None:
        """Count a request that is over at once.

        Raises:
            RateLimitExceeded: the key had its requests of this minute.
        """
        most = self._requests_per_minute
        if most is None:
            return
        window = self._windows.get(key_id)
        if window is None:
            window = self._windows[key_id] = _Window(most)
        now_s = self._clock.monotonic_s()
        wait_s = window.wait_s(now_s)
        if wait_s > 0:
            raise RateLimitExceeded(requests_per_minute=most, retry_after_s=math.ceil(wait_s))
        window.let_in(now_s)

    def begin(self, key_id: str) -> None:
        """Count a request that is under way until ``end`` is called for it, once.

        Raises:
            ConcurrencyLimitExceeded: the key has too many under way; this one counts nowhere.
            RateLimitExceeded: as ``count``; there is nothing to end.
        """
        most = self._max_concurrency
        if most is not None and self._under_way[key_id] >= most:
            raise ConcurrencyLimitExceeded(max_concurrency=most)
        self.count(key_id)
        self._under_way[key_id] += 1

    def end(self, key_id: str) -> None:
        """A request that was begun is over, whatever became of it."""
        self._under_way[key_id] -= 1
        if not self._under_way[key_id]:
            del self._under_way[key_id]

    def under_way(self, key_id: str) -> int:
        """Requests of a key that have begun and not ended."""
        return self._under_way.get(key_id, 0)
