"""The SQLite file in trouble: told within the time of the contract, and used again as soon as it can be."""

from __future__ import annotations

import asyncio
import resource
import shutil
import sqlite3
import threading
from contextlib import closing, contextmanager

import pytest

from fakes import FakeClock
from inferapi.adapters.sqlite_file import SqliteFile
from inferapi.adapters.sqlite_sessions import SqliteSessionStore
from inferapi.domain.errors import SessionStoreUnavailable
from session_contract import S1, adding, must_begin, write

ANSWER_S = 3.0
"""The port's bound. Waits here are of a second and a half at most."""


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "sessions.db"


@pytest.fixture
async def store(path, clock):
    store = SqliteSessionStore(path, clock, 3600.0)
    yield store
    await store.aclose()


@pytest.fixture
async def file(path):
    file = SqliteFile(path, "CREATE TABLE IF NOT EXISTS things (name TEXT)", 1)
    yield file
    await file.aclose()


@contextmanager
def locked(path):
    """Somebody else is writing, and takes his time."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


def names(path):
    with closing(sqlite3.connect(path)) as other:
        return [name for [name] in other.execute("SELECT name FROM things")]


def insert(name):
    return lambda db: db.execute("INSERT INTO things VALUES (?)", (name,)) and None


async def unavailable(store):
    """A write is refused in time, in words that tell nothing of this machine. The cause, for the log."""
    async with asyncio.timeout(ANSWER_S):
        with pytest.raises(SessionStoreUnavailable) as caught:
            await store.begin(S1, "a", 60.0)
    assert caught.value.message == SessionStoreUnavailable.text
    return caught.value.__cause__


async def works(store, clock):
    """A turn is stored and found again."""
    stored = await write(store, S1, adding(1), clock.wall_s())
    assert await store.get(S1) == stored


async def test_nothing_is_made_before_the_first_use(store, path):
    assert not path.parent.exists()
    await store.ping()
    assert path.exists()


async def test_a_file_that_others_write_for_too_long_is_told_in_time_and_used_again(store, clock, path):
    stored = await write(store, S1, adding(1), clock.wall_s())
    with locked(path):
        assert isinstance(await unavailable(store), sqlite3.OperationalError)
        assert await store.get(S1) == stored  # who reads waits for nobody
    await must_begin(store, S1)


async def test_everybody_is_told_in_time_however_many_wait(store, clock, path):
    await works(store, clock)
    with locked(path):
        causes = await asyncio.gather(*(unavailable(store) for _ in range(20)))
    assert {type(cause) for cause in causes} == {sqlite3.OperationalError, TimeoutError}
    await must_begin(store, S1)


async def test_a_new_file_that_others_write_is_told_in_time(store, clock, path):
    path.parent.mkdir()
    with locked(path):
        assert isinstance(await unavailable(store), sqlite3.OperationalError)
    await works(store, clock)


async def test_many_may_open_a_new_file_at_once(path, clock):
    stores = [SqliteSessionStore(path, clock, 3600.0) for _ in range(8)]
    await asyncio.gather(*(store.ping() for store in stores))
    for store in stores:
        await store.aclose()


async def test_who_leaves_while_waiting_for_the_file_leaves_no_transaction_open(store, clock, path):
    await works(store, clock)
    with locked(path):
        beginning = asyncio.create_task(store.begin(S1, "a", 60.0))
        await asyncio.sleep(0.05)
        beginning.cancel()
        with pytest.raises(asyncio.CancelledError):
            await beginning
    await store.end(S1, "a")
    with locked(path):
        pass
    await must_begin(store, S1, "b")


async def test_a_transaction_whose_caller_left_before_it_began_is_not_run(file, path):
    entered, leave = threading.Event(), threading.Event()

    def hold(_db):
        entered.set()
        assert leave.wait(10)

    holding = asyncio.create_task(file.run(hold, writes=False))
    await asyncio.to_thread(entered.wait)
    waiting = asyncio.create_task(file.run(insert("never"), writes=True))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    leave.set()
    await holding
    await file.run(insert("after"), writes=True)
    assert names(path) == ["after"]


async def test_a_transaction_whose_caller_left_after_it_began_is_whole(file, path):
    entered, leave = threading.Event(), threading.Event()

    def insert_two(db):
        insert("one")(db)
        entered.set()
        assert leave.wait(10)
        insert("two")(db)

    running = asyncio.create_task(file.run(insert_two, writes=True))
    await asyncio.to_thread(entered.wait)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    leave.set()
    await file.run(lambda _db: None, writes=False)
    assert names(path) == ["one", "two"]


async def test_what_a_transaction_raises_rolls_it_back(file, path):
    def broken(db):
        insert("half")(db)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await file.run(broken, writes=True)
    await file.run(insert("whole"), writes=True)
    assert names(path) == ["whole"]


async def test_a_durable_transaction_is_flushed_to_the_disk_and_another_is_not(file):
    def flushes(db):
        return db.execute("PRAGMA synchronous").fetchone()[0]

    levels = [await file.run(flushes, writes=True, durable=durable) for durable in (True, False, True)]
    assert levels == [2, 1, 2]  # FULL, NORMAL, FULL
    assert await file.run(lambda db: db.execute("PRAGMA journal_mode").fetchone(), writes=False) == (b"wal",)


@pytest.mark.parametrize("what", ["file", "file alone", "folder", "replaced"])
async def test_a_file_that_was_deleted_or_replaced_is_opened_anew(store, clock, path, what):
    await works(store, clock)
    if what == "folder":
        shutil.rmtree(path.parent)
    elif what == "replaced":
        path.with_name("empty").touch()
        path.with_name("empty").replace(path)
    else:
        for file in [path] if what == "file alone" else list(path.parent.iterdir()):
            file.unlink()
    assert await store.get(S1) is None
    await works(store, clock)
    with closing(sqlite3.connect(path)) as other:
        assert other.execute("SELECT COUNT(*) FROM sessions").fetchone() == (1,)


async def test_a_turn_that_went_into_a_deleted_file_is_not_told_stored(file, path):
    def insert_while_deleted(db):
        insert("lost")(db)
        path.unlink()

    with pytest.raises(SessionStoreUnavailable):
        await file.run(insert_while_deleted, writes=True)
    await file.run(insert("kept"), writes=True)
    assert names(path) == ["kept"]


async def test_what_is_no_database_is_left_alone_until_it_is_gone(store, clock, path):
    path.parent.mkdir()
    path.write_bytes(b"a letter to grandmother\n" * 500)
    assert isinstance(await unavailable(store), sqlite3.DatabaseError)
    assert path.read_bytes() == b"a letter to grandmother\n" * 500
    path.unlink()
    await works(store, clock)


async def test_a_database_whose_pages_are_gone_is_told_and_can_be_replaced(path, clock):
    before = SqliteSessionStore(path, clock, 3600.0)
    await works(before, clock)
    await before.aclose()
    path.write_bytes(path.read_bytes()[:4096] + bytes(path.stat().st_size - 4096))
    store = SqliteSessionStore(path, clock, 3600.0)
    assert isinstance(await unavailable(store), sqlite3.DatabaseError)
    for file in path.parent.iterdir():
        file.unlink()
    await works(store, clock)
    await store.aclose()


@pytest.mark.parametrize("found", ["PRAGMA user_version = 2", "CREATE TABLE customers (name TEXT)"])
async def test_a_file_of_a_later_server_or_of_another_program_is_left_as_it_is(store, clock, path, found):
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as other:
        other.execute(found)
    before = path.read_bytes()
    assert "schema" in str(await unavailable(store))
    assert path.read_bytes() == before
    path.unlink()
    await works(store, clock)


async def test_a_full_disk_is_told_and_changes_nothing(store, clock, path):
    stored = await write(store, S1, adding(1), clock.wall_s())
    opened = await must_begin(store, S1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    largest = max(file.stat().st_size for file in path.parent.iterdir())
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, hard))
    try:
        with pytest.raises(SessionStoreUnavailable):
            await store.commit(opened.lease, stored, adding(2, user="x" * 2 * largest), clock.wall_s())
        assert await store.get(S1) == stored
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    longer = await store.commit(opened.lease, stored, adding(2, user="x" * 2 * largest), clock.wall_s())
    assert await store.get(S1) == longer


async def test_a_folder_that_cannot_be_made_is_told(tmp_path, clock):
    (tmp_path / "state").write_text("a file")
    store = SqliteSessionStore(tmp_path / "state" / "sessions.db", clock, 3600.0)
    assert isinstance(await unavailable(store), OSError)
    (tmp_path / "state").unlink()
    await works(store, clock)
    await store.aclose()


async def test_a_database_that_may_only_be_read_is_told(path, clock):
    before = SqliteSessionStore(path, clock, 3600.0)
    stored = await write(before, S1, adding(1), clock.wall_s())
    await before.aclose()
    whole = path.read_bytes()
    # The write version of a later format makes SQLite read the file and not write it, whoever asks: even root.
    path.write_bytes(whole[:18] + b"\x03" + whole[19:])
    store = SqliteSessionStore(path, clock, 3600.0)
    assert "readonly" in str(await unavailable(store))
    path.write_bytes(whole)
    assert (await must_begin(store, S1)).session == stored
    await store.aclose()


async def test_a_closed_store_is_unavailable(store, clock):
    await works(store, clock)
    await store.aclose()
    await unavailable(store)
    await store.aclose()


async def test_closing_lets_those_who_wait_finish(file, path):
    writing = [asyncio.create_task(file.run(insert(str(number)), writes=True)) for number in range(5)]
    await asyncio.sleep(0)
    await file.aclose()
    await asyncio.gather(*writing)
    assert names(path) == [str(number) for number in range(5)]
