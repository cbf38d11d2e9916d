"""A histogram that takes many equal observations at once, for Prometheus."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate

from prometheus_client.core import HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector


class WeightedHistogram(Collector):
    """A family of histograms with one label.

    prometheus_client's own takes one observation a call. Tokens come by the thousand, and those of one step have all
    waited equally long. For one thread.

    Args:
        bounds: upper bounds of the buckets, ascending, without infinity.
    """

    def __init__(self, name: str, documentation: str, label: str, bounds: Sequence[float]) -> None:
        self._name, self._documentation, self._label = name, documentation, label
        self._bounds = tuple(bounds)
        self._told_bounds = (*(str(float(bound)) for bound in bounds), "+Inf")
        self._counts: dict[str, list[int]] = {}
        self._sums: dict[str, float] = {}

    def add(self, label: str) -> None:
        """Show it from now on, be it empty."""
        self._counts.setdefault(label, [0] * len(self._told_bounds))
        self._sums.setdefault(label, 0.0)

    def observe(self, label: str, value: float, times: int) -> None:
        """The same value so many times, of a label that was added."""
        self._counts[label][bisect_left(self._bounds, value)] += times
        self._sums[label] += value * times

    def collect(self) -> Iterable[Metric]:
        """See ``Collector``."""
        family = HistogramMetricFamily(self._name, self._documentation, labels=[self._label])
        for label, counts in self._counts.items():
            buckets = [*zip(self._told_bounds, map(float, accumulate(counts)), strict=True)]
            family.add_metric([label], buckets, self._sums[label])
        yield family
