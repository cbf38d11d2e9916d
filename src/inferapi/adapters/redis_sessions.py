"""Sessions in Redis: shared by every process that uses the same server. Needs Redis 6.2 or later.

Keys, each with a time to live that every use renews:

| Key | Type | What |
|---|---|---|
| ``inferapi:session:<owner>:<id>:head`` | string | what a session is beside its turns: ``HeadRecord`` |
| ``inferapi:session:<owner>:<id>:turns`` | list | one ``TurnRecord`` a turn |
| ``inferapi:session:<owner>:<id>:lease`` | string | who holds the session; ends with its own time |
| ``inferapi:session:<owner>:<id>:fence`` | counter | the last fencing token; outlives the session |
| ``inferapi:sessions:<owner>`` | sorted set | ids by the time of their last use |
| ``inferapi:system_prompt`` | string | until it is set anew, or for ten years |

Turns are written under WATCH and MULTI, never by a script, and keys are never searched for: a user of the server
needs the keys ``~inferapi:*`` and the commands ``COMMANDS``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from redis.exceptions import WatchError

from inferapi.adapters.redis_connection import Command, Exchange, RedisServer, Reply
from inferapi.adapters.redis_index import note_use, note_write, read_page
from inferapi.adapters.redis_keys import SYSTEM_PROMPT, Keys, is_damage, milliseconds, readable, session_of
from inferapi.adapters.redis_writing import Stored, Write, write
from inferapi.adapters.session_cursor import decode_cursor
from inferapi.adapters.session_records import decode_head, encode_head, encode_turn
from inferapi.domain.chat import Lease, OpenTurn, Session, SessionChange, SessionPage, SessionRef
from inferapi.domain.errors import HistoryNotSaved, SessionExists, SessionUnreadable
from inferapi.domain.ports import Clock

COMMANDS = (
    *("exec", "exists", "get", "incr", "llen", "lrange", "ltrim", "mget", "multi", "pexpire", "ping", "rpush", "set"),
    *("unlink", "unwatch", "watch", "zadd", "zrem", "zremrangebyscore", "zrevrangebyscore"),
)
"""All that is sent to the server, beside AUTH, and SELECT where the URL names a database."""

_FENCE_EXTRA_MS = 3_600_000  # the counter outlives the session and its last lease
_TEN_YEARS_S = 315_360_000  # for an operator's setting; nothing lies about for ever
_COUNTER_DIGITS = 18  # far from where it would overflow
_DAMAGED = "what is stored of the session is damaged"

logger = logging.getLogger(__name__)


class RedisSessionStore:
    """A ``SessionStore`` in Redis. Connects at the first use.

    A turn costs four round trips, however long its history is: two to begin, so that an attempt that lost has
    changed nothing and read no history, and two to commit.

    Args:
        url: ``redis://`` or ``rediss://``, with user, password and database where there are any.
        ttl_s: a session is forgotten so long after its last use.

    Raises:
        ValueError: the URL is malformed.
    """

    def __init__(self, url: str, ttl_s: float, clock: Clock) -> None:
        self._server = RedisServer(url)
        self._ttl_ms = milliseconds(ttl_s)
        self._clock = clock

    async def begin(self, ref: SessionRef, holder: str, lease_s: float) -> OpenTurn | None:
        """See ``SessionStore``. The same holder may begin again: after an error it cannot know whether it did."""
        keys = Keys(ref)

        async def take(redis: Exchange) -> OpenTurn | None:
            setting = ("SET", keys.lease, holder, "NX", "PX", milliseconds(lease_s))
            _, holding = readable(await redis.ask(setting, ("GET", keys.lease)))
            if holding != holder.encode():
                return None
            replies = await _transact(
                redis,
                ("INCR", keys.fence),
                ("GET", keys.head),
                ("LRANGE", keys.turns, 0, -1),
                ("GET", SYSTEM_PROMPT),
                ("PEXPIRE", keys.head, self._ttl_ms),
                *self._renewals(keys),
                *note_use(keys, self._clock.wall_s(), self._ttl_ms),
            )
            token, head, turns = readable(replies[:3])
            session = session_of(ref, head, turns)
            if session:
                token = max(token, decode_head(head).fence + 1)  # should the counter have been evicted
            return OpenTurn(Lease(ref, holder, token), session, _prompt(replies[3]))

        return await self._server.run(take)

    async def renew(self, lease: Lease, lease_s: float) -> bool:
        """See ``SessionStore``."""
        renewing = ("PEXPIRE", Keys(lease.ref).lease, milliseconds(lease_s))
        return await self._server.run(lambda redis: _if_held(redis, lease.ref, lease.holder, renewing))

    async def end(self, ref: SessionRef, holder: str) -> None:
        """See ``SessionStore``."""
        ending = ("UNLINK", Keys(ref).lease)
        await self._server.run(lambda redis: _if_held(redis, ref, holder, ending))

    async def commit(self, lease: Lease, before: Session, change: SessionChange, at_s: float) -> Session:
        """See ``SessionStore``."""
        keys, after = Keys(lease.ref), before.changed(change, at_s)
        # Turns without a head are what expired a moment before it, or what an eviction left.
        commands: list[Command] = [] if before.version else [("UNLINK", keys.turns)]
        if change.dropped_oldest or change.dropped_newest:
            commands.append(("LTRIM", keys.turns, change.dropped_oldest, -1 - change.dropped_newest))
        if change.added:
            commands.append(("RPUSH", keys.turns, encode_turn(change.added)))
        commands.append(("UNLINK", keys.lease))

        def check(stored: Stored) -> None:
            head = decode_head(stored.head) if stored.head is not None else None
            if stored.holder != lease.holder.encode():
                raise HistoryNotSaved(problem="its lease was lost")
            if (head.version if head else 0) != before.version or (head and head.fence >= lease.token):
                raise HistoryNotSaved(problem="the session changed or was deleted meanwhile")
            if head and stored.turns != len(before.turns):
                raise HistoryNotSaved(problem=_DAMAGED)

        turn_id = change.added.turn_id if change.added else None
        try:
            await write(self._server, self._write(keys, after, lease.token, commands, turn_id, check))
        except SessionUnreadable as error:
            raise HistoryNotSaved(problem=_DAMAGED) from error
        return after

    async def create(self, session: Session) -> None:
        """See ``SessionStore``."""
        keys = Keys(session.ref)
        commands: list[Command] = [("UNLINK", keys.turns)]
        commands += [("RPUSH", keys.turns, encode_turn(turn)) for turn in session.turns]

        def check(stored: Stored) -> None:
            if stored.holder is not None or stored.head is not None:
                raise SessionExists

        turn_id = session.turns[-1].turn_id if session.turns else None
        try:
            await write(self._server, self._write(keys, session, 0, commands, turn_id, check))
        except SessionUnreadable as error:
            raise SessionExists from error

    async def get(self, ref: SessionRef) -> Session | None:
        """See ``SessionStore``."""
        keys = Keys(ref)

        async def read(redis: Exchange) -> Session | None:
            # Not a transaction: a server whose memory is full refuses even those that only read. Every write
            # changes the head, so one that is the same before and after belongs to the turns in between.
            reading = (("GET", keys.head), ("LRANGE", keys.turns, 0, -1), ("GET", keys.head))
            while True:
                head, turns, head_after = readable(await redis.ask(*reading))
                if head == head_after:
                    return session_of(ref, head, turns)

        return await self._server.run(read)

    async def delete(self, ref: SessionRef) -> bool:
        """See ``SessionStore``."""
        keys = Keys(ref)
        # One command takes it all away, and no transaction: it must work where memory is full.
        commands = (
            ("EXISTS", keys.head, keys.lease),
            ("ZREM", keys.index, ref.session_id),
            ("UNLINK", keys.head, keys.lease, keys.turns),
            ("GET", keys.fence),
        )

        async def forget(redis: Exchange) -> bool:
            found, row, removed, token = await redis.ask(*commands)
            readable(reply for reply in (found, row, removed, token) if not is_damage(reply))
            # A counter that counts stays, for tokens grow beyond a deletion.
            if is_damage(token) or not (token or b"0").isdigit() or len(token or b"") > _COUNTER_DIGITS:
                readable(await redis.ask(("UNLINK", keys.fence)))
            return bool(found)

        return await self._server.run(forget, attempts=1)  # a second one would find nothing

    async def page(self, owner: str, limit: int, cursor: str | None) -> SessionPage:
        """See ``SessionStore``. After many in a row that are dead or unreadable, a page is shorter than it could be."""
        after = decode_cursor(cursor) if cursor is not None else None
        return await self._server.run(lambda redis: read_page(redis, owner, limit, after))

    async def system_prompt(self) -> str | None:
        """See ``SessionStore``."""
        (reply,) = await self._server.run(lambda redis: redis.ask(("GET", SYSTEM_PROMPT)))
        return _prompt(reply)

    async def set_system_prompt(self, prompt: str) -> None:
        """See ``SessionStore``."""
        await self._simply("SET", SYSTEM_PROMPT, prompt.encode(), "EX", _TEN_YEARS_S)

    async def ping(self) -> None:
        """See ``SessionStore``."""
        await self._simply("PING")

    async def aclose(self) -> None:
        """See ``SessionStore``."""
        await self._server.aclose()

    async def _simply(self, *command: str | bytes | int) -> None:
        async def ask(redis: Exchange) -> None:
            readable(await redis.ask(command))

        await self._server.run(ask)

    def _write(
        self,
        keys: Keys,
        after: Session,
        fence: int,
        commands: list[Command],
        turn_id: str | None,
        check: Callable[[Stored], None],
    ) -> Write:
        """The write after which the session is ``after``."""
        head = encode_head(after, fence)
        commands = [*commands, ("SET", keys.head, head, "PX", self._ttl_ms), *self._renewals(keys)]
        return Write(keys, head, commands, note_write(keys, after.used_at_s, self._ttl_ms), turn_id, check)

    def _renewals(self, keys: Keys) -> list[Command]:
        """What every use prolongs, the head and the index aside; after the head, which must not outlive its turns."""
        return [
            ("PEXPIRE", keys.turns, self._ttl_ms),
            ("PEXPIRE", keys.fence, self._ttl_ms + _FENCE_EXTRA_MS),
        ]


async def _transact(redis: Exchange, *commands: Command) -> list[Reply]:
    """A transaction that watches nothing, so that nothing keeps it from being run."""
    replies = await redis.transact(*commands)
    if replies is None:
        raise WatchError("a transaction without watched keys was not run")
    return replies


async def _if_held(redis: Exchange, ref: SessionRef, holder: str, command: Command) -> bool:
    """Run ``command`` if ``holder`` has the session's lease, at the very moment it is run; whether it was."""
    while True:
        _, holding = await redis.ask(("WATCH", Keys(ref).lease), ("GET", Keys(ref).lease))
        if is_damage(holding) or readable([holding])[0] != holder.encode():
            return False
        if (replies := await redis.transact(command)) is not None:
            readable(replies)
            return True


def _prompt(reply: Reply) -> str | None:
    """The system prompt. One that cannot be read counts as none: new sessions then begin with the server's own."""
    if is_damage(reply):
        logger.warning("The system prompt in Redis is of another type; it counts as not set until it is set anew.")
        return None
    (prompt,) = readable([reply])
    return None if prompt is None else bytes(prompt).decode(errors="replace")
