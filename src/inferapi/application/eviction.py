"""Who makes room for a model: the fewest, and of those the cheapest to bring back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import TypeVar

T = TypeVar("T")

_MOST_COMBINATIONS_OF = 10
_SHORTEST_IDLE_S = 1.0


def cost(*, load_s: float, idle_s: float) -> float:
    """What evicting a model may cost: its load time, the less likely to be paid the longer nobody asked for it.

    The score of Lemonade's pressure eviction (idle time over load time), upside down so that costs add up.
    """
    return load_s / max(idle_s, _SHORTEST_IDLE_S)


def cheapest(
    candidates: Sequence[T], cost_of: Callable[[T], float], enough: Callable[[Sequence[T]], bool]
) -> tuple[T, ...] | None:
    """The smallest set of candidates whose going is ``enough``, the cheapest among sets of that size.

    ``None`` if not even all of them are enough. Beyond ten candidates the cheapest go one by one.
    """
    ordered = sorted(candidates, key=cost_of)
    if not enough(ordered):
        return None
    if len(ordered) > _MOST_COMBINATIONS_OF:
        return next(tuple(ordered[:size]) for size in range(len(ordered) + 1) if enough(ordered[:size]))
    for size in range(len(ordered) + 1):
        sets = sorted(combinations(ordered, size), key=lambda chosen: sum(map(cost_of, chosen)))
        for chosen in sets:
            if enough(chosen):
                return chosen
    raise AssertionError  # all of them were enough
