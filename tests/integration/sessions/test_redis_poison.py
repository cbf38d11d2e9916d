"""Keys that hold what no server of ours writes: they hurt their own session alone, and it can be deleted."""

import json

import pytest

from inferapi.domain.chat import Session, SessionChange, SessionRef
from inferapi.domain.errors import HistoryNotSaved, SessionExists, SessionUnreadable
from session_contract import LONG_S, S1, adding, must_begin, write

NOW_S = 1_700_000_000.0
S2 = SessionRef("", "s2")
KEY = "inferapi:session::s1:"
INDEX = "inferapi:sessions:"


def head(server, **changes):
    return json.dumps(json.loads(server.cli("GET", f"{KEY}head")) | changes)


POISONS = {
    "a head of another type": lambda server: (("UNLINK", f"{KEY}head"), ("RPUSH", f"{KEY}head", "x")),
    "a head that is no JSON": lambda server: (("SET", f"{KEY}head", "{"),),
    "a head that is no text": lambda server: (("SET", f"{KEY}head", b"\xff\xfe"),),
    "a head of another shape": lambda server: (("SET", f"{KEY}head", "[]"),),
    "a head of a later version": lambda server: (("SET", f"{KEY}head", head(server, v=2)),),
    "a head with an unknown field": lambda server: (("SET", f"{KEY}head", head(server, color="red")),),
    "turns of another type": lambda server: (("UNLINK", f"{KEY}turns"), ("SET", f"{KEY}turns", "x")),
    "a turn that is no JSON": lambda server: (("LSET", f"{KEY}turns", 0, "{"),),
    "a turn of a later version": lambda server: (("LSET", f"{KEY}turns", 1, '{"v": 2}'),),
    "a turn that is missing": lambda server: (("LPOP", f"{KEY}turns"),),
    "turns that are all missing": lambda server: (("UNLINK", f"{KEY}turns"),),
    "a turn too many": lambda server: (("RPUSH", f"{KEY}turns", server.cli("LINDEX", f"{KEY}turns", 0)),),
}
UNSEEN_BY_A_WRITE = {"a turn that is no JSON", "a turn of a later version"}
"""A write does not read the turns. The session is unreadable before it, and after."""
LEASE_POISONS = {
    "a lease of another type": lambda server: (("RPUSH", f"{KEY}lease", "x"),),
    "a counter of another type": lambda server: (("UNLINK", f"{KEY}fence"), ("RPUSH", f"{KEY}fence", "x")),
    "a counter that is no number": lambda server: (("SET", f"{KEY}fence", "many"),),
    "a counter at its end": lambda server: (("SET", f"{KEY}fence", 2**63 - 1),),
}


@pytest.fixture
async def store(redis_server, open_store):
    """With a session of two turns, and another one."""
    store = open_store(redis_server.url)
    await write(store, S2, adding(7), NOW_S - 1)
    await write(store, S1, adding(1), NOW_S)
    await write(store, S1, adding(2), NOW_S)
    return store


def poison(server, commands):
    for command in commands:
        server.cli(*command)


async def check_others_live_and_it_can_be_deleted(store):
    assert await write(store, S2, adding(8), NOW_S) == await store.get(S2)
    assert "s2" in [line.session_id for line in (await store.page("", 10, None)).sessions]
    assert await store.delete(S1) is True
    assert await store.get(S1) is None
    assert [line.session_id for line in (await store.page("", 10, None)).sessions] == ["s2"]


@pytest.mark.parametrize("name", POISONS)
async def test_a_damaged_session_is_told_and_can_be_deleted(redis_server, store, name):
    poison(redis_server, POISONS[name](redis_server))
    with pytest.raises(SessionUnreadable):
        await store.get(S1)
    with pytest.raises(SessionUnreadable):
        await store.begin(S1, "a", LONG_S)
    await store.end(S1, "a")
    with pytest.raises(SessionExists):
        await store.create(Session(S1, "").copy(S1, [], NOW_S))
    await check_others_live_and_it_can_be_deleted(store)
    anew = await write(store, S1, adding(3), NOW_S)
    assert (anew.version, await store.get(S1)) == (1, anew)


@pytest.mark.parametrize("name", sorted(POISONS.keys() - UNSEEN_BY_A_WRITE))
async def test_a_session_that_is_damaged_during_its_turn_is_not_written(redis_server, store, name):
    opened = await must_begin(store, S1)
    poison(redis_server, POISONS[name](redis_server))
    before = {key: redis_server.cli("DUMP", f"{KEY}{key}") for key in ("head", "turns")}
    with pytest.raises(HistoryNotSaved):
        await store.commit(opened.lease, opened.session, adding(3), NOW_S)
    assert {key: redis_server.cli("DUMP", f"{KEY}{key}") for key in ("head", "turns")} == before
    await check_others_live_and_it_can_be_deleted(store)


@pytest.mark.parametrize("name", LEASE_POISONS)
async def test_a_session_whose_lease_or_counter_is_damaged_can_be_read_and_deleted(redis_server, store, name):
    poison(redis_server, LEASE_POISONS[name](redis_server))
    with pytest.raises(SessionUnreadable):
        await store.begin(S1, "a", LONG_S)
    read = await store.get(S1)
    assert [turn.turn_id for turn in read.turns] == ["turn-1", "turn-2"]
    await store.end(S1, "a")
    assert await store.renew((await must_begin(store, S2)).lease, LONG_S) is True
    assert await store.delete(S1) is True
    assert await store.get(S1) is None
    assert (await write(store, S1, adding(1), NOW_S)).version == 1


async def test_a_lease_that_is_damaged_is_lost(redis_server, store):
    opened = await must_begin(store, S1)
    redis_server.cli("UNLINK", f"{KEY}lease")
    redis_server.cli("RPUSH", f"{KEY}lease", "a")
    assert await store.renew(opened.lease, LONG_S) is False
    await store.end(S1, "a")
    with pytest.raises(HistoryNotSaved):
        await store.commit(opened.lease, opened.session, adding(3), NOW_S)


async def test_a_session_beyond_any_size_is_told_and_can_be_deleted(redis_server, store):
    redis_server.cli("RPUSH", f"{KEY}turns", b"x" * (65 * 2**20))
    with pytest.raises(SessionUnreadable) as caught:
        await store.get(S1)
    assert "67108864 bytes" in caught.value.message
    with pytest.raises(SessionUnreadable):
        await store.begin(S1, "a", LONG_S)
    await check_others_live_and_it_can_be_deleted(store)


async def test_an_index_of_another_type_keeps_no_turn_from_being_stored_and_is_made_anew(redis_server, store):
    redis_server.cli("UNLINK", INDEX)
    redis_server.cli("SET", INDEX, "x")
    stored = await write(store, S1, adding(3), NOW_S)
    assert await store.get(S1) == stored
    assert [line.session_id for line in (await store.page("", 10, None)).sessions] == ["s1"]


async def test_an_index_of_another_type_is_an_empty_list_and_hinders_no_deletion(redis_server, store):
    redis_server.cli("UNLINK", INDEX)
    redis_server.cli("RPUSH", INDEX, "x")
    assert await store.delete(S1) is True
    assert (await store.page("", 10, None)).sessions == ()
    await write(store, S2, adding(8), NOW_S)
    assert [line.session_id for line in (await store.page("", 10, None)).sessions] == ["s2"]


async def test_rows_of_the_index_that_are_no_ids_are_taken_out(redis_server, store):
    redis_server.cli("ZADD", INDEX, NOW_S, b"\xff\xfe", NOW_S, "", NOW_S, "a:b", "inf", "s3", "-inf", "s4")
    assert [line.session_id for line in (await store.page("", 10, None)).sessions] == ["s1", "s2"]
    assert redis_server.cli("ZCARD", INDEX) == 2


async def test_a_system_prompt_of_another_type_counts_as_none(redis_server, store):
    redis_server.cli("RPUSH", "inferapi:system_prompt", "x")
    assert await store.system_prompt() is None
    assert (await must_begin(store, S1)).system_prompt is None
    await store.set_system_prompt("Be brief.")
    assert await store.system_prompt() == "Be brief."


async def test_turns_without_a_head_are_no_part_of_a_new_session(redis_server, store):
    redis_server.cli("UNLINK", f"{KEY}head")
    assert await store.get(S1) is None
    anew = await write(store, S1, adding(3), NOW_S)
    assert [turn.turn_id for turn in (await store.get(S1)).turns] == ["turn-3"]
    await write(store, S1, SessionChange(dropped_newest=1), NOW_S)
    assert anew.version == 1
