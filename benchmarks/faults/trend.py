"""Does something grow? A least-squares line through samples, and how sure its slope is."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

LEAST_SAMPLES = 5
_LEAST_FREEDOM = 3.0  # where the quantile below is right within 1 %


@dataclass(frozen=True, slots=True)
class Trend:
    """A line through samples.

    Attributes:
        slope: of the line, in units of the samples a second.
        margin: half of the 95 % confidence interval of the slope; infinite where the samples tell nothing.
        samples: how many there were.
        independent: how many independent ones they are worth.
        first, last: the line's values at the first and the last sample.
    """

    slope: float
    margin: float
    samples: int
    independent: float
    first: float
    last: float

    @property
    def may_be_flat(self) -> bool:
        """Whether the interval holds a slope of zero."""
        return abs(self.slope) <= self.margin


def fit(times_s: Sequence[float], values: Sequence[float]) -> Trend:
    """The least-squares line.

    Samples of memory hang together: what was high a moment ago still is. Counted as independent they would make the
    interval too narrow. So their number is reduced by the correlation of neighbouring residuals, r:
    n (1 - r) / (1 + r), as in Santer et al., "Statistical significance of trends and trend differences in
    layer-average atmospheric temperature time series", J. Geophys. Res. 105 (2000), section 4.

    Raises:
        ValueError: there are too few samples, or all of one moment.
    """
    count = len(times_s)
    if count < LEAST_SAMPLES:
        raise ValueError(f"{count} samples make no trend")
    slope, intercept = statistics.linear_regression(times_s, values)
    rounding = 1e-12 * max(map(abs, values))  # what is left of an exact line is no noise, and hangs together
    residuals = [value - intercept - slope * time_s for time_s, value in zip(times_s, values, strict=True)]
    residuals = [residual if abs(residual) > rounding else 0.0 for residual in residuals]
    squares = math.fsum(residual * residual for residual in residuals)
    spread = math.fsum((time_s - statistics.fmean(times_s)) ** 2 for time_s in times_s)
    independent = _independent(residuals, squares)
    margin = math.inf
    freedom = independent - 2
    if freedom >= _LEAST_FREEDOM:
        margin = student_t(0.975, freedom) * math.sqrt(squares / freedom / spread)
    ends = (intercept + slope * times_s[place] for place in (0, -1))
    return Trend(slope, margin, count, independent, *ends)


def _independent(residuals: Sequence[float], squares: float) -> float:
    if squares == 0:
        return float(len(residuals))
    neighbours = math.fsum(before * after for before, after in itertools.pairwise(residuals))
    correlation = max(neighbours / squares, 0.0)  # samples that avoid each other are not worth more than they are
    return len(residuals) * (1 - correlation) / (1 + correlation)


def student_t(probability: float, freedom: float) -> float:
    """The quantile of Student's t distribution: Abramowitz and Stegun, 26.7.5; within 1 % from 3 degrees of freedom on.

    ``freedom`` need not be a whole number.
    """
    z, v = statistics.NormalDist().inv_cdf(probability), freedom
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    )
