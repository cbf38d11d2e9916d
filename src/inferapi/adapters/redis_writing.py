"""One write to a session in Redis: whole or not at all, and known to be the one or the other where it can be known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from redis.exceptions import RedisError, WatchError

from inferapi.adapters.redis_connection import BROKEN, Command, Exchange, RedisServer, Reply, answering
from inferapi.adapters.redis_keys import Keys, is_damage, readable, session_of
from inferapi.adapters.session_records import decode_head

_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Stored:
    """What a write finds: the lease's holder, the head, the number of turns."""

    holder: bytes | None
    head: bytes | None
    turns: int


@dataclass(frozen=True, slots=True)
class Write:
    """What is to happen at once, if ``check`` does not raise at what is stored before.

    Attributes:
        head: what the head is afterwards. No other write has the same: it carries the writer's fencing token.
        commands: what makes it so, the index apart.
        index: what makes the index so. An index of another type is removed, and made anew by these.
        turn_id: of the turn that is added last.
    """

    keys: Keys
    head: bytes
    commands: Sequence[Command]
    index: Sequence[Command]
    turn_id: str | None
    check: Callable[[Stored], None]


async def write(server: RedisServer, write: Write) -> None:
    """Carry it out, in two round trips where nothing comes between.

    A connection that breaks after EXEC was sent leaves it open whether the server ran it. The next attempt looks.
    Only if nothing came of it is EXEC sent again, and should the first still be on its way, then the first that
    arrives makes the other fail: both watch the keys that both write.

    Raises:
        SessionStoreUnavailable: it could not be done, or it could not be found out whether it was done.
        SessionUnreadable: a key of the session is damaged.
        Exception: what ``check`` raises; then nothing was written.
    """
    is_unknown = False
    async with answering():
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                async with server.exchange() as redis:
                    stored = await _watch(redis, write.keys)
                    if is_unknown and await _has_landed(redis, write, stored):
                        return
                    write.check(stored)
                    was_unknown, is_unknown = is_unknown, True
                    replies = await redis.transact(*write.commands, *write.index)
                    if replies is not None:
                        await _mend_index(redis, write, replies)
                        return
                    is_unknown = was_unknown
            except BROKEN:
                if attempt == _ATTEMPTS:
                    raise
        raise WatchError("the session is being changed again and again")


async def _watch(redis: Exchange, keys: Keys) -> Stored:
    _, *replies = readable(
        await redis.ask(
            ("WATCH", keys.lease, keys.head, keys.turns),
            ("GET", keys.lease),
            ("GET", keys.head),
            ("LLEN", keys.turns),
        )
    )
    return Stored(*replies)


async def _has_landed(redis: Exchange, write: Write, stored: Stored) -> bool:
    """Whether a write whose end nobody heard of was carried out."""
    if stored.head == write.head:
        return True
    if stored.head is None or decode_head(stored.head).version <= decode_head(write.head).version:
        return False
    # Others have written since, perhaps on top of it: then its turn is there.
    if write.turn_id is None:
        raise RedisError("a write was overtaken before anybody could see whether it was done")
    (turns,) = readable(await redis.ask(("LRANGE", write.keys.turns, 0, -1)))
    session = session_of(write.keys.ref, stored.head, turns)
    return session is not None and any(turn.turn_id == write.turn_id for turn in session.turns)


async def _mend_index(redis: Exchange, write: Write, replies: list[Reply]) -> None:
    """Make the index anew if it was none: the session is stored, and its list must not keep it from that."""
    readable(replies[: len(write.commands)])
    of_index = replies[len(write.commands) :]
    if any(map(is_damage, of_index)):
        with suppress(RedisError, OSError):  # else the next write will
            await redis.transact(("UNLINK", write.keys.index), *write.index)
