"""One SQLite file and the thread that uses it: the event loop never waits for the disk."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from inferapi.domain.errors import SessionStoreUnavailable

T = TypeVar("T")

_QUEUE_S = 1.5
"""So long a transaction waits for those before it. Then, begun, it waits ``_LOCK_S`` for the file: 3 s are not up."""
_LOCK_S = 1.0
_WAL_BYTES = 16 * 1024**2


class SqliteFile:
    """Runs transactions one after another, each whole: whoever leaves meanwhile leaves none open.

    The file is opened by the first transaction, and anew by the next one after any error. Other processes may use
    it too. It and its folder are made for this user alone, since they hold conversations.

    Args:
        schema: statements that make the tables in an empty file.
        version: of the schema; a file of another one is left as it is.
    """

    def __init__(self, path: Path, schema: str, version: int) -> None:
        self._path = path.absolute()
        self._schema = schema
        self._version = version
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sqlite")
        self._connection: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None

    async def run(self, transaction: Callable[[sqlite3.Connection], T], *, writes: bool, durable: bool = True) -> T:
        """What ``transaction`` returns, once it is committed. What it raises rolls it back.

        Texts are read as bytes. What is ``durable`` survives a power cut; what is not survives the end of any process,
        spares the disk a flush, and becomes durable with the next transaction that is.

        Raises:
            SessionStoreUnavailable: the file cannot be used now, or others use it for too long. If the commit itself
                failed nobody knows whether it will be found there.
        """
        try:
            running = self._thread.submit(self._transact, transaction, writes=writes, durable=durable)
        except RuntimeError as error:  # closed
            raise SessionStoreUnavailable from error
        done = asyncio.wrap_future(running)
        try:
            await asyncio.wait({done}, timeout=_QUEUE_S)
            if running.cancel():  # it has not begun, and never will
                raise SessionStoreUnavailable from TimeoutError("other transactions took too long")
            return await done
        except asyncio.CancelledError:
            done.cancel()  # as is the transaction, if it has not begun
            raise

    def run_later(self, transaction: Callable[[sqlite3.Connection], object]) -> None:
        """Write it after those that wait already. Nobody hears whether it worked."""
        with suppress(RuntimeError):
            self._thread.submit(self._transact, transaction, writes=True, durable=False)

    async def aclose(self) -> None:
        """Close the file, after the transactions that wait already. Idempotent."""
        with suppress(RuntimeError):
            closing = asyncio.wrap_future(self._thread.submit(self._close))
            self._thread.shutdown(wait=False)
            await asyncio.wait({closing})

    # In the thread:

    def _transact(self, transaction: Callable[[sqlite3.Connection], T], *, writes: bool, durable: bool) -> T:
        deadline_s = time.monotonic() + _LOCK_S
        try:
            connection = self._opened(deadline_s)
            _wait_for_locks(connection, deadline_s)
            if writes:
                connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            connection.execute("BEGIN IMMEDIATE" if writes else "BEGIN")
            try:
                result = transaction(connection)
                connection.execute("COMMIT")
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
            if writes:
                self._identify()
        except (sqlite3.Error, OSError) as error:
            self._close()
            raise SessionStoreUnavailable from error
        return result

    def _opened(self, deadline_s: float) -> sqlite3.Connection:
        if self._connection is not None:
            try:
                self._identify()
            except FileNotFoundError:
                self._close()
        if self._connection is None:
            self._connection = self._open(deadline_s)
        return self._connection

    def _identify(self) -> None:
        """Raise ``FileNotFoundError`` if another file, or none, is in the place of the open one.

        SQLite would write on into a file that was deleted, and all of it would be lost.
        """
        found = self._path.stat()
        if self._identity != (found.st_dev, found.st_ino):
            raise FileNotFoundError("the file was replaced")

    def _open(self, deadline_s: float) -> sqlite3.Connection:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Made here for its mode, which SQLite gives to the files beside it too. An existing file is not touched:
        # to close it would drop the locks that other connections of this process have.
        with suppress(FileExistsError):
            os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        found = self._path.stat()
        self._identity = (found.st_dev, found.st_ino)
        connection = sqlite3.connect(self._path, isolation_level=None)
        try:
            self._prepare(connection, deadline_s)
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection, deadline_s: float) -> None:
        _wait_for_locks(connection, deadline_s)
        connection.text_factory = bytes  # damaged text is the reader's business
        connection.execute("BEGIN")
        [version] = connection.execute("PRAGMA user_version").fetchone()
        [tables] = connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
        connection.execute("COMMIT")
        if version != self._version and (version, tables) != (0, 0):
            raise sqlite3.DatabaseError(f"the file has schema {version}; this server uses {self._version}")
        if version == 0:
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # heard while there are no tables
        _wait_for_locks(connection, deadline_s)
        connection.execute("PRAGMA journal_mode = WAL").fetchall()
        connection.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES}").fetchall()
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA secure_delete = ON").fetchall()  # a deleted conversation is not left in free pages
        if version == 0:
            _wait_for_locks(connection, deadline_s)
            connection.executescript(f"BEGIN IMMEDIATE; {self._schema}; PRAGMA user_version = {self._version}; COMMIT;")

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()


def _wait_for_locks(connection: sqlite3.Connection, deadline_s: float) -> None:
    """Wait for locks of others until then, however many there are."""
    left_ms = max(0, round(1000 * (deadline_s - time.monotonic())))
    connection.execute(f"PRAGMA busy_timeout = {left_ms}").fetchall()
