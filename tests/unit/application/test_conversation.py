from __future__ import annotations

import asyncio
import base64
import re
from contextlib import aclosing

import pytest

from fakes import settle
from inferapi.application.conversation import TurnStored
from inferapi.domain.chat import Message
from inferapi.domain.errors import HistoryNotSaved, ModelNotLoaded, OutOfMemory, SessionBusy, SessionStoreUnavailable
from inferapi.domain.generation import SamplingParams

GREEDY = SamplingParams(temperature=0.0)


@pytest.fixture
async def stage(stage):
    await stage.load()
    return stage


async def say(stage, text: str, session_id: str | None = "s1") -> TurnStored:
    async with aclosing(stage.conversation.chat(session_id, text, GREEDY)) as items:
        last = [item async for item in items][-1]
    assert isinstance(last, TurnStored)
    return last


async def test_a_turn_is_answered_in_pieces_and_then_stored(stage):
    async with aclosing(stage.conversation.chat("s1", "Hi", GREEDY)) as items:
        *chunks, last = [item async for item in items]
    assert [chunk.text for chunk in chunks] == ["Hello", " there"]
    assert last.session == await stage.sessions.get("s1")
    (turn,) = last.session.turns
    assert (turn.user, turn.assistant, turn.model) == ("Hi", "Hello there", "gpt2")
    assert (turn.prompt_tokens, turn.completion_tokens) == (3, 2)
    assert turn.created_at_s == stage.clock.wall_s()


async def test_the_model_hears_the_whole_history(stage):
    await say(stage, "One?")
    await say(stage, "Two?")
    assert stage.engine.requests[-1].prompt.messages == (
        Message("system", "Be brief."),
        Message("user", "One?"),
        Message("assistant", "Hello there"),
        Message("user", "Two?"),
    )
    assert stage.engine.requests[-1].affinity == "s1"


async def test_a_history_too_long_loses_its_oldest_turns_and_stays_stored(stage):
    await say(stage, "word " * 500)
    stored = await say(stage, "word " * 500)
    assert (stored.answered.finish.usage.dropped_turns, len(stored.session.turns)) == (1, 2)


async def test_a_turn_cut_short_is_not_remembered(stage):
    async with aclosing(stage.conversation.chat("s1", "Hi", GREEDY)) as chunks:
        assert (await anext(chunks)).text == "Hello"
    assert await stage.sessions.get("s1") is None
    assert (stage.engine.in_flight, stage.engine.cancelled) == (0, 1)


async def test_a_turn_whose_reader_was_cancelled_is_not_remembered_and_lets_the_next_one_in(stage):
    stage.engine.gate.hold()
    turn = asyncio.create_task(say(stage, "Hi"))
    await settle()
    turn.cancel()
    await asyncio.gather(turn, return_exceptions=True)
    assert await stage.sessions.get("s1") is None
    stage.engine.gate.open()
    assert (await say(stage, "Again")).session.version == 1


async def test_a_turn_that_failed_is_not_remembered(stage):
    await say(stage, "One?")
    stage.engine.fail_with = OutOfMemory()
    with pytest.raises(OutOfMemory):
        await say(stage, "Two?")
    session = await stage.sessions.get("s1")
    assert [turn.user for turn in session.turns] == ["One?"]


async def test_a_chat_without_a_model_makes_no_session(make_stage):
    stage = await make_stage()
    with pytest.raises(ModelNotLoaded):
        await say(stage, "Hi")
    assert await stage.sessions.get("s1") is None


async def test_a_new_system_prompt_is_for_new_sessions_only(stage):
    await say(stage, "Hi", "old")
    await stage.conversation.set_system_prompt("You are a pirate.")
    old, new = await say(stage, "Hi", "old"), await say(stage, "Hi", "new")
    assert (old.session.system_prompt, new.session.system_prompt) == ("Be brief.", "You are a pirate.")
    assert stage.engine.requests[-1].prompt.messages[0] == Message("system", "You are a pirate.")


async def test_an_empty_system_prompt_is_one_too(stage):
    await stage.conversation.set_system_prompt("")
    assert (await say(stage, "Hi")).session.system_prompt == ""


async def test_two_turns_of_one_session_never_overlap(stage):
    stage.engine.gate.hold()
    first = asyncio.create_task(say(stage, "One?"))
    await settle()
    second = asyncio.create_task(say(stage, "Two?"))
    await settle()
    assert [request.prompt.messages[-1].content for request in stage.engine.requests] == ["One?"]
    stage.engine.gate.open()
    await asyncio.gather(first, second)
    session = await stage.sessions.get("s1")
    assert [turn.user for turn in session.turns] == ["One?", "Two?"]
    assert stage.engine.requests[1].prompt.messages[1:3] == (
        Message("user", "One?"),
        Message("assistant", "Hello there"),
    )


async def test_turns_of_different_sessions_run_side_by_side(stage):
    stage.engine.gate.hold()
    turns = [asyncio.create_task(say(stage, "Hi", name)) for name in ("s1", "s2")]
    await settle()
    assert stage.engine.in_flight == 2
    stage.engine.gate.open()
    assert [stored.session.session_id for stored in await asyncio.gather(*turns)] == ["s1", "s2"]


async def test_a_turn_that_waits_too_long_for_another_is_told_so(stage, loop_time):
    stage.engine.gate.hold()
    first = asyncio.create_task(say(stage, "One?"))
    await settle()
    second = asyncio.create_task(say(stage, "Two?"))
    await loop_time(9.0)
    assert not second.done()
    await loop_time(1.5)
    with pytest.raises(SessionBusy):
        await second
    stage.engine.gate.open()
    assert (await first).session.version == 1


async def test_a_session_without_a_name_gets_one_that_nobody_can_guess(stage):
    names = [(await say(stage, "Hi", None)).session.session_id for _ in range(50)]
    assert len(set(names)) == 50
    assert all(re.fullmatch(r"[A-Za-z0-9._~-]{1,128}", name) for name in names)
    assert min(len(base64.urlsafe_b64decode(name + "=" * (-len(name) % 4))) for name in names) * 8 >= 128


async def test_every_turn_has_an_id_of_its_own(stage):
    session = [await say(stage, "Hi") for _ in range(20)][-1].session
    assert len({turn.turn_id for turn in session.turns}) == 20


async def test_a_store_that_does_not_answer_is_told_before_any_work(stage):
    stage.sessions.errors["get"] = SessionStoreUnavailable()
    with pytest.raises(SessionStoreUnavailable):
        await say(stage, "Hi")
    assert stage.engine.requests == []


@pytest.mark.parametrize("error", [SessionStoreUnavailable(), HistoryNotSaved(problem="it is full")])
async def test_a_turn_that_could_not_be_stored_is_told_so_after_its_text(stage, error):
    stage.sessions.errors["append"] = error
    heard = []

    async def hear():
        async with aclosing(stage.conversation.chat("s1", "Hi", GREEDY)) as items:
            async for item in items:
                heard.append(item.text)  # noqa: PERF401 - what was heard before the error counts

    with pytest.raises(type(error)):
        await hear()
    assert heard == ["Hello", " there"]
    assert await stage.sessions.get("s1") is None


async def test_a_session_deleted_while_it_is_answered_does_not_come_back(stage):
    await say(stage, "One?")
    stage.engine.gate.hold()
    turn = asyncio.create_task(say(stage, "Two?"))
    await settle()
    assert await stage.sessions.delete("s1") is True
    stage.engine.gate.open()
    with pytest.raises(HistoryNotSaved):
        await turn
    assert await stage.sessions.get("s1") is None


async def test_a_session_outlives_its_model(stage):
    await say(stage, "One?")
    await stage.load("other")
    stored = await say(stage, "Two?")
    assert [turn.model for turn in stored.session.turns] == ["gpt2", "other"]
