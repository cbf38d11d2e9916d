"""A worker is silent for too long only if somebody was there to listen."""

from __future__ import annotations

import asyncio

import pytest

from inferapi.worker.heartbeat import Heartbeat, Silence

TIMEOUT_S = 10.0
TICK_S = 1.0


def ticks_until_too_long(silence, now_s, most=100):
    """How many ticks in time it takes from ``now_s`` on."""
    for number in range(1, most + 1):
        if silence.tick(now_s + number * TICK_S):
            return number
    return None


def test_a_silence_is_too_long_when_the_timeout_has_passed():
    silence = Silence(TIMEOUT_S, 100.0)
    assert silence.tick_s == TICK_S
    assert ticks_until_too_long(silence, 100.0) == 10


def test_whatever_is_heard_begins_the_silence_anew():
    silence = Silence(TIMEOUT_S, 100.0)
    for number in range(1, 10):
        assert not silence.tick(100.0 + number)
    silence.heard()
    assert ticks_until_too_long(silence, 109.0) == 10


@pytest.mark.parametrize("stall_s", [3.0, 60.0, 100_000.0])
def test_time_in_which_the_listener_stood_still_does_not_count(stall_s):
    silence = Silence(TIMEOUT_S, 100.0)
    for number in range(1, 10):
        assert not silence.tick(100.0 + number)
    assert not silence.tick(109.0 + stall_s)  # one tick was left; what was sent meanwhile is not read yet
    assert ticks_until_too_long(silence, 109.0 + stall_s) == 1


def test_a_tick_that_is_a_little_late_counts():
    silence = Silence(TIMEOUT_S, 100.0)
    assert [silence.tick(100.0 + 1.9 * number) for number in range(1, 11)] == [False] * 9 + [True]


async def until_called(called, heartbeat):
    try:
        async with asyncio.timeout(10.0):
            await called.wait()
    finally:
        heartbeat.stop()


async def test_silence_after_the_first_sign_is_told_once():
    called, calls = asyncio.Event(), []
    heartbeat = Heartbeat(0.05, lambda: (calls.append("silent"), called.set()))
    heartbeat.heard()
    await until_called(called, heartbeat)
    other = asyncio.Event()
    later = Heartbeat(0.1, other.set)  # twice as long as the first would need to call again
    later.heard()
    await until_called(other, later)
    assert calls == ["silent"]


async def test_nobody_is_missed_before_the_first_sign_or_after_the_end():
    calls = []
    never_heard = Heartbeat(0.05, lambda: calls.append("never heard"))
    stopped = Heartbeat(0.05, lambda: calls.append("stopped"))
    stopped.heard()
    stopped.stop()
    stopped.heard()
    called = asyncio.Event()
    control = Heartbeat(0.1, called.set)
    control.heard()
    await until_called(called, control)
    never_heard.stop()
    assert calls == []
