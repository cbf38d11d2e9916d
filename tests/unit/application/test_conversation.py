from __future__ import annotations

import asyncio
import base64
import re
from contextlib import aclosing

import pytest

from fakes import settle
from inferapi.application.conversation import ChatTurn
from inferapi.domain.chat import Message, Session, SessionRef
from inferapi.domain.errors import (
    GenerationTimeout,
    HistoryNotSaved,
    ModelCrashed,
    ModelNotLoaded,
    OutOfMemory,
    SessionStoreUnavailable,
)
from inferapi.domain.generation import SamplingParams

GREEDY = SamplingParams(temperature=0.0)
S1 = SessionRef("", "s1")


@pytest.fixture
async def stage(stage):
    await stage.load()
    return stage


def asked(text: str = "Hi", session_id: str | None = "s1", owner: str = "") -> ChatTurn:
    return ChatTurn(owner, session_id, text, GREEDY)


async def texts(stage, ref: SessionRef = S1) -> list[str]:
    """What was said in a session, as it is stored."""
    session: Session = await stage.store.get(ref)
    return [message.content for message in session.messages()[1:]]


async def test_a_turn_is_answered_in_pieces_and_then_stored(stage):
    async with aclosing(stage.conversation.chat(asked())) as items:
        *chunks, last = [item async for item in items]
    assert [chunk.text for chunk in chunks] == ["Hello", " there"]
    assert last.session == await stage.store.get(S1)
    (turn,) = last.session.turns
    assert (turn.user, turn.assistant, turn.model) == ("Hi", "Hello there", "gpt2")
    assert (turn.prompt_tokens, turn.completion_tokens) == (3, 2)
    assert turn.created_at_s == stage.clock.wall_s()


async def test_the_model_hears_the_whole_history(stage):
    await stage.say("One?")
    await stage.say("Two?")
    assert stage.engine.requests[-1].prompt.messages == (
        Message("system", "Be brief."),
        Message("user", "One?"),
        Message("assistant", "Hello there"),
        Message("user", "Two?"),
    )
    assert stage.engine.requests[-1].affinity == "s1"


async def test_a_history_too_long_loses_its_oldest_turns_and_stays_stored(stage):
    await stage.say("word " * 500)
    stored = await stage.say("word " * 500)
    assert (stored.finish.usage.dropped_turns, len(stored.session.turns)) == (1, 2)


async def test_a_turn_cut_short_is_not_remembered(stage):
    async with aclosing(stage.conversation.chat(asked())) as chunks:
        assert (await anext(chunks)).text == "Hello"
    assert await stage.store.get(S1) is None
    assert (stage.engine.in_flight, stage.engine.cancelled) == (0, 1)


async def test_a_turn_whose_reader_was_cancelled_is_not_remembered_and_lets_the_next_one_in(stage):
    stage.engine.gate.hold()
    turn = asyncio.create_task(stage.say("Hi"))
    await settle()
    turn.cancel()
    await asyncio.gather(turn, return_exceptions=True)
    assert await stage.store.get(S1) is None
    stage.engine.gate.open()
    assert (await stage.say("Again")).session.version == 1


@pytest.mark.parametrize("error", [OutOfMemory(), GenerationTimeout(timeout_s=300.0), ZeroDivisionError()])
async def test_a_turn_that_failed_is_not_remembered_and_lets_the_next_one_in(stage, error):
    await stage.say("One?")
    stage.engine.fail_with = error
    with pytest.raises(type(error)):
        await stage.say("Two?")
    assert await texts(stage) == ["One?", "Hello there"]
    stage.engine.fail_with = None
    await stage.say("Three?")
    assert await texts(stage) == ["One?", "Hello there", "Three?", "Hello there"]


async def test_a_chat_without_a_model_makes_no_session(make_stage):
    stage = await make_stage()
    with pytest.raises(ModelNotLoaded):
        await stage.say("Hi")
    assert await stage.store.get(S1) is None


async def test_a_new_system_prompt_is_for_new_sessions_only(stage):
    await stage.say("Hi", "old")
    await stage.sessions.set_system_prompt("You are a pirate.")
    old, new = await stage.say("Hi", "old"), await stage.say("Hi", "new")
    assert (old.session.system_prompt, new.session.system_prompt) == ("Be brief.", "You are a pirate.")
    assert stage.engine.requests[-1].prompt.messages[0] == Message("system", "You are a pirate.")


async def test_an_empty_system_prompt_is_one_too(stage):
    await stage.sessions.set_system_prompt("")
    assert (await stage.say("Hi")).session.system_prompt == ""


async def test_a_session_without_a_name_gets_one_that_nobody_can_guess(stage):
    names = [(await stage.say("Hi", None)).session.ref.session_id for _ in range(50)]
    assert len(set(names)) == 50
    assert all(re.fullmatch(r"[A-Za-z0-9._~-]{1,128}", name) for name in names)
    assert min(len(base64.urlsafe_b64decode(name + "=" * (-len(name) % 4))) for name in names) * 8 >= 128


async def test_every_turn_has_an_id_of_its_own(stage):
    session = [await stage.say("Hi") for _ in range(20)][-1].session
    assert len({turn.turn_id for turn in session.turns}) == 20


async def test_a_store_that_does_not_answer_is_told_before_any_work(stage):
    stage.store.errors["begin"] = SessionStoreUnavailable()
    with pytest.raises(SessionStoreUnavailable):
        await stage.say("Hi")
    assert stage.engine.requests == []


@pytest.mark.parametrize("error", [SessionStoreUnavailable(), HistoryNotSaved(problem="it is full")])
async def test_a_turn_that_could_not_be_stored_is_told_so_after_its_text(stage, error):
    stage.store.errors["commit"] = error
    heard = []

    async def hear():
        async with aclosing(stage.conversation.chat(asked())) as items:
            async for item in items:
                heard.append(item.text)  # noqa: PERF401 - what was heard before the error counts

    with pytest.raises(HistoryNotSaved):
        await hear()
    assert heard == ["Hello", " there"]
    assert await stage.store.get(S1) is None


async def test_a_session_outlives_its_model(stage):
    await stage.say("One?")
    await stage.load("other")
    stored = await stage.say("Two?")
    assert [turn.model for turn in stored.session.turns] == ["gpt2", "other"]


async def test_a_turn_whose_model_died_is_not_remembered_and_lets_the_next_one_in(stage):
    stage.engine.gate.hold()
    turn = asyncio.create_task(stage.say("Hi"))
    await settle()
    stage.engine.crash()
    stage.engine.gate.open()
    with pytest.raises(ModelCrashed):
        await turn
    await stage.say("Again")
    assert await texts(stage) == ["Again", "Hello there"]
