"""What ``MemorySessionStore`` does: what every store does, and it keeps no more than so many."""

from __future__ import annotations

import pytest

from fakes import FakeClock
from inferapi.adapters import memory_sessions
from inferapi.adapters.memory_sessions import MemorySessionStore
from inferapi.domain.chat import SessionRef
from inferapi.domain.errors import HistoryNotSaved
from session_contract import S1, SessionStoreContract, adding, must_begin, write
from session_list_contract import SessionExpiryContract, SessionListContract


class OnMemory:
    @pytest.fixture
    def clock(self):
        return FakeClock()

    @pytest.fixture
    def store(self, clock):
        return MemorySessionStore(clock, self.TTL_S)

    async def pass_time(self, clock, duration_s):
        await clock.advance(duration_s)


class TestMemorySessions(OnMemory, SessionStoreContract):
    pass


class TestMemoryLists(OnMemory, SessionListContract):
    pass


class TestMemoryExpiry(OnMemory, SessionExpiryContract):
    pass


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def small_store(clock, monkeypatch):
    monkeypatch.setattr(memory_sessions, "MAX_SESSIONS", 3)
    return MemorySessionStore(clock, ttl_s=100.0)


async def test_beyond_the_bound_the_least_recently_used_session_goes(small_store, clock):
    refs = [SessionRef("", name) for name in "abcd"]
    for ref in refs[:3]:
        await write(small_store, ref, adding(), clock.wall_s())
    await must_begin(small_store, refs[0], "a")
    await write(small_store, refs[3], adding(), clock.wall_s())
    assert [await small_store.get(ref) is not None for ref in refs] == [True, False, True, True]


async def test_a_session_that_had_to_go_during_its_turn_is_not_stored_in_part(small_store, clock):
    stored = await write(small_store, S1, adding(1), clock.wall_s())
    opened = await must_begin(small_store, S1)
    for name in "abc":
        await write(small_store, SessionRef("", name), adding(), clock.wall_s())
    with pytest.raises(HistoryNotSaved):
        await small_store.commit(opened.lease, stored, adding(2), clock.wall_s())
    assert await small_store.get(S1) is None


async def test_leases_that_ran_out_leave_nothing_behind(small_store, clock):
    for number in range(10):
        await must_begin(small_store, SessionRef("", str(number)), lease_s=5.0)
    await clock.advance(5)
    await must_begin(small_store, S1)
    assert list(small_store._leases) == [S1]
