"""What owners do with their sessions beside talking."""

from __future__ import annotations

import asyncio
import re

import pytest

from fakes import settle
from inferapi.domain.chat import SessionRef
from inferapi.domain.errors import (
    HistoryNotSaved,
    InvalidRequest,
    SessionBusy,
    SessionExists,
    SessionNotFound,
    SessionStoreUnavailable,
)

S1, S2 = SessionRef("", "s1"), SessionRef("", "s2")
TALK = ["One?", "Two?", "Three?"]


@pytest.fixture
async def stage(stage):
    """With a session of three turns."""
    await stage.load()
    for text in TALK:
        await stage.say(text)
        await stage.clock.advance(1)
    return stage


async def asked(stage, ref: SessionRef = S1) -> list[str]:
    """What the user said in a session."""
    return [turn.user for turn in (await stage.sessions.read(ref)).turns]


async def turn_in_progress(stage, text: str, session_id: str = "s1") -> asyncio.Task:
    stage.engine.gate.hold()
    turn = asyncio.create_task(stage.say(text, session_id))
    await settle()
    assert not turn.done()
    return turn


async def test_reading_a_session_gives_what_the_last_turn_told(stage):
    stored = await stage.say("Four?")
    assert await stage.sessions.read(S1) == stored.session


@pytest.mark.parametrize("ref", [SessionRef("", "nobody"), SessionRef("ann", "s1")])
async def test_a_session_that_is_not_there_or_of_another_owner_is_not_found(stage, ref):
    sessions = stage.sessions
    for use in (
        sessions.read(ref),
        sessions.delete(ref),
        sessions.fork(ref, None, None),
        sessions.fork(ref, 1, "s9"),
        sessions.rewind(ref, 1),
    ):
        with pytest.raises(SessionNotFound):
            await use
    assert await asked(stage) == TALK
    assert await stage.store.delete(ref) is False  # not even a lease was left


async def test_a_session_that_was_deleted_is_gone_and_its_id_free(stage):
    await stage.sessions.delete(S1)
    with pytest.raises(SessionNotFound):
        await stage.sessions.read(S1)
    stored = await stage.say("Anew?")
    assert ([turn.user for turn in stored.session.turns], stored.session.version) == (["Anew?"], 1)


async def test_a_fork_has_all_turns_unless_told_otherwise(stage):
    session = await stage.sessions.read(S1)
    fork = await stage.sessions.fork(S1, None, "s2")
    assert (fork.ref, fork.system_prompt, fork.turns) == (S2, session.system_prompt, session.turns)
    assert (fork.created_at_s, fork.used_at_s) == (stage.clock.wall_s(),) * 2
    assert await stage.sessions.read(S2) == fork


@pytest.mark.parametrize("count", [0, 1, 2, 3])
async def test_a_fork_may_have_the_first_turns_only(stage, count):
    await stage.sessions.fork(S1, count, "s2")
    assert await asked(stage, S2) == TALK[:count]


async def test_a_fork_goes_on_independently(stage):
    await stage.sessions.fork(S1, 1, "s2")
    await stage.say("Other?", "s2")
    await stage.say("Four?", "s1")
    assert await asked(stage) == [*TALK, "Four?"]
    assert await asked(stage, S2) == ["One?", "Other?"]
    await stage.sessions.delete(S1)
    assert await asked(stage, S2) == ["One?", "Other?"]


async def test_a_fork_belongs_to_its_owner(stage):
    await stage.say("Hers", "s1", owner="ann")
    fork = await stage.sessions.fork(SessionRef("ann", "s1"), None, "s2")
    assert fork.ref == SessionRef("ann", "s2")
    assert await asked(stage, SessionRef("ann", "s2")) == ["Hers"]
    with pytest.raises(SessionNotFound):
        await stage.sessions.read(S2)


async def test_a_fork_keeps_its_system_prompt(stage):
    await stage.sessions.set_system_prompt("Be kind.")
    fork = await stage.sessions.fork(S1, 0, "s2")
    stored = await stage.say("Hi", "s2")
    assert fork.system_prompt == stored.session.system_prompt == "Be brief."


async def test_a_fork_without_a_name_gets_one_that_nobody_can_guess(stage):
    names = {(await stage.sessions.fork(S1, None, None)).ref.session_id for _ in range(20)}
    assert len(names) == 20
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{32}", name) for name in names)


async def test_a_fork_with_more_turns_than_there_are_is_refused(stage):
    with pytest.raises(InvalidRequest, match="turns: the session has 3"):
        await stage.sessions.fork(S1, 4, "s2")
    with pytest.raises(SessionNotFound):
        await stage.sessions.read(S2)


async def test_a_fork_takes_no_id_that_is_taken(stage):
    await stage.say("Mine", "s2")
    for new_id in ("s2", "s1"):
        with pytest.raises(SessionExists):
            await stage.sessions.fork(S1, None, new_id)
    assert await asked(stage, S2) == ["Mine"]


async def test_a_fork_takes_no_id_whose_first_turn_is_running(stage):
    turn = await turn_in_progress(stage, "Mine", "s2")
    with pytest.raises(SessionExists):
        await stage.sessions.fork(S1, None, "s2")
    stage.engine.gate.open()
    assert (await turn).session.version == 1


async def test_a_fork_during_a_turn_is_as_before_it(stage):
    turn = await turn_in_progress(stage, "Four?")
    await stage.sessions.fork(S1, None, "s2")
    stage.engine.gate.open()
    await turn
    assert (await asked(stage, S2), await asked(stage)) == (TALK, [*TALK, "Four?"])


@pytest.mark.parametrize("count", [1, 2, 3])
async def test_a_rewind_drops_the_last_turns(stage, count):
    rewound = await stage.sessions.rewind(S1, count)
    assert await stage.sessions.read(S1) == rewound
    assert ([turn.user for turn in rewound.turns], rewound.version) == (TALK[: 3 - count], 4)
    assert rewound.forgotten_turns == 0


async def test_after_a_rewind_the_model_no_longer_hears_what_was_dropped(stage):
    await stage.sessions.rewind(S1, 2)
    await stage.say("Again?")
    heard = [message.content for message in stage.engine.requests[-1].prompt.messages]
    assert heard == ["Be brief.", "One?", "Hello there", "Again?"]


async def test_a_session_rewound_to_its_beginning_is_titled_by_what_is_said_then(stage):
    await stage.sessions.rewind(S1, 3)
    await stage.say("Quite another thing")
    assert (await stage.sessions.read(S1)).title == "Quite another thing"


async def test_a_rewind_of_more_turns_than_there_are_is_refused_and_lets_the_next_turn_in(stage):
    with pytest.raises(InvalidRequest, match="turns: the session has 3"):
        await stage.sessions.rewind(S1, 4)
    await stage.say("Four?")
    assert await asked(stage) == [*TALK, "Four?"]


async def test_a_rewind_during_a_turn_waits_for_its_end(stage):
    turn = await turn_in_progress(stage, "Four?")
    rewinding = asyncio.create_task(stage.sessions.rewind(S1, 1))
    await settle()
    assert not rewinding.done()
    stage.engine.gate.open()
    await turn
    await rewinding
    assert await asked(stage) == TALK


async def test_a_rewind_does_not_wait_for_ever(stage, loop_time):
    turn = await turn_in_progress(stage, "Four?")
    rewinding = asyncio.create_task(stage.sessions.rewind(S1, 1))
    await loop_time(10.5)
    with pytest.raises(SessionBusy):
        await rewinding
    stage.engine.gate.open()
    assert len((await turn).session.turns) == 4


async def test_a_rewind_that_was_not_stored_does_not_speak_of_an_answer(stage):
    stage.store.errors["commit"] = SessionStoreUnavailable()
    with pytest.raises((HistoryNotSaved, SessionStoreUnavailable)) as caught:
        await stage.sessions.rewind(S1, 1)
    assert "answer was generated" not in caught.value.message
    del stage.store.errors["commit"]
    assert await asked(stage) == TALK
