"""What earlier loads of a model taught about its memory."""

from __future__ import annotations

from collections.abc import Hashable

_WEIGHT = 0.5  # of the newest load: two agreeing loads outweigh one odd one
_LEAST = (
    0.9  # pages shared with another worker, or not yet written, are missing from a measurement: trust less only so far
)
_MOST = 2.0  # no architecture takes twice the estimate; a measurement that says so must not lock a model out for ever
_KEPT = 256


class Calibration:
    """Measured against estimated bytes, by what makes loads alike: name and commit, dtype, quantization, device.

    An exponentially weighted mean (Roberts 1959), from 0.9 to 2. The models met longest ago are forgotten first.
    """

    def __init__(self) -> None:
        self._ratios: dict[Hashable, float] = {}

    def ratio(self, key: Hashable) -> float:
        """What to multiply the next estimate with; 1 while nothing is known."""
        return self._ratios.get(key, 1.0)

    def learn(self, key: Hashable, estimated_bytes: int, measured_bytes: int) -> None:
        """Take in one load. Figures that are not positive teach nothing.

        Args:
            key: what makes loads alike.
            estimated_bytes: as it was estimated with this key's ``ratio``.
            measured_bytes: what the load took.
        """
        if estimated_bytes <= 0 or measured_bytes <= 0:
            return
        before = self.ratio(key)
        found = min(max(before * measured_bytes / estimated_bytes, _LEAST), _MOST)
        mean = found if key not in self._ratios else (1 - _WEIGHT) * before + _WEIGHT * found
        self._ratios.pop(key, None)
        self._ratios[key] = mean
        while len(self._ratios) > _KEPT:
            del self._ratios[next(iter(self._ratios))]
