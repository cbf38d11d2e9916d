"""Connections that break in the middle of a write: what is told of it is true, and it is stored once or never."""

import asyncio
from contextlib import suppress

import pytest
from redis_proxy import redis_proxy

from inferapi.domain.chat import Session, SessionRef
from inferapi.domain.errors import HistoryNotSaved, SessionStoreUnavailable
from session_contract import LONG_S, S1, adding, make_turn, must_begin, write

NOW_S = 1_700_000_000.0


async def check_the_next_turn_is_stored(store, expected=None):
    """On top of ``expected``."""
    assert await store.get(S1) == expected
    stored = await write(store, S1, adding(99), NOW_S)
    assert await store.get(S1) == stored


@pytest.mark.parametrize("fate", ["lose request", "lose reply"])
@pytest.mark.parametrize("breaks", [1, 2])
async def test_a_commit_whose_connection_breaks_is_stored_once(redis_server, open_store, fate, breaks):
    async with redis_proxy(redis_server.port) as (proxy, url):
        store = open_store(url)
        before = await write(store, S1, adding(1), NOW_S)
        opened = await must_begin(store, S1)
        proxy.fates = [fate] * breaks
        stored = await store.commit(opened.lease, before, adding(2), NOW_S)
        assert proxy.fates == (["lose reply"] if (fate, breaks) == ("lose reply", 2) else [])  # it looked first
        assert [turn.turn_id for turn in stored.turns] == ["turn-1", "turn-2"]
        proxy.fates = []
        await check_the_next_turn_is_stored(store, stored)
        await store.aclose()


@pytest.mark.parametrize("fate", ["lose request", "lose reply"])
async def test_a_session_whose_creation_breaks_is_stored_once(redis_server, open_store, fate):
    async with redis_proxy(redis_server.port) as (proxy, url):
        store = open_store(url)
        session = Session(S1, "Be brief.").copy(S1, [make_turn(1), make_turn(2)], NOW_S)
        await store.ping()
        proxy.fates = [fate]
        await store.create(session)
        await check_the_next_turn_is_stored(store, session)
        await store.aclose()


async def test_a_commit_that_arrives_after_it_was_sent_again_changes_nothing(redis_server, open_store):
    async with redis_proxy(redis_server.port) as (proxy, url):
        store = open_store(url)
        opened = await must_begin(store, S1)
        proxy.fates = ["late"]
        stored = await store.commit(opened.lease, Session(S1, ""), adding(1), NOW_S)
        (answer,) = await proxy.deliver_late()
        assert answer.endswith(b"*-1\r\n")  # what it watched had changed
        await check_the_next_turn_is_stored(store, stored)
        await store.aclose()


async def test_a_turn_that_cannot_be_stored_is_not_stored_later(redis_server, open_store):
    async with redis_proxy(redis_server.port) as (proxy, url):
        store = open_store(url)
        opened = await must_begin(store, S1, "a")
        proxy.fates = ["late"] * 3
        with pytest.raises(SessionStoreUnavailable):
            await store.commit(opened.lease, Session(S1, ""), adding(1), NOW_S)
        await store.end(S1, "a")
        answers = await proxy.deliver_late()
        assert [answer.endswith(b"*-1\r\n") for answer in answers] == [True] * 3
        await check_the_next_turn_is_stored(store)
        await store.aclose()


async def test_a_commit_that_others_built_upon_before_it_could_look_counts_as_stored(redis_server, open_store):
    async with redis_proxy(redis_server.port) as (proxy, url):
        store, others = open_store(url), open_store(redis_server.url)
        opened = await must_begin(store, S1)
        looks = asyncio.Event()
        proxy.fates = ["lose reply"]
        serve = proxy.serve

        async def serve_later(reader, writer):
            await looks.wait()
            await serve(reader, writer)

        proxy.serve = serve_later  # the connection on which it looks
        committing = asyncio.create_task(store.commit(opened.lease, Session(S1, ""), adding(1), NOW_S))
        while (lease := await others.begin(S1, "b", LONG_S)) is None:  # noqa: ASYNC110 - Redis tells nobody
            await asyncio.sleep(0.005)
        stored = await others.commit(lease.lease, lease.session, adding(2), NOW_S)
        looks.set()
        assert [turn.turn_id for turn in (await committing).turns] == ["turn-1"]
        assert await store.get(S1) == stored
        await store.aclose()


async def test_connections_that_are_killed_between_begin_and_commit_do_no_harm(redis_server, open_store):
    store = open_store(redis_server.url)
    opened = await must_begin(store, S1)
    redis_server.cli("CLIENT", "KILL", "TYPE", "normal")
    stored = await store.commit(opened.lease, Session(S1, ""), adding(1), NOW_S)
    await check_the_next_turn_is_stored(store, stored)


class _Storm:
    """Turns while connections are killed, and what was told of each."""

    def __init__(self, server, store):
        self._server = server
        self._store = store
        self.stored, self.not_stored, self.unknown = set(), set(), set()

    async def rage(self):
        while True:
            await asyncio.to_thread(self._server.cli, "CLIENT", "KILL", "TYPE", "normal")
            await asyncio.sleep(0.002)

    async def turn(self, ref, number):
        holder = f"h{number}"
        try:
            opened = await self._store.begin(ref, holder, LONG_S)
        except SessionStoreUnavailable:
            await self._end(ref, holder)
            return
        assert opened is not None
        try:
            await self._store.commit(opened.lease, opened.session or Session(ref, ""), adding(number), NOW_S)
            self.stored.add(f"turn-{number}")
        except HistoryNotSaved:
            self.not_stored.add(f"turn-{number}")
        except SessionStoreUnavailable:
            self.unknown.add(f"turn-{number}")
            await self._end(ref, holder)

    async def _end(self, ref, holder):
        is_ended = False
        while not is_ended:
            with suppress(SessionStoreUnavailable):
                await self._store.end(ref, holder)
                is_ended = True


async def test_in_a_storm_of_killed_connections_what_is_told_of_each_turn_is_true(redis_server, open_store):
    storm = _Storm(redis_server, open_store(redis_server.url))
    refs = [SessionRef("", f"s{number}") for number in range(4)]

    async def turns(ref, first):
        for number in range(first, first + 100):
            await storm.turn(ref, number)

    raging = asyncio.create_task(storm.rage())
    await asyncio.gather(*(turns(ref, 1000 * number) for number, ref in enumerate(refs)))
    raging.cancel()
    await asyncio.gather(raging, return_exceptions=True)

    calm = open_store(redis_server.url)
    read = [turn.turn_id for ref in refs for turn in (await calm.get(ref)).turns]
    assert len(read) == len(set(read))
    assert storm.stored <= set(read) <= storm.stored | storm.unknown
    assert not storm.not_stored & set(read)
    assert len(storm.stored) > 50


async def test_a_turn_that_is_cancelled_at_any_moment_leaves_the_store_in_order(redis_server, open_store):
    store = open_store(redis_server.url)
    before = await write(store, S1, adding(0), NOW_S)
    for number in range(1, 60):
        opened = await must_begin(store, S1, f"h{number}")
        committing = asyncio.create_task(store.commit(opened.lease, opened.session, adding(number), NOW_S))
        for _ in range(number % 20):
            await asyncio.sleep(0)
        committing.cancel()
        await asyncio.gather(committing, return_exceptions=True)
        await store.end(S1, f"h{number}")
        after = await store.get(S1)
        assert after in (before, before.changed(adding(number), NOW_S))
        before = after
    await check_the_next_turn_is_stored(store, before)
