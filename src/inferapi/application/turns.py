"""Who writes to a session: turns of one session one after another, in this process and in all others."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from inferapi.application.policy import SessionPolicy
from inferapi.domain.chat import OpenTurn, Session, SessionChange, SessionRef
from inferapi.domain.errors import HistoryNotSaved, SessionBusy, SessionProblem, SessionStoreUnavailable
from inferapi.domain.ports import Clock, SessionStore

log = logging.getLogger(__name__)

_FIRST_POLL_S, _LONGEST_POLL_S = 0.02, 0.25
_CLEANUP_POLL_S = 1.0
_CLEANUP_S = 120.0  # a store that stood still gives the lease when it goes on, for its full time
_RENEWALS = 4  # in the time of a lease: a renewal that fails leaves time for the next


@dataclass(slots=True)
class _Gate:
    """Turns of this process that want one session: in order of arrival, and one of them at a time asks the store."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0
    failed_s: float | None = None  # when the store last did not answer one of them


class HeldTurn:
    """A session that is this turn's to write, once."""

    def __init__(self, store: SessionStore, clock: Clock, opened: OpenTurn) -> None:
        self._store = store
        self._clock = clock
        self._lease = opened.lease
        self.session = opened.session
        self.system_prompt = opened.system_prompt
        self.is_over = False
        self.is_unknown = False  # the store did not say whether it was written

    async def commit(self, before: Session, change: SessionChange) -> Session:
        """Write, and let the next turn in.

        Raises:
            HistoryNotSaved: nothing was stored.
        """
        try:
            after = await self._store.commit(self._lease, before, change, self._clock.wall_s())
        except SessionStoreUnavailable as error:
            self.is_unknown = True
            raise HistoryNotSaved(problem="the session store does not answer") from error
        self.is_over = True
        return after

    async def renew(self, lease_s: float) -> bool:
        """Keep it for so long from now; false if it is lost."""
        return await self._store.renew(self._lease, lease_s)


class TurnGate:
    """Lets turns of a session through one by one, and turns of different sessions side by side.

    The lease in the store keeps other processes out. It is renewed as long as the turn runs, and runs out by itself
    should this process die.
    """

    def __init__(self, store: SessionStore, clock: Clock, policy: SessionPolicy) -> None:
        self._store = store
        self._clock = clock
        self._wait_s = policy.wait_s
        self._lease_s = policy.lease_s
        self._gates: dict[SessionRef, _Gate] = {}
        self._cleanups: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def turn(self, ref: SessionRef) -> AsyncIterator[HeldTurn]:
        """Have the session for one turn.

        Raises:
            SessionBusy: others had it for too long.
            SessionStoreUnavailable, SessionUnreadable: as the store has it.
        """
        arrived_s = self._clock.monotonic_s()
        async with self._pass_gate(ref) as gate:
            if gate.failed_s is not None and arrived_s <= gate.failed_s:
                raise SessionStoreUnavailable  # or those who wait would be told one after another
            holder = secrets.token_urlsafe(16)
            try:
                opened = await self._begin(ref, holder, arrived_s + self._wait_s)
            except SessionStoreUnavailable:
                gate.failed_s = self._clock.monotonic_s()
                raise
            held = HeldTurn(self._store, self._clock, opened)
            renewing = asyncio.create_task(self._renew(held))
            try:
                yield held
            finally:
                renewing.cancel()
                if held.is_unknown:
                    self._clean_up(ref, holder)  # the client need not wait for a store that is away
                elif not held.is_over:
                    await self._end(ref, holder)

    async def aclose(self) -> None:
        """Stop to clean up; what is left runs out by itself."""
        for task in self._cleanups:
            task.cancel()
        await asyncio.gather(*self._cleanups, return_exceptions=True)

    @asynccontextmanager
    async def _pass_gate(self, ref: SessionRef) -> AsyncIterator[_Gate]:
        gate = self._gates.setdefault(ref, _Gate())
        gate.users += 1
        try:
            try:
                async with asyncio.timeout(self._wait_s):
                    await gate.lock.acquire()
            except TimeoutError as error:
                raise SessionBusy from error
            try:
                yield gate
            finally:
                gate.lock.release()
        finally:
            gate.users -= 1
            if not gate.users:
                del self._gates[ref]

    async def _begin(self, ref: SessionRef, holder: str, deadline_s: float) -> OpenTurn:
        """Ask for the lease until it is ours or the time is up, ever less often."""
        pause_s = _FIRST_POLL_S
        while True:
            opened = await self._try_begin(ref, holder)
            if opened is not None:
                return opened
            left_s = deadline_s - self._clock.monotonic_s()
            if left_s <= 0:
                raise SessionBusy
            await self._clock.sleep(min(pause_s, left_s))
            pause_s = min(2 * pause_s, _LONGEST_POLL_S)

    async def _try_begin(self, ref: SessionRef, holder: str) -> OpenTurn | None:
        # Not to be cut short: the store may have given the lease when the client leaves.
        beginning = asyncio.ensure_future(self._store.begin(ref, holder, self._lease_s))
        try:
            return await asyncio.shield(beginning)
        except asyncio.CancelledError:
            self._clean_up(ref, holder, beginning)
            raise
        except SessionProblem:
            self._clean_up(ref, holder)  # it may have been given all the same: the answer is what was lost
            raise

    async def _renew(self, held: HeldTurn) -> None:
        pause_s = regular_s = self._lease_s / _RENEWALS
        while True:
            await self._clock.sleep(pause_s)
            try:
                if not await held.renew(self._lease_s):
                    return  # deleted, or somebody else's: the store refuses the commit
            except SessionStoreUnavailable as error:
                if pause_s == regular_s:
                    log.warning("a session's lease could not be renewed: %r", error.__cause__ or error)
                pause_s = regular_s / _RENEWALS
            else:
                pause_s = regular_s

    async def _end(self, ref: SessionRef, holder: str) -> None:
        try:
            await self._store.end(ref, holder)
        except SessionStoreUnavailable:
            self._clean_up(ref, holder)
        except asyncio.CancelledError:
            self._clean_up(ref, holder)
            raise

    def _clean_up(self, ref: SessionRef, holder: str, beginning: asyncio.Future[OpenTurn | None] | None = None) -> None:
        """Give back, behind everybody's back, a lease that nobody uses, so that the next turn need not wait for it."""
        task = asyncio.create_task(self._clean(ref, holder, beginning))
        self._cleanups.add(task)
        task.add_done_callback(self._cleanups.discard)

    async def _clean(self, ref: SessionRef, holder: str, beginning: asyncio.Future[OpenTurn | None] | None) -> None:
        if beginning is not None:
            await asyncio.wait({beginning})
            if not beginning.cancelled() and beginning.exception() is None and beginning.result() is None:
                return
        until_s = self._clock.monotonic_s() + _CLEANUP_S
        while self._clock.monotonic_s() < until_s:
            try:
                await self._store.end(ref, holder)
            except SessionStoreUnavailable:
                await self._clock.sleep(_CLEANUP_POLL_S)
            else:
                return
