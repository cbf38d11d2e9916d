"""Sessions that were taken along and come back, their pages, and the system prompt of new ones."""

from __future__ import annotations

import pytest

from inferapi.domain.chat import SessionLimits, SessionRef
from inferapi.domain.errors import (
    InvalidRequest,
    SessionExists,
)
from session_contract import make_turn

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


async def test_what_was_exported_can_be_restored_and_talked_to(stage):
    before = await stage.sessions.read(S1)
    await stage.sessions.delete(S1)
    restored = await stage.sessions.restore(S1, before.system_prompt, before.turns)
    assert (restored.messages(), restored.turns, restored.title) == (before.messages(), before.turns, "One?")
    assert await stage.sessions.read(S1) == restored
    stored = await stage.say("Four?")
    assert [turn.user for turn in stored.session.turns] == [*TALK, "Four?"]


async def test_nothing_is_restored_over_a_session(stage):
    with pytest.raises(SessionExists):
        await stage.sessions.restore(S1, "Be bad.", [])
    assert await asked(stage) == TALK


async def test_what_is_beyond_the_limits_is_not_restored(make_stage):
    stage = await make_stage(limits=SessionLimits(3, 100))
    many = [make_turn(number, user="a", assistant="b") for number in range(4)]
    large = [make_turn(1, user="a", assistant="b"), make_turn(2, user="é" * 25, assistant="b" * 49)]
    no_question_of_a_chat = [make_turn(user="a" * 101, assistant="")]
    for turns in (many, large, no_question_of_a_chat):
        with pytest.raises(InvalidRequest, match="at most 3 turns and 100 bytes"):
            await stage.sessions.restore(S1, "", turns)
    assert (await stage.sessions.restore(S1, "", many[:3])).turns == tuple(many[:3])
    large[1] = make_turn(2, user="é" * 25, assistant="b" * 48)
    assert (await stage.sessions.restore(S2, "", large)).turns == tuple(large)


async def test_whatever_a_session_holds_can_be_restored(make_stage):
    stage = await make_stage(limits=SessionLimits(3, 100))
    await stage.load()
    held = (await stage.say("x" * 95)).session  # with its answer 106 bytes: the newest turn is always kept
    await stage.sessions.delete(S1)
    assert (await stage.sessions.restore(S1, held.system_prompt, held.turns)).turns == held.turns


async def test_pages_tell_each_session_of_their_owner_once_the_last_used_first(make_stage):
    stage = await make_stage()
    await stage.load()
    for number in range(45):
        await stage.say(f"Question {number}", f"s{number}", owner="ann")
        await stage.clock.advance(1)
    await stage.say("Mine", "b", owner="bob")
    pages, cursor = [], None
    while cursor or not pages:
        page = await stage.sessions.page("ann", 20, cursor)
        pages.append([summary.session_id for summary in page.sessions])
        cursor = page.next_cursor
    assert [len(page) for page in pages] == [20, 20, 5]
    assert [name for page in pages for name in page] == [f"s{number}" for number in reversed(range(45))]


async def test_without_one_that_was_set_the_system_prompt_is_the_default(stage):
    assert await stage.sessions.system_prompt() == "Be brief."
    for prompt in ("Be kind.", ""):
        await stage.sessions.set_system_prompt(prompt)
        assert await stage.sessions.system_prompt() == prompt
