"""The tables of the SQLite store, and the rows in them. All times are wall-clock seconds since the epoch.

Texts come from the database as bytes, and a column can hold a value of any type: what cannot be read spoils its own
session, no other.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from inferapi.adapters.session_records import HeadRecord, decode_head, decode_session, encode_head, encode_turn, summary
from inferapi.domain.chat import Lease, Session, SessionChange, SessionRef, SessionSummary, Turn
from inferapi.domain.errors import SessionUnreadable

SCHEMA_VERSION = 1
SCHEMA = """
CREATE TABLE IF NOT EXISTS sessions (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    owner TEXT NOT NULL,
    session_id TEXT NOT NULL,
    head BLOB NOT NULL,
    used_at REAL NOT NULL,
    expires_at REAL NOT NULL,
    UNIQUE (owner, session_id)
);
CREATE INDEX IF NOT EXISTS sessions_by_use ON sessions (owner, used_at, session_id);
CREATE INDEX IF NOT EXISTS sessions_by_expiry ON sessions (expires_at);
CREATE TABLE IF NOT EXISTS turns (
    session INTEGER NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    element BLOB NOT NULL,
    PRIMARY KEY (session, position)
);
CREATE TABLE IF NOT EXISTS leases (
    owner TEXT NOT NULL,
    session_id TEXT NOT NULL,
    holder TEXT NOT NULL,
    token INTEGER NOT NULL,
    expires_at REAL NOT NULL,
    PRIMARY KEY (owner, session_id)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value) WITHOUT ROWID
"""

Row = tuple[object, ...]

_VACUUMED_PAGES = 1000


def key(ref: SessionRef) -> tuple[str, str]:
    """What the tables call a session."""
    return ref.owner, ref.session_id


def take_lease(db: sqlite3.Connection, ref: SessionRef, holder: str, expires_at_s: float) -> Lease:
    """Write a lease with a token of its own, in the place of one that ran out."""
    db.execute("INSERT INTO facts VALUES ('fence', 1) ON CONFLICT (name) DO UPDATE SET value = value + 1")
    [token] = db.execute("SELECT value FROM facts WHERE name = 'fence'").fetchone()
    db.execute("REPLACE INTO leases VALUES (?, ?, ?, ?, ?)", (*key(ref), holder, token, expires_at_s))
    return Lease(ref, holder, token)


def lease_row(db: sqlite3.Connection, ref: SessionRef, now_s: float) -> Row | None:
    """Holder and token of the lease, unless it ran out."""
    row: Row | None = db.execute(
        "SELECT holder, token FROM leases WHERE owner = ? AND session_id = ? AND expires_at > ?", (*key(ref), now_s)
    ).fetchone()
    return row


def is_held(db: sqlite3.Connection, lease: Lease, now_s: float) -> bool:
    """Whether that very lease is in force. Tokens only grow and the last one is stored: no older one passes."""
    return lease_row(db, lease.ref, now_s) == (lease.holder.encode(), lease.token)


def session_row(db: sqlite3.Connection, ref: SessionRef, now_s: float) -> Row | None:
    """Row id and head of the session, unless it expired."""
    row: Row | None = db.execute(
        "SELECT id, head FROM sessions WHERE owner = ? AND session_id = ? AND expires_at > ?", (*key(ref), now_s)
    ).fetchone()
    return row


def read_session(db: sqlite3.Connection, ref: SessionRef, now_s: float) -> Session | None:
    """The session, unless it expired; raises ``SessionUnreadable``."""
    row = session_row(db, ref, now_s)
    if row is None:
        return None
    row_id, head = row
    elements = db.execute("SELECT element FROM turns WHERE session = ? ORDER BY position", (row_id,))
    return decode_session(ref, read_head(head), [_json(element) for [element] in elements])


def read_head(value: object) -> HeadRecord:
    """The head in a row; raises ``SessionUnreadable``."""
    return decode_head(_json(value))


def read_line(session_id: bytes, head: object, used_at_s: object) -> SessionSummary | None:
    """A session in a list, unless it is damaged."""
    try:
        return summary(session_id.decode(), read_head(head)) if isinstance(used_at_s, float) else None
    except (SessionUnreadable, UnicodeError):
        return None


def read_system_prompt(db: sqlite3.Connection) -> str | None:
    """What was set last, if anything."""
    row = db.execute("SELECT CAST(value AS TEXT) FROM facts WHERE name = 'system_prompt'").fetchone()
    return row[0].decode(errors="replace") if row else None


def insert_session(db: sqlite3.Connection, session: Session, token: int, expires_at_s: float) -> None:
    """A new session with its turns; an expired one of its id makes room."""
    db.execute("DELETE FROM sessions WHERE owner = ? AND session_id = ?", key(session.ref))
    inserted = db.execute(
        "INSERT INTO sessions (owner, session_id, head, used_at, expires_at) VALUES (?, ?, ?, ?, ?)",
        (*key(session.ref), encode_head(session, token), session.used_at_s, expires_at_s),
    )
    _insert_turns(db, inserted.lastrowid, 0, session.turns)


def update_session(
    db: sqlite3.Connection, row_id: object, change: SessionChange, after: Session, token: int, expires_at_s: float
) -> None:
    """Make the stored session what ``after`` is, by ``change`` alone: the other turns are neither read nor written."""
    db.execute(
        "UPDATE sessions SET head = ?, used_at = ?, expires_at = ? WHERE id = ?",
        (encode_head(after, token), after.used_at_s, expires_at_s, row_id),
    )
    for order, count in (("ASC", change.dropped_oldest), ("DESC", change.dropped_newest)):
        db.execute(
            "DELETE FROM turns WHERE session = ? AND position IN"  # noqa: S608 - the order is one of the two above
            f" (SELECT position FROM turns WHERE session = ? ORDER BY position {order} LIMIT ?)",
            (row_id, row_id, count),
        )
    if change.added:
        [last] = db.execute("SELECT MAX(position) FROM turns WHERE session = ?", (row_id,)).fetchone()
        _insert_turns(db, row_id, 0 if last is None else last + 1, [change.added])


def purge(db: sqlite3.Connection, now_s: float, limit: int) -> bool:
    """Remove up to ``limit`` expired sessions, and the leases that ran out; whether there may be more."""
    purged = db.execute(
        "DELETE FROM sessions WHERE id IN (SELECT id FROM sessions WHERE expires_at <= ? LIMIT ?)", (now_s, limit)
    )
    db.execute("DELETE FROM leases WHERE expires_at <= ?", (now_s,))
    [free_pages] = db.execute("PRAGMA freelist_count").fetchone()
    for _ in range(min(free_pages, _VACUUMED_PAGES)):
        db.execute("PRAGMA incremental_vacuum(1)")  # the sqlite3 module frees one page a call, whatever the argument
    return purged.rowcount == limit


def _insert_turns(db: sqlite3.Connection, row_id: object, position: int, turns: Sequence[Turn]) -> None:
    db.executemany(
        "INSERT INTO turns VALUES (?, ?, ?)",
        [(row_id, place, encode_turn(turn)) for place, turn in enumerate(turns, position)],
    )


def _json(value: object) -> bytes:
    if not isinstance(value, bytes):
        raise SessionUnreadable(problem="an element is not what this server writes")
    return value
