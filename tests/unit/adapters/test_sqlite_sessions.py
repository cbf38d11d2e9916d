"""What ``SqliteSessionStore`` does: what every store does, and what is about its file."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing, contextmanager

import pytest
from blockbuster import BlockingError, blockbuster_ctx

from fakes import FakeClock
from inferapi.adapters import sqlite_sessions
from inferapi.adapters.sqlite_sessions import SqliteSessionStore
from inferapi.adapters.system_clock import SystemClock
from inferapi.domain.chat import Session, SessionRef
from inferapi.domain.errors import HistoryNotSaved, SessionUnreadable
from session_contract import S1, SessionStoreContract, adding, make_turn, must_begin, write
from session_list_contract import SessionExpiryContract, SessionListContract, listed

S2 = SessionRef("", "s2")


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "sessions.db"


@pytest.fixture
async def make_store(clock, path):
    stores = []

    def make(ttl_s=3600.0):
        stores.append(SqliteSessionStore(path, clock, ttl_s))
        return stores[-1]

    yield make
    for store in stores:
        await store.aclose()


@pytest.fixture
def store(make_store):
    return make_store()


class OnSqlite:
    @pytest.fixture
    def store(self, make_store):
        return make_store(self.TTL_S)

    async def pass_time(self, clock, duration_s):
        await clock.advance(duration_s)


class TestSqliteSessions(OnSqlite, SessionStoreContract):
    @pytest.fixture
    def clock(self):
        return FakeClock()


class TestSqliteLists(OnSqlite, SessionListContract):
    @pytest.fixture
    def clock(self):
        return FakeClock()


class TestSqliteExpiry(OnSqlite, SessionExpiryContract):
    @pytest.fixture
    def clock(self):
        return FakeClock()


def edit(path, statement, *values):
    """Somebody else's hand in the file."""
    with closing(sqlite3.connect(path)) as hand, hand:
        return hand.execute(statement, values).fetchall()


async def test_sessions_leases_and_the_system_prompt_outlive_the_store(make_store, clock):
    store = make_store()
    stored = await write(store, S1, adding(1), clock.wall_s())
    await store.set_system_prompt("You are a pirate.")
    opened = await must_begin(store, S1, "a")
    await store.aclose()

    other = make_store()
    assert await other.get(S1) == stored
    assert await other.begin(S1, "b", 60.0) is None
    longer = await other.commit(opened.lease, stored, adding(2), clock.wall_s())
    assert (longer.version, await other.system_prompt()) == (2, "You are a pirate.")


async def test_two_stores_on_one_file_see_the_same(make_store, clock):
    one, two = make_store(), make_store()
    stored = await write(one, S1, adding(1), clock.wall_s())
    assert await two.get(S1) == stored
    opened = await must_begin(one, S1, "a")
    assert await two.begin(S1, "b", 60.0) is None
    await two.end(S1, "a")
    with pytest.raises(HistoryNotSaved):
        await one.commit(opened.lease, stored, adding(2), clock.wall_s())
    await write(two, S2, adding(3), clock.wall_s())
    assert sorted(await listed(one)) == ["s1", "s2"]


async def test_turns_of_two_stores_that_contend_are_all_stored(make_store, clock):
    async def take_turn(store, holder):
        while (opened := await store.begin(S1, holder, 60.0)) is None:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.002)
        before = opened.session or Session(S1, "")
        await store.commit(opened.lease, before, adding(before.version), clock.wall_s())

    stores = [make_store() for _ in range(3)]
    await asyncio.gather(*(take_turn(store, f"{n}-{k}") for n, store in enumerate(stores) for k in range(5)))
    assert [turn.turn_id for turn in (await stores[0].get(S1)).turns] == [f"turn-{number}" for number in range(15)]


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE turns SET element = 'not JSON' WHERE session = 1 AND position = 1",
        "UPDATE turns SET element = X'fffe00' WHERE session = 1 AND position = 0",
        "UPDATE turns SET element = 7 WHERE session = 1 AND position = 0",
        "UPDATE turns SET element = replace(CAST(element AS TEXT), '\"v\":1', '\"v\":2') WHERE session = 1",
        "UPDATE turns SET element = '{}' WHERE session = 1",
        "DELETE FROM turns WHERE session = 1 AND position = 0",
        "INSERT INTO turns SELECT 1, 2, element FROM turns WHERE session = 1 AND position = 0",
    ],
)
async def test_a_damaged_turn_spoils_its_own_session_until_it_is_deleted(store, clock, path, damage):
    for number in (1, 2):
        await write(store, S1, adding(number), clock.wall_s())
    other = await write(store, S2, adding(1), clock.wall_s())
    edit(path, damage)
    with pytest.raises(SessionUnreadable):
        await store.get(S1)
    with pytest.raises(SessionUnreadable):
        await store.begin(S1, "a", 60.0)
    assert await store.get(S2) == other
    assert await store.delete(S1) is True
    assert (await write(store, S1, adding(3), clock.wall_s())).version == 1


@pytest.mark.parametrize("head", ["not JSON", b"\xff\xfe", 7, 1.5, "", '{"v": 1}', "[]"])
async def test_a_damaged_head_spoils_its_own_session_and_is_left_out_of_lists(store, clock, path, head):
    for session_id in "abc":
        await write(store, SessionRef("", session_id), adding(1), clock.wall_s())
        await clock.advance(1)
    opened = await must_begin(store, SessionRef("", "b"))
    edit(path, "UPDATE sessions SET head = ? WHERE session_id = 'b'", head)
    with pytest.raises(SessionUnreadable):
        await store.get(SessionRef("", "b"))
    with pytest.raises(HistoryNotSaved):
        await store.commit(opened.lease, opened.session, adding(2), clock.wall_s())
    first = await store.page("", 1, None)
    second = await store.page("", 1, first.next_cursor)
    assert [line.session_id for page in (first, second) for line in page.sessions] == ["c", "a"]
    assert second.next_cursor is None
    assert await store.delete(SessionRef("", "b")) is True


async def test_a_session_of_a_later_version_is_told_so(store, clock, path):
    await write(store, S1, adding(1), clock.wall_s())
    edit(path, """UPDATE sessions SET head = replace(CAST(head AS TEXT), '"v":1', '"v":2')""")
    with pytest.raises(SessionUnreadable, match="version 2"):
        await store.get(S1)
    assert await listed(store) == []


async def test_odd_values_in_other_columns_are_no_lines(store, clock, path):
    for session_id in "abc":
        await write(store, SessionRef("", session_id), adding(1), clock.wall_s())
    edit(path, "UPDATE sessions SET used_at = 'yesterday' WHERE session_id = 'a'")
    edit(path, "UPDATE sessions SET session_id = X'ff' WHERE session_id = 'b'")
    assert await listed(store) == ["c"]


async def test_a_damaged_session_is_not_leased(store, clock, path):
    await write(store, S1, adding(1), clock.wall_s())
    edit(path, "UPDATE sessions SET head = 'x'")
    with pytest.raises(SessionUnreadable):
        await store.begin(S1, "a", 60.0)
    assert edit(path, "SELECT * FROM leases") == []


async def test_the_file_and_all_beside_it_are_for_this_user_alone(store, clock, path):
    old_umask = os.umask(0)
    try:
        await write(store, S1, adding(1), clock.wall_s())
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    finally:
        os.umask(old_umask)
    assert modes == {"sessions.db": 0o600, "sessions.db-wal": 0o600, "sessions.db-shm": 0o600}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


async def test_a_deleted_conversation_is_not_left_in_the_file(make_store, clock, path):
    store = make_store()
    secret = "attack at dawn"
    await write(store, S1, adding(1, user=secret), clock.wall_s())
    await store.delete(S1)
    await store.aclose()
    assert [file.name for file in path.parent.iterdir()] == ["sessions.db"]
    assert secret.encode() not in path.read_bytes()


async def test_expired_sessions_leave_the_file_some_at_once(make_store, clock, path, monkeypatch):
    monkeypatch.setattr(sqlite_sessions, "PURGED_AT_ONCE", 20)
    store = make_store(ttl_s=100.0)
    for number in range(50):
        ref = SessionRef("", str(number))
        await store.create(Session(ref, "").copy(ref, (make_turn(user="x" * 10_000),), clock.wall_s()))
    await must_begin(store, SessionRef("", "left"), lease_s=100.0)
    full_pages = edit(path, "PRAGMA page_count")[0][0]
    await clock.advance(100)

    left = []
    for _ in range(4):
        await store.end((await must_begin(store, S1)).lease.ref, "a")
        await store.ping()
        left.append(edit(path, "SELECT COUNT(*) FROM sessions")[0][0])
    assert left == [30, 10, 0, 0]
    assert edit(path, "SELECT COUNT(*) FROM turns") == [(0,)]
    assert edit(path, "SELECT COUNT(*) FROM leases") == [(0,)]
    assert edit(path, "PRAGMA page_count")[0][0] < full_pages / 5


async def test_what_is_not_expired_is_not_purged(store, clock, path):
    stored = await write(store, S1, adding(1), clock.wall_s())
    await clock.advance(3599)
    await must_begin(store, S2)
    await store.ping()
    assert await store.get(S1) == stored


async def test_a_turn_writes_no_other_turn_again(store, clock, path):
    for number in range(3):
        await write(store, S1, adding(number), clock.wall_s())
    edit(path, "UPDATE turns SET element = CAST(element AS TEXT)")
    opened = await must_begin(store, S1)
    await store.commit(opened.lease, opened.session, adding(3), clock.wall_s())
    assert edit(path, "SELECT typeof(element) FROM turns ORDER BY position") == [("text",)] * 3 + [("blob",)]


async def test_the_event_loop_never_touches_the_file(store, clock):
    with blockbuster_ctx():
        with pytest.raises(BlockingError):
            sqlite3.connect(":memory:").execute("SELECT 1")
        stored = await write(store, S1, adding(1), clock.wall_s())
        opened = await must_begin(store, S1)
        await store.renew(opened.lease, 60.0)
        await store.end(S1, "a")
        await store.create(stored.copy(S2, stored.turns, clock.wall_s()))
        await store.get(S1)
        await store.page("", 10, None)
        await store.set_system_prompt("")
        await store.ping()
        await store.delete(S1)
        await store.aclose()


WRITER = """
import asyncio, sys
from pathlib import Path
from inferapi.adapters.sqlite_sessions import SqliteSessionStore
from inferapi.adapters.system_clock import SystemClock
from inferapi.domain.chat import Session, SessionChange, SessionRef, Turn
from inferapi.domain.errors import HistoryNotSaved

path, name, drops_every = sys.argv[1], sys.argv[2], int(sys.argv[3])

async def main():
    clock = SystemClock()
    store = SqliteSessionStore(Path(path), clock, 3600.0)
    number = 0
    while True:
        ref = SessionRef("", f"s{number % 3}")
        while (opened := await store.begin(ref, name, 2.0)) is None:
            await asyncio.sleep(0.001)
        turn = Turn(f"{name}-{number}", "x" * 3000, "y" * 3000, "gpt2", 0.0, 1, 1)
        change = SessionChange(turn, dropped_oldest=1 if number % drops_every == drops_every - 1 else 0)
        try:
            await store.commit(opened.lease, opened.session or Session(ref, ""), change, clock.wall_s())
        except HistoryNotSaved:  # this process stood still for too long
            continue
        print(turn.turn_id, flush=True)
        number += 1

asyncio.run(main())
"""
NEVER = 1_000_000


@contextmanager
def writer(path, name, drops_every=NEVER):
    """A process that writes turns to three sessions in turn, and tells each when it is stored, until it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), name, str(drops_every)], stdout=subprocess.PIPE, text=True
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def told(process):
    """All that a killed writer said."""
    return [line.strip() for line in process.stdout if line.endswith("\n")]


async def stored_turns(path):
    store = SqliteSessionStore(path, SystemClock(), 3600.0)
    sessions = [await store.get(SessionRef("", name)) for name in ("s0", "s1", "s2")]
    await store.aclose()
    return [[turn.turn_id for turn in session.turns] if session else [] for session in sessions]


@pytest.mark.parametrize("count", [1, 40, 101])
async def test_every_acknowledged_turn_survives_a_kill_and_none_is_half(path, count):
    with writer(path, "w", drops_every=7) as process:
        names = [process.stdout.readline().strip() for _ in range(count)]
        process.kill()
        names += told(process)

    def expected(count):
        sessions = [[], [], []]
        for number in range(count):
            turns = sessions[number % 3]
            del turns[: 1 if number % 7 == 6 else 0]
            turns.append(f"w-{number}")
        return sessions

    assert names == [f"w-{number}" for number in range(len(names))]
    # The last turn may have been stored, and its writer killed before it said so.
    assert await stored_turns(path) in (expected(len(names)), expected(len(names) + 1))


async def test_processes_that_write_to_the_same_sessions_lose_nothing(path):
    with writer(path, "a") as one, writer(path, "b") as two:
        names = [process.stdout.readline().strip() for _ in range(20) for process in (one, two)]
        one.kill()
        names += told(one)
        names += [two.stdout.readline().strip() for _ in range(20)]  # a lease that was left behind runs out
        two.kill()
        names += told(two)
    found = [name for turns in await stored_turns(path) for name in turns]
    assert len(found) == len(set(found))
    assert set(names) <= set(found)
    assert len(found) - len(names) <= 2
