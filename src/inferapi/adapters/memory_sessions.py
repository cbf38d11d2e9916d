"""Sessions in this process: for tests, and for people who want no trace. They end with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from inferapi.domain.chat import Session, Turn
from inferapi.domain.errors import HistoryNotSaved, SessionBusy
from inferapi.domain.ports import Clock

MAX_TURNS = 10_000
MAX_SESSIONS = 100_000


@dataclass(slots=True)
class _Entry:
    session: Session
    expires_s: float


@dataclass(slots=True)
class _Gate:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0


class MemorySessionStore:
    """A ``SessionStore`` in a dictionary, bounded in sessions and turns.

    Args:
        ttl_s: a session is forgotten so long after its last use.
    """

    def __init__(self, clock: Clock, ttl_s: float) -> None:
        self._clock = clock
        self._ttl_s = ttl_s
        self._entries: dict[str, _Entry] = {}  # in order of expiry: every use moves an entry to the end
        self._gates: dict[str, _Gate] = {}
        self._system_prompt: str | None = None

    async def get(self, session_id: str) -> Session | None:
        """See ``SessionStore``."""
        self._forget_expired()
        entry = self._entries.get(session_id)
        if entry is None:
            return None
        self._keep(entry.session)
        return entry.session

    async def append(self, session: Session, turn: Turn) -> Session:
        """See ``SessionStore``."""
        self._forget_expired()
        entry = self._entries.get(session.session_id)
        stored_version = entry.session.version if entry else 0
        if stored_version != session.version:
            raise HistoryNotSaved(problem="the session changed or was deleted meanwhile")
        if len(session.turns) >= MAX_TURNS:
            raise HistoryNotSaved(problem=f"the session has {MAX_TURNS} turns, the most there may be")
        longer = session.with_turn(turn)
        self._keep(longer)
        return longer

    async def delete(self, session_id: str) -> bool:
        """See ``SessionStore``."""
        self._forget_expired()
        return self._entries.pop(session_id, None) is not None

    @asynccontextmanager
    async def turn(self, session_id: str, *, wait_s: float) -> AsyncIterator[None]:
        """See ``SessionStore``."""
        gate = self._gates.setdefault(session_id, _Gate())
        gate.users += 1
        try:
            try:
                async with asyncio.timeout(wait_s):
                    await gate.lock.acquire()
            except TimeoutError as error:
                raise SessionBusy from error
            try:
                yield
            finally:
                gate.lock.release()
        finally:
            gate.users -= 1
            if not gate.users:
                del self._gates[session_id]

    async def system_prompt(self) -> str | None:
        """See ``SessionStore``."""
        return self._system_prompt

    async def set_system_prompt(self, prompt: str) -> None:
        """See ``SessionStore``."""
        self._system_prompt = prompt

    def _keep(self, session: Session) -> None:
        self._entries.pop(session.session_id, None)
        self._entries[session.session_id] = _Entry(session, self._clock.monotonic_s() + self._ttl_s)
        if len(self._entries) > MAX_SESSIONS:
            del self._entries[next(iter(self._entries))]

    def _forget_expired(self) -> None:
        now_s = self._clock.monotonic_s()
        while self._entries:
            oldest = next(iter(self._entries))
            if self._entries[oldest].expires_s > now_s:
                return
            del self._entries[oldest]
