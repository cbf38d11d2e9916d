"""Sessions in this process: for tests, and for people who want no trace. They end with it."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

from inferapi.adapters.session_cursor import decode_cursor, encode_cursor
from inferapi.domain.chat import Lease, OpenTurn, Session, SessionChange, SessionPage, SessionRef, SessionSummary
from inferapi.domain.errors import HistoryNotSaved, SessionExists
from inferapi.domain.ports import Clock

MAX_SESSIONS = 100_000


@dataclass(slots=True)
class _Entry:
    """``used_at_s`` is the place in lists; ``expires_s`` counts on the monotonic clock."""

    session: Session
    used_at_s: float
    expires_s: float

    @property
    def place(self) -> tuple[float, str]:
        return self.used_at_s, self.session.ref.session_id


@dataclass(slots=True)
class _Held:
    holder: str
    token: int
    expires_s: float


class MemorySessionStore:
    """A ``SessionStore`` in a dictionary of at most ``MAX_SESSIONS``: beyond them the least recently used one goes.

    No method awaits anything, so each is one transaction.

    Args:
        ttl_s: a session is forgotten so many seconds after its last use.
    """

    def __init__(self, clock: Clock, ttl_s: float) -> None:
        self._clock = clock
        self._ttl_s = ttl_s
        self._entries: dict[SessionRef, _Entry] = {}  # in order of expiry: every use moves an entry to the end
        self._leases: dict[SessionRef, _Held] = {}
        self._last_token = 0
        self._system_prompt: str | None = None

    async def begin(self, ref: SessionRef, holder: str, lease_s: float) -> OpenTurn | None:
        """See ``SessionStore``."""
        self._forget_expired()
        if ref in self._leases:
            return None
        self._last_token += 1
        self._leases[ref] = _Held(holder, self._last_token, self._clock.monotonic_s() + lease_s)
        entry = self._entries.get(ref)
        if entry:
            self._keep(entry.session, self._clock.wall_s())
        return OpenTurn(Lease(ref, holder, self._last_token), entry.session if entry else None, self._system_prompt)

    async def renew(self, lease: Lease, lease_s: float) -> bool:
        """See ``SessionStore``."""
        self._forget_expired()
        if not self._is_held(lease):
            return False
        self._leases[lease.ref].expires_s = self._clock.monotonic_s() + lease_s
        return True

    async def end(self, ref: SessionRef, holder: str) -> None:
        """See ``SessionStore``."""
        if ref in self._leases and self._leases[ref].holder == holder:
            del self._leases[ref]

    async def commit(self, lease: Lease, before: Session, change: SessionChange, at_s: float) -> Session:
        """See ``SessionStore``."""
        self._forget_expired()
        if not self._is_held(lease):
            raise HistoryNotSaved(problem="its turn took too long, or the session was deleted meanwhile")
        entry = self._entries.get(lease.ref)
        if (entry.session.version if entry else 0) != before.version:
            raise HistoryNotSaved(problem="the session changed or expired meanwhile")
        after = before.changed(change, at_s)
        self._keep(after, at_s)
        del self._leases[lease.ref]
        return after

    async def create(self, session: Session) -> None:
        """See ``SessionStore``."""
        self._forget_expired()
        if session.ref in self._entries or session.ref in self._leases:
            raise SessionExists
        self._keep(session, session.used_at_s)

    async def get(self, ref: SessionRef) -> Session | None:
        """See ``SessionStore``."""
        self._forget_expired()
        entry = self._entries.get(ref)
        return entry.session if entry else None

    async def delete(self, ref: SessionRef) -> bool:
        """See ``SessionStore``."""
        self._forget_expired()
        entry, held = self._entries.pop(ref, None), self._leases.pop(ref, None)
        return bool(entry or held)

    async def page(self, owner: str, limit: int, cursor: str | None) -> SessionPage:
        """See ``SessionStore``."""
        self._forget_expired()
        after = None if cursor is None else decode_cursor(cursor)
        rest = (
            entry
            for ref, entry in self._entries.items()
            if ref.owner == owner and (after is None or entry.place < after)
        )
        entries = heapq.nlargest(limit + 1, rest, key=lambda entry: entry.place)
        more = len(entries) > limit
        return SessionPage(
            tuple(_summary(entry.session) for entry in entries[:limit]),
            encode_cursor(*entries[limit - 1].place) if more else None,
        )

    async def system_prompt(self) -> str | None:
        """See ``SessionStore``."""
        return self._system_prompt

    async def set_system_prompt(self, prompt: str) -> None:
        """See ``SessionStore``."""
        self._system_prompt = prompt

    async def ping(self) -> None:
        """See ``SessionStore``."""

    async def aclose(self) -> None:
        """See ``SessionStore``. The sessions stay until the store is forgotten itself."""

    def _is_held(self, lease: Lease) -> bool:
        held = self._leases.get(lease.ref)
        return held is not None and (held.holder, held.token) == (lease.holder, lease.token)

    def _keep(self, session: Session, used_at_s: float) -> None:
        self._entries.pop(session.ref, None)
        self._entries[session.ref] = _Entry(session, used_at_s, self._clock.monotonic_s() + self._ttl_s)
        if len(self._entries) > MAX_SESSIONS:
            del self._entries[next(iter(self._entries))]

    def _forget_expired(self) -> None:
        now_s = self._clock.monotonic_s()
        while self._entries:
            oldest = next(iter(self._entries))
            if self._entries[oldest].expires_s > now_s:
                break
            del self._entries[oldest]
        for ref in [ref for ref, held in self._leases.items() if held.expires_s <= now_s]:  # as many as turns run
            del self._leases[ref]


def _summary(session: Session) -> SessionSummary:
    return SessionSummary(
        session.ref.session_id, session.title, len(session.turns), session.created_at_s, session.used_at_s
    )
