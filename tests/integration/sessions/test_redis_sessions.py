"""The store on a real Redis: every sentence of the contract, and what it leaves in Redis."""

import asyncio

import pytest

from inferapi.adapters.system_clock import SystemClock
from inferapi.domain.chat import Session, SessionRef
from session_contract import LONG_S, S1, SessionStoreContract, adding, make_turn, must_begin, write
from session_list_contract import SessionExpiryContract, SessionListContract, every_page, listed

ALICE = SessionRef("alice", "s1")
NOW_S = 1_700_000_000.0


class OnRedis:
    """Redis keeps its own time, so time passes for real."""

    @pytest.fixture
    def clock(self):
        return SystemClock()

    @pytest.fixture
    async def store(self, redis_server, open_store):
        return open_store(redis_server.url, self.TTL_S)

    async def pass_time(self, clock, duration_s):
        await clock.sleep(duration_s)


class TestTurns(OnRedis, SessionStoreContract):
    pass


class TestLists(OnRedis, SessionListContract):
    pass


class TestExpiry(OnRedis, SessionExpiryContract):
    pass


async def test_every_key_has_a_time_to_live_but_the_system_prompt(redis_server, open_store):
    store = open_store(redis_server.url, ttl_s=100.0)
    await store.set_system_prompt("Be brief.")
    await write(store, ALICE, adding(1), NOW_S)
    await store.create(Session(S1, "").copy(S1, [make_turn()], NOW_S))
    await must_begin(store, ALICE, "a", lease_s=10.0)
    prefix = "inferapi:session:alice:s1:"
    ttls_s = {key: redis_server.cli("TTL", key) for key in redis_server.cli("SCAN", 0, "COUNT", 1000)[1]}
    assert ttls_s.pop("inferapi:system_prompt") > 300_000_000
    assert 0 < ttls_s.pop(f"{prefix}lease") <= 10
    assert ttls_s.pop(f"{prefix}fence") > 100
    assert set(ttls_s) == {
        *(f"{prefix}head", f"{prefix}turns", "inferapi:sessions:alice"),
        *("inferapi:session::s1:head", "inferapi:session::s1:turns", "inferapi:sessions:"),
    }
    assert all(90 < ttl_s <= 100 for ttl_s in ttls_s.values())


async def test_of_a_deleted_session_its_counter_is_left_alone(redis_server, open_store):
    store = open_store(redis_server.url)
    await write(store, ALICE, adding(1), NOW_S)
    await must_begin(store, ALICE)
    await store.delete(ALICE)
    assert redis_server.cli("SCAN", 0, "COUNT", 1000)[1] == ["inferapi:session:alice:s1:fence"]


async def test_sessions_that_are_over_leave_the_index_when_a_page_is_read(redis_server, open_store):
    store = open_store(redis_server.url)
    for number in range(50):
        ref = SessionRef("", f"s{number:02}")
        await store.create(Session(ref, "").copy(ref, [make_turn()], NOW_S + number))
        if number % 10:
            redis_server.cli("UNLINK", f"inferapi:session::s{number:02}:head")
    assert await listed(store) == ["s40", "s30", "s20", "s10", "s00"]
    assert redis_server.cli("ZCARD", "inferapi:sessions:") == 5


async def test_sessions_that_must_be_over_leave_the_index_with_the_next_write(redis_server, open_store):
    store = open_store(redis_server.url)
    redis_server.cli("ZADD", "inferapi:sessions:", NOW_S - 100 * 24 * 3600, "old")
    await write(store, S1, adding(1), NOW_S)
    assert redis_server.cli("ZRANGE", "inferapi:sessions:", 0, -1) == ["s1"]


async def test_pages_go_on_beyond_any_number_of_dead_rows(redis_server, open_store):
    store = open_store(redis_server.url)
    await write(store, S1, adding(1), NOW_S)
    redis_server.cli("ZADD", "inferapi:sessions:", *(part for n in range(900) for part in (NOW_S + 9, f"dead{n}")))
    first = await store.page("", 5, None)
    assert first.sessions == ()
    assert [ids for ids in await every_page(store, "", 5) if ids] == [["s1"]]


async def test_a_token_is_newer_than_the_last_writers_even_if_the_counter_was_evicted(redis_server, open_store):
    store = open_store(redis_server.url)
    for number in range(3):
        await write(store, S1, adding(number), NOW_S)
    redis_server.cli("UNLINK", "inferapi:session::s1:fence")
    assert (await must_begin(store, S1)).lease.token == 4


async def test_whoever_does_not_know_that_it_has_the_lease_can_begin_again(redis_server, open_store):
    store = open_store(redis_server.url)
    await must_begin(store, S1, "a")
    assert await store.begin(S1, "a", LONG_S) is not None
    assert await store.begin(S1, "b", LONG_S) is None


async def test_hundreds_of_turns_at_once_wait_for_a_connection(redis_server, open_store):
    store = open_store(redis_server.url)
    refs = [SessionRef("", f"s{number}") for number in range(300)]
    await asyncio.gather(*(write(store, ref, adding(1), NOW_S) for ref in refs))
    assert sorted(await listed(store)) == sorted(ref.session_id for ref in refs)
    clients = redis_server.cli("INFO", "clients")["connected_clients"]
    assert clients <= 64 + 1


async def test_the_database_of_the_url_is_the_one_that_is_used(redis_server, open_store):
    await write(open_store(f"{redis_server.url}/3"), S1, adding(1), NOW_S)
    assert await open_store(redis_server.url).get(S1) is None
    assert await open_store(f"{redis_server.url}/3").get(S1) is not None


async def test_what_the_url_says_of_time_and_protocol_does_not_matter(redis_server, open_store):
    query = "decode_responses=yes&protocol=3&socket_timeout=60&max_connections=1&health_check_interval=1&timeout=60"
    store = open_store(f"{redis_server.url}?{query}")
    stored = await write(store, S1, adding(1), NOW_S)
    assert await store.get(S1) == stored


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1", "redis://127.0.0.1:port", "redis://127.0.0.1?db=x", "redis://h?x=y"]
)
def test_a_malformed_url_is_refused_before_anything_connects(open_store, url):
    with pytest.raises(ValueError):
        open_store(url)
