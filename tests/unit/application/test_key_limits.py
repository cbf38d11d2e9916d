"""What one key may ask: in any minute, and at once."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes import FakeClock
from inferapi.application.key_limits import KeyLimits
from inferapi.domain.errors import ConcurrencyLimitExceeded, RateLimitExceeded


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def refusal(limits: KeyLimits, key_id: str) -> dict[str, object] | None:
    """Why a request that is over at once is refused, if it is."""
    try:
        limits.count(key_id)
    except RateLimitExceeded as error:
        return error.facts
    return None


def test_without_limits_everything_is_let_in(clock):
    limits = KeyLimits(clock)
    for _ in range(1000):
        limits.begin("ann")
    assert (limits.under_way("ann"), refusal(limits, "ann")) == (1000, None)


async def test_a_key_has_its_requests_and_then_waits_until_the_first_is_a_minute_old(clock):
    limits = KeyLimits(clock, requests_per_minute=3)
    seen = []
    for wait_s in (0, 10, 10, 0.5, 39, 0.5, 0):
        await clock.advance(wait_s)
        seen.append(refusal(limits, "ann"))
    assert seen == [
        None,
        None,
        None,
        {"requests_per_minute": 3, "retry_after_s": 40},
        {"requests_per_minute": 3, "retry_after_s": 1},
        None,
        {"requests_per_minute": 3, "retry_after_s": 10},
    ]


async def test_who_comes_when_told_is_let_in(clock):
    limits = KeyLimits(clock, requests_per_minute=1)
    limits.count("ann")
    await clock.advance(12.25)
    told = refusal(limits, "ann")
    await clock.advance(told["retry_after_s"])
    assert (told["retry_after_s"], refusal(limits, "ann")) == (48, None)


def test_what_one_key_asks_is_not_taken_from_another(clock):
    limits = KeyLimits(clock, requests_per_minute=1, max_concurrency=1)
    limits.begin("ann")
    with pytest.raises(ConcurrencyLimitExceeded):
        limits.begin("ann")
    limits.begin("bob")
    assert (limits.under_way("ann"), limits.under_way("bob")) == (1, 1)


def test_only_so_many_are_under_way_at_once_and_an_end_makes_room(clock):
    limits = KeyLimits(clock, max_concurrency=2)
    limits.begin("ann")
    limits.begin("ann")
    with pytest.raises(ConcurrencyLimitExceeded) as caught:
        limits.begin("ann")
    assert caught.value.facts == {"max_concurrency": 2}
    limits.end("ann")
    limits.begin("ann")
    assert limits.under_way("ann") == 2


def test_a_request_refused_for_one_limit_uses_nothing_of_the_other(clock):
    limits = KeyLimits(clock, requests_per_minute=2, max_concurrency=1)
    limits.begin("ann")
    for _ in range(5):
        with pytest.raises(ConcurrencyLimitExceeded):
            limits.begin("ann")
    limits.end("ann")
    limits.begin("ann")
    limits.end("ann")
    with pytest.raises(RateLimitExceeded):
        limits.begin("ann")
    assert limits.under_way("ann") == 0


@settings(max_examples=200, deadline=None)
@given(most=st.integers(1, 5), gaps=st.lists(st.floats(0, 40), max_size=60))
def test_no_minute_has_more_than_the_limit_and_nobody_is_refused_without_need(most, gaps):
    now_s = 0.0

    class Clock(FakeClock):
        def monotonic_s(self) -> float:
            return now_s

    limits = KeyLimits(Clock(), requests_per_minute=most)
    let_in: deque[float] = deque()
    for gap_s in gaps:
        now_s += gap_s
        recent = [at_s for at_s in let_in if now_s - at_s < 60.0]
        told = refusal(limits, "ann")
        assert (told is None) == (len(recent) < most)
        if told is None:
            let_in.append(now_s)
        else:
            assert now_s + told["retry_after_s"] >= recent[-most] + 60.0 - 1e-6
            assert 1 <= told["retry_after_s"] <= 60
