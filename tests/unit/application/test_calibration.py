"""What a load teaches the next estimate."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferapi.application.calibration import Calibration


def test_a_model_never_loaded_is_estimated_as_it_is():
    assert Calibration().ratio("new") == 1.0


def test_the_first_load_counts_in_full():
    calibration = Calibration()
    calibration.learn("a", 1000, 1200)
    assert calibration.ratio("a") == pytest.approx(1.2)
    assert calibration.ratio("b") == 1.0


def test_a_later_load_counts_by_half():
    calibration = Calibration()
    calibration.learn("a", 1000, 1200)
    calibration.learn("a", 1200, 1600)  # estimated with 1.2, so the bare estimate was 1000
    assert calibration.ratio("a") == pytest.approx((1.2 + 1.6) / 2)


def test_a_corrected_estimate_that_was_right_changes_nothing():
    calibration = Calibration()
    calibration.learn("a", 1000, 1300)
    for _ in range(20):
        calibration.learn("a", 1300, 1300)
    assert calibration.ratio("a") == pytest.approx(1.3)


@pytest.mark.parametrize(("measured", "expected"), [(1, 0.9), (899, 0.9), (950, 0.95), (1999, 1.999), (10**9, 2.0)])
def test_a_ratio_stays_within_bounds(measured, expected):
    calibration = Calibration()
    calibration.learn("a", 1000, measured)
    assert calibration.ratio("a") == pytest.approx(expected)


@pytest.mark.parametrize(("estimated", "measured"), [(0, 100), (100, 0), (-1, 100), (100, -1)])
def test_a_measurement_that_failed_teaches_nothing(estimated, measured):
    calibration = Calibration()
    calibration.learn("a", estimated, measured)
    assert calibration.ratio("a") == 1.0


def test_of_more_models_than_are_kept_the_one_met_longest_ago_is_forgotten():
    calibration = Calibration()
    for number in range(256):
        calibration.learn(number, 1000, 1500)
    calibration.learn(0, 1500, 1500)  # met again
    calibration.learn("one more", 1000, 1500)
    assert [calibration.ratio(key) for key in (0, 1, 2, "one more")] == pytest.approx([1.5, 1.0, 1.5, 1.5])


@given(st.lists(st.tuples(st.integers(-5, 10**15), st.integers(-5, 10**15)), max_size=30))
def test_whatever_is_measured_the_ratio_is_bounded(loads):
    calibration = Calibration()
    for estimated, measured in loads:
        calibration.learn("a", estimated, measured)
        assert 0.9 <= calibration.ratio("a") <= 2.0
