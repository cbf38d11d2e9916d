"""The same question under the same key is one turn."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from fakes import settle
from inferapi.application.conversation import ChatTurn, TurnStored
from inferapi.domain.chat import SessionRef
from inferapi.domain.errors import HistoryNotSaved, InvalidRequest, OutOfMemory, SessionStoreUnavailable
from inferapi.domain.generation import Chunk, SamplingParams

S1 = SessionRef("", "s1")


@pytest.fixture
async def stage(stage):
    await stage.load()
    return stage


def told(stored: TurnStored) -> tuple:
    """What a client is told of a turn, as ``full_history`` has it."""
    return stored.session.ref, stored.turn, stored.session.messages()


async def test_a_turn_that_is_repeated_is_answered_as_the_first_time_and_generated_once(stage):
    first, second = [await stage.say("Hi", idempotency_key="k") for _ in range(2)]
    assert told(second) == told(first)
    assert (first.finish is None, second.finish is None) == (False, True)
    assert len(stage.engine.requests) == 1
    assert (await stage.store.get(S1)).turns == (first.turn,)


async def test_a_repeat_shows_the_history_as_it_was_though_later_turns_followed(stage):
    await stage.say("Zero?")
    first = await stage.say("One?", idempotency_key="k")
    await stage.say("Two?")
    again = await stage.say("One?", idempotency_key="k")
    assert told(again) == told(first)
    assert [turn.user for turn in (await stage.store.get(S1)).turns] == ["Zero?", "One?", "Two?"]


async def test_a_repeat_is_one_piece_and_the_turn(stage):
    first = await stage.say("Hi", idempotency_key="k")
    async with aclosing(stage.conversation.chat(ChatTurn("", "s1", "Hi", SamplingParams(), "k"))) as items:
        assert [item async for item in items] == [Chunk("Hello there"), TurnStored(first.session, None)]


async def test_a_repeat_of_an_empty_answer_has_no_empty_piece(make_stage):
    stage = await make_stage("")
    await stage.load()
    first = await stage.say("Hi", idempotency_key="k")
    async with aclosing(stage.conversation.chat(ChatTurn("", "s1", "Hi", SamplingParams(), "k"))) as items:
        assert [item async for item in items] == [TurnStored(first.session, None)]


async def test_the_same_turn_twice_at_a_time_is_one(stage):
    stage.engine.gate.hold()
    turns = [asyncio.create_task(stage.say("Hi", idempotency_key="k")) for _ in range(2)]
    await settle()
    assert len(stage.engine.requests) == 1
    stage.engine.gate.open()
    first, second = await asyncio.gather(*turns)
    assert told(second) == told(first)
    assert (len(stage.engine.requests), (await stage.store.get(S1)).version) == (1, 1)


async def test_a_repeat_without_a_session_finds_the_one_that_it_made(stage):
    first, second = await asyncio.gather(*(stage.say("Hi", None, idempotency_key="k") for _ in range(2)))
    assert told(second) == told(first)
    assert len(stage.engine.requests) == 1
    assert len((await stage.sessions.page("", 10, None)).sessions) == 1


async def test_a_session_made_under_a_key_can_be_talked_to(stage):
    session_id = (await stage.say("One?", None, idempotency_key="k")).session.ref.session_id
    stored = await stage.say("Two?", session_id, idempotency_key="k2")
    assert [turn.user for turn in stored.session.turns] == ["One?", "Two?"]


async def test_different_keys_without_a_session_start_different_ones(stage):
    names = {(await stage.say("Hi", None, idempotency_key=key)).session.ref.session_id for key in ("a", "b", "A")}
    assert len(names) == 3


@pytest.mark.parametrize("session_id", ["s1", None])
async def test_the_same_key_of_another_owner_is_another_turn(stage, session_id):
    ann, bob = [await stage.say("Hi", session_id, owner=owner, idempotency_key="k") for owner in ("ann", "bob")]
    assert (ann.session.ref.owner, bob.session.ref.owner) == ("ann", "bob")
    assert len(stage.engine.requests) == 2
    assert (session_id is None) == (ann.session.ref.session_id != bob.session.ref.session_id)


@pytest.mark.parametrize("session_id", ["s1", None])
async def test_the_same_key_for_another_text_is_refused_and_changes_nothing(stage, session_id):
    first = await stage.say("Hi", session_id, idempotency_key="k")
    with pytest.raises(InvalidRequest, match="Idempotency-Key"):
        await stage.say("Ho", session_id, idempotency_key="k")
    assert await stage.store.get(first.session.ref) == first.session
    assert len(stage.engine.requests) == 1
    assert (await stage.say("Next", first.session.ref.session_id)).session.version == 2


async def test_the_same_key_in_another_session_is_another_turn(stage):
    for name in ("s1", "s2"):
        await stage.say("Hi", name, idempotency_key="k")
    assert len(stage.engine.requests) == 2


@pytest.mark.parametrize("session_id", ["s1", None])
async def test_a_repeat_after_a_failure_is_answered(stage, session_id):
    stage.engine.fail_with = OutOfMemory()
    with pytest.raises(OutOfMemory):
        await stage.say("Hi", session_id, idempotency_key="k")
    stage.engine.fail_with = None
    stored = await stage.say("Hi", session_id, idempotency_key="k")
    assert (stored.turn.assistant, stored.session.version) == ("Hello there", 1)
    assert stored.finish is not None


async def test_a_repeat_after_the_answer_of_the_store_was_lost_finds_the_turn(stage):
    stage.store.late_errors["commit"] = SessionStoreUnavailable()
    with pytest.raises(HistoryNotSaved):
        await stage.say("Hi", idempotency_key="k")
    del stage.store.late_errors["commit"]
    again = await stage.say("Hi", idempotency_key="k")
    assert (again.finish, len(stage.engine.requests), again.session.version) == (None, 1, 1)


async def test_a_repeat_after_its_turn_was_taken_back_is_answered_anew(stage):
    await stage.say("Hi", idempotency_key="k")
    await stage.sessions.rewind(S1, 1)
    assert (await stage.say("Hi", idempotency_key="k")).finish is not None


async def test_the_same_text_without_a_key_is_a_turn_of_its_own(stage):
    await stage.say("Hi")
    stored = await stage.say("Hi")
    assert len(stored.session.turns) == 2


async def test_a_repeat_needs_no_model(stage):
    first = await stage.say("Hi", idempotency_key="k")
    await stage.lifecycle.unload()
    assert told(await stage.say("Hi", idempotency_key="k")) == told(first)
