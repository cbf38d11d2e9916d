"""A session store whose failures are counted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from inferapi.domain.chat import Lease, OpenTurn, Session, SessionChange, SessionPage, SessionRef
from inferapi.domain.errors import HistoryNotSaved, SessionStoreUnavailable, SessionUnreadable
from inferapi.domain.ports import SessionStore
from inferapi.domain.telemetry import Telemetry

_FAILURES = (SessionStoreUnavailable, SessionUnreadable, HistoryNotSaved)


class MeasuredSessionStore:
    """A ``SessionStore`` around another one. Where it fails, also behind everybody's back, ``telemetry`` hears of it.

    That a session is busy, or its id taken, is no failure.
    """

    def __init__(self, store: SessionStore, telemetry: Telemetry) -> None:
        self._store = store
        self._telemetry = telemetry

    async def begin(self, ref: SessionRef, holder: str, lease_s: float) -> OpenTurn | None:
        """See ``SessionStore``."""
        with self._measured():
            return await self._store.begin(ref, holder, lease_s)

    async def renew(self, lease: Lease, lease_s: float) -> bool:
        """See ``SessionStore``."""
        with self._measured():
            return await self._store.renew(lease, lease_s)

    async def end(self, ref: SessionRef, holder: str) -> None:
        """See ``SessionStore``."""
        with self._measured():
            await self._store.end(ref, holder)

    async def commit(self, lease: Lease, before: Session, change: SessionChange, at_s: float) -> Session:
        """See ``SessionStore``."""
        with self._measured():
            return await self._store.commit(lease, before, change, at_s)

    async def create(self, session: Session) -> None:
        """See ``SessionStore``."""
        with self._measured():
            await self._store.create(session)

    async def get(self, ref: SessionRef) -> Session | None:
        """See ``SessionStore``."""
        with self._measured():
            return await self._store.get(ref)

    async def delete(self, ref: SessionRef) -> bool:
        """See ``SessionStore``."""
        with self._measured():
            return await self._store.delete(ref)

    async def page(self, owner: str, limit: int, cursor: str | None) -> SessionPage:
        """See ``SessionStore``."""
        with self._measured():
            return await self._store.page(owner, limit, cursor)

    async def system_prompt(self) -> str | None:
        """See ``SessionStore``."""
        with self._measured():
            return await self._store.system_prompt()

    async def set_system_prompt(self, prompt: str) -> None:
        """See ``SessionStore``."""
        with self._measured():
            await self._store.set_system_prompt(prompt)

    async def ping(self) -> None:
        """See ``SessionStore``."""
        with self._measured():
            await self._store.ping()

    async def aclose(self) -> None:
        """See ``SessionStore``."""
        await self._store.aclose()

    @contextmanager
    def _measured(self) -> Iterator[None]:
        try:
            yield
        except _FAILURES as error:
            self._telemetry.session_store_failed(error.code)
            raise
