"""What owners do with their sessions beside talking: list, read, fork, rewind, take along, delete."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from inferapi.application.policy import SessionPolicy
from inferapi.application.turns import TurnGate
from inferapi.domain.chat import Session, SessionChange, SessionLimits, SessionPage, SessionRef, Turn
from inferapi.domain.errors import InvalidRequest, SessionNotFound
from inferapi.domain.ports import Clock, SessionStore


def new_session_id() -> str:
    """An id that nobody can guess: 192 random bits."""
    return secrets.token_urlsafe(24)


class Sessions:
    """Sessions of their owners, and the system prompt that new ones get. Another owner's session is unknown."""

    def __init__(self, store: SessionStore, turns: TurnGate, clock: Clock, policy: SessionPolicy) -> None:
        self._store = store
        self._turns = turns
        self._clock = clock
        self._policy = policy

    @property
    def limits(self) -> SessionLimits:
        """How much a session may hold."""
        return self._policy.limits

    async def page(self, owner: str, limit: int, cursor: str | None) -> SessionPage:
        """Up to ``limit`` sessions, the last used first. Raises ``InvalidRequest`` for a cursor of nobody's."""
        return await self._store.page(owner, limit, cursor)

    async def read(self, ref: SessionRef) -> Session:
        """The session; raises ``SessionNotFound``."""
        session = await self._store.get(ref)
        if session is None:
            raise SessionNotFound
        return session

    async def delete(self, ref: SessionRef) -> None:
        """Forget it, and the turn that runs in it; raises ``SessionNotFound``."""
        if not await self._store.delete(ref):
            raise SessionNotFound

    async def fork(self, ref: SessionRef, turns: int | None, new_id: str | None) -> Session:
        """A new session with the first ``turns`` turns of this one, all of them by default.

        Raises:
            SessionNotFound, SessionExists: this one is not there; the new one is.
            InvalidRequest: it has fewer turns.
        """
        session = await self.read(ref)
        _check_has(session, turns or 0)
        kept = session.turns if turns is None else session.turns[:turns]
        fork = session.copy(SessionRef(ref.owner, new_id or new_session_id()), kept, self._clock.wall_s())
        await self._store.create(fork)
        return fork

    async def rewind(self, ref: SessionRef, turns: int) -> Session:
        """Drop the last ``turns`` turns, once a turn that is running has ended.

        Raises:
            SessionNotFound, SessionBusy: it is not there; a turn runs for too long.
            InvalidRequest: it has fewer turns.
            HistoryNotSaved: nothing was dropped.
        """
        async with self._turns.turn(ref) as held:
            if held.session is None:
                raise SessionNotFound
            _check_has(held.session, turns)
            return await held.commit(held.session, SessionChange(dropped_newest=turns))

    async def restore(self, ref: SessionRef, system_prompt: str, turns: Sequence[Turn]) -> Session:
        """Make a session of what was exported.

        Raises:
            SessionExists: there is one already.
            InvalidRequest: it is beyond the limits.
        """
        limits = self.limits
        # A chat refuses a longer question too; one turn alone may be beyond the limit, by its answer.
        longest_bytes = max((len(turn.user.encode()) for turn in turns), default=0)
        total_bytes = sum(turn.size_bytes for turn in turns) if len(turns) > 1 else 0
        if len(turns) > limits.max_turns or max(longest_bytes, total_bytes) > limits.max_bytes:
            most = f"{limits.max_turns} turns and {limits.max_bytes} bytes of text"
            raise InvalidRequest(problem=f"turns: a session has at most {most} on this server")
        session = Session(ref, system_prompt).copy(ref, turns, self._clock.wall_s())
        await self._store.create(session)
        return session

    async def system_prompt(self) -> str:
        """What new sessions get."""
        return self._policy.system_prompt(await self._store.system_prompt())

    async def set_system_prompt(self, prompt: str) -> None:
        """Give sessions that start from now on this system prompt; the others keep theirs."""
        await self._store.set_system_prompt(prompt)

    async def ping(self) -> None:
        """Raise ``SessionStoreUnavailable`` if the store is."""
        await self._store.ping()

    async def aclose(self) -> None:
        """Let go of the store."""
        await self._turns.aclose()
        await self._store.aclose()


def _check_has(session: Session, turns: int) -> None:
    if turns > len(session.turns):
        raise InvalidRequest(problem=f"turns: the session has {len(session.turns)}")
