from __future__ import annotations

import asyncio

import pytest

from inferapi.api.write_deadline import WriteDeadline


async def write_without_end(timeout_s: float) -> None:
    async with WriteDeadline(timeout_s) as deadline:
        deadline.begin()
        await asyncio.get_running_loop().create_future()


async def test_a_write_that_does_not_end_is_broken_off():
    with pytest.raises(TimeoutError):
        await write_without_end(0.05)


async def test_what_is_between_two_writes_may_take_as_long_as_it_likes():
    passed = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_later(0.2, passed.set_result, None)
    async with WriteDeadline(0.02) as deadline:
        deadline.begin()
        deadline.end()
        await passed


async def test_errors_and_cancellation_within_it_stay_what_they_are():
    with pytest.raises(KeyError):
        async with WriteDeadline(9.0):
            raise KeyError

    task = asyncio.create_task(write_without_end(9.0))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
