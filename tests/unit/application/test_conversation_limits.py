"""How much of a conversation is kept."""

from __future__ import annotations

import pytest

from inferapi.domain.chat import SessionLimits, SessionRef
from inferapi.domain.errors import InvalidRequest

S1 = SessionRef("", "s1")


@pytest.fixture
def make_loaded_stage(make_stage):
    """Makes stages with a model, whose sessions keep so many turns and bytes."""

    async def make(max_turns: int = 1000, max_bytes: int = 10**6):
        stage = await make_stage(limits=SessionLimits(max_turns, max_bytes))
        await stage.load()
        return stage

    return make


async def test_a_text_larger_than_a_session_is_refused_before_any_work(make_loaded_stage):
    stage = await make_loaded_stage(max_bytes=4096)
    with pytest.raises(InvalidRequest, match="text: a session holds at most 4096 bytes"):
        await stage.say("é" * 2049)
    assert (stage.engine.requests, stage.store.calls) == ([], [])
    assert (await stage.say("é" * 2048)).session.version == 1


async def test_beyond_the_turns_that_a_session_keeps_the_oldest_are_forgotten(make_loaded_stage):
    stage = await make_loaded_stage(max_turns=3)
    told = [(await stage.say(f"{number}?")).session for number in range(5)]
    assert [[turn.user for turn in session.turns] for session in told] == [
        ["0?"],
        ["0?", "1?"],
        ["0?", "1?", "2?"],
        ["1?", "2?", "3?"],
        ["2?", "3?", "4?"],
    ]
    assert [session.forgotten_turns for session in told] == [0, 0, 0, 1, 2]
    assert await stage.store.get(S1) == told[-1]


async def test_beyond_the_bytes_that_a_session_keeps_as_many_of_the_oldest_as_needed_are_forgotten(make_loaded_stage):
    stage = await make_loaded_stage(max_bytes=100)  # an answer has 11 bytes
    for text in ("a" * 29, "é" * 10, "c" * 18):  # 40 + 31 + 29 bytes
        await stage.say(text)
    assert (await stage.store.get(S1)).forgotten_turns == 0
    session = (await stage.say("d" * 30)).session  # 41 more: the two oldest have to go
    assert ([turn.user[0] for turn in session.turns], session.forgotten_turns) == (["c", "d"], 2)


async def test_a_turn_that_is_larger_than_the_limit_with_its_answer_is_kept_alone(make_loaded_stage):
    stage = await make_loaded_stage(max_bytes=100)
    await stage.say("a")
    session = (await stage.say("b" * 95)).session
    assert ([turn.user[0] for turn in session.turns], session.forgotten_turns) == (["b"], 1)
