"""The gate of turns: whose turn it is, and for how long."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from inferapi.domain.chat import SessionRef
from inferapi.domain.errors import HistoryNotSaved, SessionBusy, SessionStoreUnavailable
from turn_actors import S1, can_enter, running, write, write_one

AWAY = SessionStoreUnavailable()


async def test_a_turn_has_the_session_as_it_is_and_the_system_prompt_that_was_set(stage):
    await stage.store.set_system_prompt("Be kind.")
    async with stage.turns.turn(S1) as held:
        assert (held.session, held.system_prompt) == (None, "Be kind.")
        stored = await write(held)
    async with stage.turns.turn(S1) as held:
        assert held.session == stored


@pytest.mark.parametrize("other", ["turns", "elsewhere"])
async def test_nobody_else_enters_until_it_is_over(stage, other):
    gate = getattr(stage, other)
    async with running(stage.turns):
        assert await can_enter(gate) is False
        assert await can_enter(gate, SessionRef("", "s2")) is True
        assert await can_enter(gate, SessionRef("ann", "s1")) is True
    assert await can_enter(gate) is True


async def test_a_turn_asks_the_store_twice(stage):
    await write_one(stage.turns)
    assert stage.store.calls == ["begin", "commit"]


async def test_a_turn_that_wrote_nothing_leaves_nothing(stage):
    async with stage.turns.turn(S1):
        pass
    assert await stage.store.get(S1) is None
    assert await stage.store.delete(S1) is False  # not even a lease


@pytest.mark.parametrize("error", [ZeroDivisionError, asyncio.CancelledError, GeneratorExit])
async def test_a_turn_that_broke_lets_the_next_one_in_at_once(stage, error):
    with pytest.raises(error):
        async with stage.turns.turn(S1):
            raise error
    assert await can_enter(stage.elsewhere) is True


async def test_a_generator_that_is_closed_in_its_turn_gives_it_back(stage):
    async def chunks():
        async with stage.turns.turn(S1):
            yield 1
            yield 2

    async with aclosing(chunks()) as items:
        await anext(items)
        assert await can_enter(stage.elsewhere) is False
    assert await can_enter(stage.elsewhere) is True


async def test_a_turn_longer_than_its_lease_is_stored(stage):
    async with running(stage.turns) as held:
        await stage.clock.advance(100)
        assert await can_enter(stage.elsewhere) is False
        stored = await write(held)
    assert await stage.store.get(S1) == stored
    assert stage.store.calls.count("renew") == 50


async def test_nothing_is_renewed_once_a_turn_is_over(stage):
    async with running(stage.turns):
        await stage.clock.advance(5)
    renewals = stage.store.calls.count("renew")
    await stage.clock.advance(100)
    assert stage.store.calls.count("renew") == renewals == 2


async def test_a_lease_that_is_lost_is_not_asked_for_again(stage):
    async with running(stage.turns) as held:
        await stage.store.delete(S1)
        await stage.clock.advance(20)
        with pytest.raises(HistoryNotSaved):
            await write(held)
    assert stage.store.calls.count("renew") == 1


async def test_a_renewal_that_fails_is_made_up_for_by_the_next(stage, caplog):
    async with running(stage.turns) as held:
        stage.store.errors["renew"] = AWAY
        await stage.clock.advance(5)
        del stage.store.errors["renew"]
        await stage.clock.advance(5)
        stored = await write(held)
    assert await stage.store.get(S1) == stored
    assert caplog.text.count("could not be renewed") == 1


async def test_a_lease_that_ran_out_and_went_to_somebody_else_writes_nothing(stage):
    async with running(stage.turns) as late:
        stage.store.errors["renew"] = AWAY
        await stage.clock.advance(8)
        async with stage.elsewhere.turn(S1) as other:
            with pytest.raises(HistoryNotSaved):
                await write(late, 1)
            stored = await write(other, 2)
        with pytest.raises(HistoryNotSaved):
            await write(late, 1)
    assert await stage.store.get(S1) == stored


async def test_the_end_of_a_turn_that_lost_its_lease_does_not_end_the_next_one(stage):
    stage.store.errors["renew"] = AWAY
    async with running(stage.turns):
        await stage.clock.advance(8)
        other = await stage.store.begin(S1, "other", 60.0)
    del stage.store.errors["renew"]
    assert await stage.store.renew(other.lease, 60.0) is True


async def test_who_died_in_a_turn_keeps_others_out_for_the_time_of_a_lease_only(stage):
    await stage.store.begin(S1, "somebody who died", 8.0)
    entering = asyncio.create_task(write_one(stage.turns))
    await stage.clock.advance(7.9)
    assert not entering.done()
    await stage.clock.advance(0.4)
    assert (await entering).version == 1


async def test_turns_of_one_process_come_in_order_of_arrival(stage):
    written = await asyncio.gather(*(write_one(stage.turns, number) for number in range(20)))
    assert [session.version for session in written] == list(range(1, 21))
    assert [turn.turn_id for turn in written[-1].turns] == [f"turn-{number}" for number in range(20)]
    assert stage.store.calls.count("begin") == 20  # only the first in line asks the store


async def test_turns_of_two_processes_never_overlap_and_all_are_stored(stage):
    gates = [stage.turns, stage.elsewhere]
    tasks = [asyncio.create_task(write_one(gates[number % 2], number)) for number in range(20)]
    await stage.clock.advance(9)
    await asyncio.gather(*tasks)
    session = await stage.store.get(S1)
    assert session.version == 20
    assert sorted(turn.turn_id for turn in session.turns) == sorted(f"turn-{number}" for number in range(20))


async def test_waiting_too_long_for_a_turn_of_this_process_is_told(stage, loop_time):
    async with running(stage.turns):
        waiting = asyncio.create_task(write_one(stage.turns))
        await loop_time(9.0)
        assert not waiting.done()
        await loop_time(1.5)
        with pytest.raises(SessionBusy):
            await waiting
    assert await can_enter(stage.turns) is True


async def test_waiting_too_long_for_a_turn_of_another_process_is_told(stage):
    async with running(stage.elsewhere):
        waiting = asyncio.create_task(write_one(stage.turns))
        await stage.clock.advance(9.9)
        assert not waiting.done()
        await stage.clock.advance(0.1)
        with pytest.raises(SessionBusy):
            await waiting
    assert await can_enter(stage.turns) is True


async def test_who_waits_for_another_process_asks_ever_less_often_and_enters_soon_after(stage):
    async with running(stage.elsewhere):
        waiting = asyncio.create_task(write_one(stage.turns))
        await stage.clock.advance(5)
        assert stage.store.calls.count("begin") < 30
    await stage.clock.advance(0.25)
    assert (await waiting).version == 1


async def test_the_gate_forgets_sessions_that_nobody_wants(stage):
    await asyncio.gather(*(write_one(stage.turns, ref=SessionRef("", f"s{number}")) for number in range(10)))
    assert stage.turns._gates == {}
