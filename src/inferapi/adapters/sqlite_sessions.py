"""Sessions in one SQLite file: they outlive the process, and several servers of a machine may share them."""

from __future__ import annotations

import math
import sqlite3
from pathlib import Path

from inferapi.adapters import sqlite_tables as tables
from inferapi.adapters.session_cursor import decode_cursor, encode_cursor
from inferapi.adapters.sqlite_file import SqliteFile
from inferapi.domain.chat import Lease, OpenTurn, Session, SessionChange, SessionPage, SessionRef, SessionSummary
from inferapi.domain.errors import HistoryNotSaved, SessionExists, SessionUnreadable
from inferapi.domain.ports import Clock

PURGE_EVERY_S = 60.0
PURGED_AT_ONCE = 100
"""Expired sessions that one transaction removes; where there are more, the next write removes more."""


class SqliteSessionStore:
    """A ``SessionStore`` in a file: each method is one function that runs as one transaction.

    Times in the file are those of the wall clock, which all processes share: a lease runs out early or late by as
    much as somebody sets the machine's clock meanwhile, and nothing else depends on it.

    A power cut may take leases away, since whoever had them is gone too; what was committed stays.

    Args:
        ttl_s: a session is forgotten so many seconds after its last use.
    """

    def __init__(self, path: Path, clock: Clock, ttl_s: float) -> None:
        self._file = SqliteFile(path, tables.SCHEMA, tables.SCHEMA_VERSION)
        self._clock = clock
        self._ttl_s = ttl_s
        self._purge_due_s = -math.inf

    async def begin(self, ref: SessionRef, holder: str, lease_s: float) -> OpenTurn | None:
        """See ``SessionStore``. A session that cannot be read is not leased."""

        def transaction(db: sqlite3.Connection) -> OpenTurn | None:
            now_s = self._clock.wall_s()
            if tables.lease_row(db, ref, now_s):
                return None
            lease = tables.take_lease(db, ref, holder, now_s + lease_s)
            db.execute(
                "UPDATE sessions SET used_at = ?, expires_at = ? WHERE owner = ? AND session_id = ? AND expires_at > ?",
                (now_s, now_s + self._ttl_s, *tables.key(ref), now_s),
            )
            return OpenTurn(lease, tables.read_session(db, ref, now_s), tables.read_system_prompt(db))

        opened = await self._file.run(transaction, writes=True, durable=False)
        self._purge_if_due()
        return opened

    async def renew(self, lease: Lease, lease_s: float) -> bool:
        """See ``SessionStore``."""

        def transaction(db: sqlite3.Connection) -> bool:
            now_s = self._clock.wall_s()
            if not tables.is_held(db, lease, now_s):
                return False
            db.execute(
                "UPDATE leases SET expires_at = ? WHERE owner = ? AND session_id = ?",
                (now_s + lease_s, *tables.key(lease.ref)),
            )
            return True

        return await self._file.run(transaction, writes=True, durable=False)

    async def end(self, ref: SessionRef, holder: str) -> None:
        """See ``SessionStore``."""

        def transaction(db: sqlite3.Connection) -> None:
            db.execute(
                "DELETE FROM leases WHERE owner = ? AND session_id = ? AND holder = ?", (*tables.key(ref), holder)
            )

        await self._file.run(transaction, writes=True, durable=False)

    async def commit(self, lease: Lease, before: Session, change: SessionChange, at_s: float) -> Session:
        """See ``SessionStore``."""

        def transaction(db: sqlite3.Connection) -> Session:
            now_s = self._clock.wall_s()
            if not tables.is_held(db, lease, now_s):
                raise HistoryNotSaved(problem="its turn took too long, or the session was deleted meanwhile")
            row = tables.session_row(db, lease.ref, now_s)
            if _version(row) != before.version:
                raise HistoryNotSaved(problem="the session changed or expired meanwhile")
            after = before.changed(change, at_s)
            if row is None:
                tables.insert_session(db, after, lease.token, now_s + self._ttl_s)
            else:
                tables.update_session(db, row[0], change, after, lease.token, now_s + self._ttl_s)
            db.execute("DELETE FROM leases WHERE owner = ? AND session_id = ?", tables.key(lease.ref))
            return after

        return await self._file.run(transaction, writes=True)

    async def create(self, session: Session) -> None:
        """See ``SessionStore``."""

        def transaction(db: sqlite3.Connection) -> None:
            now_s = self._clock.wall_s()
            if tables.session_row(db, session.ref, now_s) or tables.lease_row(db, session.ref, now_s):
                raise SessionExists
            tables.insert_session(db, session, 0, now_s + self._ttl_s)

        await self._file.run(transaction, writes=True)
        self._purge_if_due()

    async def get(self, ref: SessionRef) -> Session | None:
        """See ``SessionStore``."""
        return await self._file.run(lambda db: tables.read_session(db, ref, self._clock.wall_s()), writes=False)

    async def delete(self, ref: SessionRef) -> bool:
        """See ``SessionStore``."""

        def transaction(db: sqlite3.Connection) -> bool:
            now_s = self._clock.wall_s()
            known = tables.session_row(db, ref, now_s) or tables.lease_row(db, ref, now_s)
            db.execute("DELETE FROM sessions WHERE owner = ? AND session_id = ?", tables.key(ref))
            db.execute("DELETE FROM leases WHERE owner = ? AND session_id = ?", tables.key(ref))
            return known is not None

        return await self._file.run(transaction, writes=True)

    async def page(self, owner: str, limit: int, cursor: str | None) -> SessionPage:
        """See ``SessionStore``."""
        after = (math.inf, "") if cursor is None else decode_cursor(cursor)

        def transaction(db: sqlite3.Connection) -> SessionPage:
            rows = db.execute(
                "SELECT session_id, head, used_at FROM sessions WHERE owner = ? AND expires_at > ?"
                " AND (used_at, session_id) < (?, ?) ORDER BY used_at DESC, session_id DESC",
                (owner, self._clock.wall_s(), *after),
            )
            lines: list[SessionSummary] = []
            end = ""
            for session_id, head, used_at_s in rows:
                line = tables.read_line(session_id, head, used_at_s)
                if line is None:
                    continue
                if len(lines) == limit:
                    return SessionPage(tuple(lines), end)
                lines.append(line)
                end = encode_cursor(used_at_s, line.session_id)
            return SessionPage(tuple(lines))

        return await self._file.run(transaction, writes=False)

    async def system_prompt(self) -> str | None:
        """See ``SessionStore``."""
        return await self._file.run(tables.read_system_prompt, writes=False)

    async def set_system_prompt(self, prompt: str) -> None:
        """See ``SessionStore``."""

        def transaction(db: sqlite3.Connection) -> None:
            db.execute("REPLACE INTO facts VALUES ('system_prompt', ?)", (prompt,))

        await self._file.run(transaction, writes=True)

    async def ping(self) -> None:
        """See ``SessionStore``."""
        await self.system_prompt()

    async def aclose(self) -> None:
        """See ``SessionStore``."""
        await self._file.aclose()

    def _purge_if_due(self) -> None:
        """Keep the file from growing with what is forgotten: now and then, some at once, when nobody waits."""
        now_s = self._clock.monotonic_s()
        if now_s >= self._purge_due_s:
            self._purge_due_s = now_s + PURGE_EVERY_S
            self._file.run_later(self._purge)

    def _purge(self, db: sqlite3.Connection) -> None:
        if tables.purge(db, self._clock.wall_s(), PURGED_AT_ONCE):
            self._purge_due_s = -math.inf


def _version(row: tables.Row | None) -> int:
    """The version of what is stored: 0 if nothing is."""
    if row is None:
        return 0
    try:
        return tables.read_head(row[1]).version
    except SessionUnreadable as error:
        raise HistoryNotSaved(problem="the session was damaged meanwhile") from error
