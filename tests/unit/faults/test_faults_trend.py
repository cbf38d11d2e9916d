"""The line through samples: its slope, how sure it is, and that samples that hang together count for less."""

from __future__ import annotations

import math
import random

import pytest
from benchmarks.faults.trend import fit, student_t

HOUR = [float(second) for second in range(0, 3600, 10)]


def noise(seed: int, carry: float) -> list[float]:
    """Normal noise of which each sample keeps so much of the one before."""
    source, value, made = random.Random(seed), 0.0, []
    for _ in HOUR:
        value = carry * value + source.gauss(0.0, 1.0)
        made.append(value)
    return made


@pytest.mark.parametrize(
    ("freedom", "value"), [(3, 3.182), (4, 2.776), (5, 2.571), (10, 2.228), (30, 2.042), (100, 1.984), (1e9, 1.960)]
)
def test_quantiles_are_those_of_the_tables(freedom, value):
    assert student_t(0.975, freedom) == pytest.approx(value, rel=0.01)


def test_a_line_is_found_as_it_is():
    trend = fit(HOUR, [100 + 0.5 * time_s for time_s in HOUR])
    assert trend.slope == pytest.approx(0.5)
    assert (trend.first, trend.last) == pytest.approx((100, 100 + 0.5 * HOUR[-1]))
    assert trend.margin == pytest.approx(0, abs=1e-6)
    assert not trend.may_be_flat


def test_a_constant_may_be_flat():
    trend = fit(HOUR, [7.0] * len(HOUR))
    assert (trend.slope, trend.may_be_flat, trend.independent) == (0, True, len(HOUR))


def test_the_interval_of_independent_noise_holds_the_slope_about_as_often_as_it_says():
    held = [abs(trend.slope) <= trend.margin for trend in (fit(HOUR, noise(seed, 0.0)) for seed in range(400))]
    assert 0.92 <= sum(held) / len(held) <= 0.98


def test_samples_that_hang_together_are_worth_less_and_the_interval_still_holds():
    trends = [fit(HOUR, noise(seed, 0.9)) for seed in range(400)]
    assert all(trend.independent < len(HOUR) / 4 for trend in trends)
    assert sum(abs(trend.slope) <= trend.margin for trend in trends) / len(trends) >= 0.88


def test_a_leak_shows_in_noise_that_hangs_together():
    leak = 0.01  # a second
    values = [value + leak * time_s for value, time_s in zip(noise(1, 0.9), HOUR, strict=True)]
    trend = fit(HOUR, values)
    assert not trend.may_be_flat
    assert abs(trend.slope - leak) < trend.margin


def test_residuals_that_are_one_long_wave_tell_nothing():
    trend = fit(HOUR[:20], [float(number) ** 2 for number in range(20)])
    assert trend.margin == math.inf
    assert trend.may_be_flat


def test_few_samples_are_no_trend():
    with pytest.raises(ValueError, match="4 samples"):
        fit([0, 1, 2, 3], [0, 1, 2, 3])
