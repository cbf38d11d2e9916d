"""What ``MemorySessionStore`` does beyond its port's contract: it forgets."""

from __future__ import annotations

import pytest

from contracts import make_turn
from fakes import FakeClock
from inferapi.adapters import memory_sessions
from inferapi.adapters.memory_sessions import MemorySessionStore
from inferapi.domain.chat import Session, Turn
from inferapi.domain.errors import HistoryNotSaved


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def store(clock):
    return MemorySessionStore(clock, ttl_s=100.0)


async def test_a_session_is_forgotten_so_long_after_its_last_use(store, clock):
    await store.append(Session("s1", "Be brief."), make_turn())
    await clock.advance(99)
    assert await store.get("s1") is not None
    await clock.advance(99)
    assert await store.get("s1") is not None
    await clock.advance(100)
    assert await store.get("s1") is None
    assert await store.delete("s1") is False


async def test_a_turn_keeps_its_session_alive(store, clock):
    session = await store.append(Session("s1", "Be brief."), make_turn(1))
    await clock.advance(99)
    await store.append(session, make_turn(2))
    await clock.advance(99)
    assert (await store.get("s1")).version == 2


async def test_each_session_is_forgotten_at_its_own_time(store, clock):
    await store.append(Session("s1", "Be brief."), make_turn())
    await clock.advance(50)
    await store.append(Session("s2", "Be brief."), make_turn())
    await clock.advance(50)
    assert (await store.get("s1"), (await store.get("s2")).version) == (None, 1)


async def test_a_session_that_expired_while_it_was_answered_is_not_stored_in_part(store, clock):
    session = await store.append(Session("s1", "Be brief."), make_turn(1))
    await clock.advance(100)
    with pytest.raises(HistoryNotSaved):
        await store.append(session, make_turn(2))
    assert await store.get("s1") is None


async def test_a_full_session_takes_no_more_turns(store):
    turns: tuple[Turn, ...] = (make_turn(),) * memory_sessions.MAX_TURNS
    full = Session("s1", "Be brief.", turns, 0)
    with pytest.raises(HistoryNotSaved) as caught:
        await store.append(full, make_turn())
    assert str(memory_sessions.MAX_TURNS) in caught.value.message
