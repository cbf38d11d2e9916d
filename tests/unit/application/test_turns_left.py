"""Turns that end before they began, and stores that do not answer: no lease stays behind."""

from __future__ import annotations

import asyncio

import pytest

from fakes import settle
from inferapi.domain.errors import HistoryNotSaved, SessionStoreUnavailable, SessionUnreadable
from turn_actors import S1, can_enter, end_one, running, write_one

AWAY = SessionStoreUnavailable()


async def test_a_client_that_leaves_while_it_waits_for_another_process_is_in_nobodys_way(stage):
    async with running(stage.elsewhere):
        waiting = asyncio.create_task(write_one(stage.turns))
        await stage.clock.advance(1)
        waiting.cancel()
        await settle()
    assert await can_enter(stage.turns) is True
    await stage.clock.advance(60)
    assert await can_enter(stage.elsewhere) is True


async def test_a_client_that_leaves_while_the_store_gives_the_lease_leaves_no_lease(stage):
    stage.store.gates["begin"].hold()
    leaving = asyncio.create_task(write_one(stage.turns))
    await settle()
    leaving.cancel()
    await settle()
    assert (leaving.cancelled(), stage.store.gates["begin"].waiting) == (True, 1)  # the store is not interrupted
    stage.store.gates["begin"].open()
    await settle()
    assert await can_enter(stage.elsewhere) is True
    assert await stage.store.get(S1) is None


async def test_a_client_that_leaves_while_the_store_refuses_the_lease_has_nothing_to_give_back(stage):
    async with running(stage.elsewhere):
        stage.store.gates["begin"].hold()
        leaving = asyncio.create_task(write_one(stage.turns))
        await settle()
        leaving.cancel()
        await settle()
        stage.store.gates["begin"].open()
        await settle()
        assert "end" not in stage.store.calls


async def test_a_client_that_leaves_while_the_lease_is_given_back_leaves_no_lease(stage):
    stage.store.gates["end"].hold()
    leaving = asyncio.create_task(end_one(stage.turns))
    await settle()
    leaving.cancel()
    await settle()
    stage.store.gates["end"].open()
    await settle()
    assert (leaving.cancelled(), await can_enter(stage.elsewhere)) == (True, True)


async def test_a_client_that_leaves_while_its_turn_is_written_leaves_no_lease(stage):
    stage.store.gates["commit"].hold()
    leaving = asyncio.create_task(write_one(stage.turns))
    await settle()
    leaving.cancel()
    await settle()
    stage.store.gates["commit"].open()
    await settle()
    assert (leaving.cancelled(), await can_enter(stage.elsewhere)) == (True, True)
    assert await stage.store.get(S1) is None


async def test_a_turn_whose_writing_was_refused_lets_the_next_one_in(stage):
    stage.store.errors["commit"] = AWAY
    with pytest.raises(HistoryNotSaved):
        await write_one(stage.turns)
    del stage.store.errors["commit"]
    assert (await write_one(stage.elsewhere)).version == 1


@pytest.mark.parametrize("error", [AWAY, SessionUnreadable(problem="it is damaged")])
async def test_a_lease_that_may_have_been_given_with_an_error_is_given_back(stage, error):
    stage.store.late_errors["begin"] = error
    with pytest.raises(type(error)):
        await write_one(stage.turns)
    del stage.store.late_errors["begin"]
    await settle()
    assert await can_enter(stage.elsewhere) is True


async def test_a_lease_that_may_have_been_given_is_given_back_once_the_store_is_there_again(stage):
    stage.store.late_errors["begin"] = stage.store.errors["end"] = AWAY
    with pytest.raises(SessionStoreUnavailable):
        await write_one(stage.turns)
    del stage.store.late_errors["begin"]
    await stage.clock.advance(3.5)
    assert await can_enter(stage.elsewhere) is False
    del stage.store.errors["end"]
    await stage.clock.advance(0.5)
    assert await can_enter(stage.elsewhere) is True


async def test_a_store_that_stays_away_is_left_alone_after_two_minutes(stage):
    stage.store.errors["end"] = AWAY
    await end_one(stage.turns)
    await stage.clock.advance(100)
    stage.store.calls.clear()
    await stage.clock.advance(10)
    assert "end" in stage.store.calls
    await stage.clock.advance(10)
    stage.store.calls.clear()
    await stage.clock.advance(60)
    assert stage.store.calls == []


async def test_what_is_cleaned_up_ends_with_the_gate(stage):
    stage.store.errors["end"] = AWAY
    await end_one(stage.turns)
    await stage.turns.aclose()
    stage.store.calls.clear()
    await stage.clock.advance(60)
    assert stage.store.calls == []


async def test_all_who_wait_for_a_session_are_told_together_that_the_store_is_away(stage):
    gate = stage.store.gates["begin"]
    gate.hold()
    stage.store.errors["begin"] = AWAY
    waiting = [asyncio.create_task(end_one(stage.turns)) for _ in range(6)]
    await settle()
    assert stage.store.calls.count("begin") == 1
    gate.open()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert {type(result) for result in results} == {SessionStoreUnavailable}
    assert stage.store.calls.count("begin") == 1
