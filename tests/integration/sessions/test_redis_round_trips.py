"""What a turn costs: counted at the socket, and by the server."""

import pytest
from redis_proxy import redis_proxy

from inferapi.adapters.redis_sessions import COMMANDS
from inferapi.domain.chat import Session, SessionRef
from session_contract import LONG_S, S1, SessionChange, adding, make_turn, must_begin, write

AT_S = 1_700_000_000.0


@pytest.mark.parametrize("turns", [0, 1, 100, 1000])
async def test_a_turn_costs_four_round_trips_however_long_its_history_is(redis_server, open_store, turns):
    async with redis_proxy(redis_server.port) as (proxy, url):
        store = open_store(url)
        if turns:
            history = [make_turn(number, assistant="word " * 200) for number in range(turns)]
            await store.create(Session(S1, "Be brief.").copy(S1, history, AT_S))
        await store.ping()  # connects
        proxy.round_trips = 0
        stored = await write(store, S1, adding(turns), AT_S)
        assert proxy.round_trips == 4
        assert len(stored.turns) == turns + 1
        assert await store.get(S1) == stored
        await store.aclose()


async def test_a_new_connection_costs_no_round_trip_of_its_own(redis_server, open_store):
    async with redis_proxy(redis_server.port) as (proxy, url):
        store = open_store(url)
        await write(store, S1, adding(1), AT_S)
        assert proxy.round_trips == 4
        await store.aclose()


async def test_an_attempt_that_lost_costs_one_round_trip_and_reads_no_history(redis_server, open_store):
    async with redis_proxy(redis_server.port) as (proxy, url):
        store = open_store(url)
        await must_begin(store, S1, "a")
        proxy.round_trips = 0
        assert await store.begin(S1, "b", LONG_S) is None
        assert proxy.round_trips == 1
        await store.aclose()


async def test_a_page_of_living_sessions_costs_two_round_trips(redis_server, open_store):
    async with redis_proxy(redis_server.port) as (proxy, url):
        store = open_store(url)
        for number in range(30):
            ref = SessionRef("", f"s{number}")
            await store.create(Session(ref, "").copy(ref, [make_turn()], AT_S + number))
        proxy.round_trips = 0
        page = await store.page("", 20, None)
        assert (len(page.sessions), proxy.round_trips) == (20, 2)
        await store.aclose()


async def test_only_the_commands_of_the_list_are_sent_and_none_that_searches_or_runs_scripts(redis_server, open_store):
    redis_server.cli("CONFIG", "RESETSTAT")
    store = open_store(redis_server.url)
    opened = await must_begin(store, S1, "a")
    await store.renew(opened.lease, LONG_S)
    await store.end(S1, "b")
    await store.end(S1, "a")
    await write(store, S1, adding(1), AT_S)
    await write(store, S1, adding(2, dropped_oldest=1), AT_S)
    await write(store, S1, SessionChange(dropped_newest=1), AT_S)
    await store.create(Session(S1, "").copy(SessionRef("", "s2"), [make_turn()], AT_S))
    redis_server.cli("UNLINK", "inferapi:session::s2:head")
    await store.page("", 10, None)
    await store.get(S1)
    await store.delete(S1)
    await store.set_system_prompt("Be brief.")
    await store.system_prompt()
    await store.ping()
    await store.aclose()
    seen = {name.removeprefix("cmdstat_") for name in redis_server.cli("INFO", "commandstats")}
    assert seen - {"config", "config|resetstat", "info"} == set(COMMANDS)
