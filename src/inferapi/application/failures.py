"""Loads that failed: requests do not try again and again what fails again and again."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from inferapi.application.policy import ModelKey
from inferapi.domain.errors import InferapiError
from inferapi.domain.ports import Clock

_KEPT = 256  # requests choose names, so their number must have an end
_LONGEST_S = 60.0
_MOST_DOUBLINGS = 10  # far beyond the longest, and no float overflows


@dataclass(frozen=True, slots=True)
class _Failure:
    error: InferapiError
    in_a_row: int
    retry_at_s: float


class Failures:
    """After one failure the next request tries again at once; after n of them only 2^(n-2) s later."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._by_key: OrderedDict[ModelKey, _Failure] = OrderedDict()

    def __contains__(self, key: ModelKey) -> bool:
        """Whether its last load failed."""
        return key in self._by_key

    def note(self, key: ModelKey, error: InferapiError) -> None:
        """It failed."""
        last = self._by_key.pop(key, None)
        in_a_row = last.in_a_row + 1 if last else 1
        delay_s = min(2.0 ** min(in_a_row - 2, _MOST_DOUBLINGS), _LONGEST_S) if in_a_row > 1 else 0.0
        self._by_key[key] = _Failure(error.again(), in_a_row, self._clock.monotonic_s() + delay_s)
        if len(self._by_key) > _KEPT:
            self._by_key.popitem(last=False)

    def forget(self, key: ModelKey) -> None:
        """It worked."""
        self._by_key.pop(key, None)

    def standing(self, key: ModelKey) -> InferapiError | None:
        """What the last try said, while it is too early for another."""
        failure = self._by_key.get(key)
        return failure.error.again() if failure and self._clock.monotonic_s() < failure.retry_at_s else None
