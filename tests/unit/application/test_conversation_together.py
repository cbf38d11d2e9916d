"""Turns that run at the same time, and sessions that are deleted under them."""

from __future__ import annotations

import asyncio

import pytest

from fakes import settle
from inferapi.domain.chat import Message, Session, SessionLimits, SessionRef
from inferapi.domain.errors import (
    HistoryNotSaved,
    SessionBusy,
)
from session_contract import make_turn

S1 = SessionRef("", "s1")


@pytest.fixture
async def stage(stage):
    await stage.load()
    return stage


async def texts(stage, ref: SessionRef = S1) -> list[str]:
    """What was said in a session, as it is stored."""
    session: Session = await stage.store.get(ref)
    return [message.content for message in session.messages()[1:]]


async def test_two_turns_of_one_session_never_overlap(stage):
    stage.engine.gate.hold()
    first = asyncio.create_task(stage.say("One?"))
    await settle()
    second = asyncio.create_task(stage.say("Two?"))
    await settle()
    assert [request.prompt.messages[-1].content for request in stage.engine.requests] == ["One?"]
    stage.engine.gate.open()
    await asyncio.gather(first, second)
    session = await stage.store.get(S1)
    assert [turn.user for turn in session.turns] == ["One?", "Two?"]
    assert stage.engine.requests[1].prompt.messages[1:3] == (
        Message("user", "One?"),
        Message("assistant", "Hello there"),
    )


async def test_turns_of_different_sessions_run_side_by_side(stage):
    stage.engine.gate.hold()
    turns = [asyncio.create_task(stage.say("Hi", name)) for name in ("s1", "s2")]
    await settle()
    assert stage.engine.in_flight == 2
    stage.engine.gate.open()
    assert [stored.session.ref.session_id for stored in await asyncio.gather(*turns)] == ["s1", "s2"]


async def test_a_turn_that_waits_too_long_for_another_is_told_so(stage, loop_time):
    stage.engine.gate.hold()
    first = asyncio.create_task(stage.say("One?"))
    await settle()
    second = asyncio.create_task(stage.say("Two?"))
    await loop_time(9.0)
    assert not second.done()
    await loop_time(1.5)
    with pytest.raises(SessionBusy):
        await second
    stage.engine.gate.open()
    assert (await first).session.version == 1


async def test_a_session_deleted_while_it_is_answered_does_not_come_back(stage):
    await stage.say("One?")
    stage.engine.gate.hold()
    turn = asyncio.create_task(stage.say("Two?"))
    await settle()
    assert await stage.store.delete(S1) is True
    stage.engine.gate.open()
    with pytest.raises(HistoryNotSaved):
        await turn
    assert await stage.store.get(S1) is None


async def test_twenty_turns_at_once_are_answered_in_order_each_stored_once(stage):
    questions = [f"{number}?" for number in range(20)]
    await asyncio.gather(*(stage.say(question) for question in questions))
    session = await stage.store.get(S1)
    assert [turn.user for turn in session.turns] == questions
    assert [message.role for message in session.messages()] == ["system", *["user", "assistant"] * 20]
    assert session.version == 20
    heard = [[message.content for message in request.prompt.messages[1::2]] for request in stage.engine.requests]
    assert heard == [questions[: count + 1] for count in range(20)]


async def test_the_same_id_of_two_owners_is_two_sessions_that_run_side_by_side(stage):
    stage.engine.gate.hold()
    turns = [asyncio.create_task(stage.say(f"I am {owner}", owner=owner)) for owner in ("ann", "bob")]
    await settle()
    assert stage.engine.in_flight == 2
    stage.engine.gate.open()
    await asyncio.gather(*turns)
    assert await texts(stage, SessionRef("ann", "s1")) == ["I am ann", "Hello there"]
    assert await texts(stage, SessionRef("bob", "s1")) == ["I am bob", "Hello there"]
    assert {request.salt for request in stage.engine.requests} == {"ann", "bob"}


async def test_a_first_turn_whose_session_is_deleted_meanwhile_makes_none(stage):
    stage.engine.gate.hold()
    turn = asyncio.create_task(stage.say("One?"))
    await settle()
    await stage.sessions.delete(S1)
    stage.engine.gate.open()
    with pytest.raises(HistoryNotSaved):
        await turn
    assert await stage.store.get(S1) is None


async def test_a_session_deleted_and_begun_anew_elsewhere_is_not_written_to_by_the_old_turn(stage):
    await stage.say("Old?")
    stage.engine.gate.hold()
    old = asyncio.create_task(stage.say("Old too?"))
    await settle()
    await stage.sessions.delete(S1)
    stage.engine.gate.open()
    async with stage.elsewhere.turn(S1) as held:
        assert held.session is None
        new = Session(S1, "New.")
        after = await held.commit(new, new.appending(make_turn(user="New?"), SessionLimits(10, 10**6)))
    with pytest.raises(HistoryNotSaved):
        await old
    assert await stage.store.get(S1) == after
    assert await texts(stage) == ["New?", "Fine."]
