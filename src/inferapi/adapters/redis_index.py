"""An owner's sessions in the order of their last use: a sorted set, made from the sessions and never trusted.

Redis ends sessions by itself and does not tell the index. What it still holds of them goes when somebody asks for a
page, or with a later write.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field

from redis.exceptions import ResponseError

from inferapi.adapters.redis_connection import Command, Exchange
from inferapi.adapters.redis_keys import MAX_SESSION_BYTES, Keys, index_key, is_damage, readable
from inferapi.adapters.session_cursor import encode_cursor
from inferapi.adapters.session_records import decode_head, summary
from inferapi.domain.chat import SessionPage, SessionRef, SessionSummary
from inferapi.domain.errors import SessionUnreadable

_SLACK_S = 3600.0  # clocks of servers differ; who is removed too late does no harm
_ROUNDS = 8
_EXTRA_ROWS = 32  # read at once with those of a page, for there may be dead ones among them

Position = tuple[float, str]
"""Time of the last use in seconds since the epoch, and id: the order of a list, backwards."""


def note_use(keys: Keys, at_s: float, ttl_ms: int) -> list[Command]:
    """A listed session was used. One that was never stored is not listed."""
    return [("ZADD", keys.index, "XX", at_s, keys.ref.session_id), ("PEXPIRE", keys.index, ttl_ms)]


def note_write(keys: Keys, at_s: float, ttl_ms: int) -> list[Command]:
    """A session was written; those whose time must be over are listed no more."""
    over_s = at_s - ttl_ms / 1000 - _SLACK_S
    return [
        ("ZADD", keys.index, at_s, keys.ref.session_id),
        ("ZREMRANGEBYSCORE", keys.index, "-inf", over_s),
        ("PEXPIRE", keys.index, ttl_ms),
    ]


@dataclass(slots=True)
class _Listing:
    """Readable sessions so far, where the last row that was looked at is, and rows without a session."""

    sessions: list[tuple[Position, SessionSummary]] = field(default_factory=list)
    last: Position | None = None
    dead: list[bytes] = field(default_factory=list)
    is_complete: bool = False


async def read_page(redis: Exchange, owner: str, limit: int, after: Position | None) -> SessionPage:
    """Up to ``limit`` sessions whose position is before ``after``: two round trips where all of them live.

    After many rows in a row without a readable session the page is shorter, and the next begins there.
    """
    listing = _Listing(last=after)
    for _ in range(_ROUNDS):
        await _read_rows(redis, owner, limit + 1 + _EXTRA_ROWS, listing)
        if listing.is_complete or len(listing.sessions) > limit:
            break
    if listing.dead:
        with suppress(ResponseError):  # a server that cannot be written now; they are left out all the same
            await _forget(redis, owner, listing.dead)
    told = listing.sessions[:limit]
    next_cursor = None
    if len(listing.sessions) > limit:
        next_cursor = encode_cursor(*told[-1][0])
    elif not listing.is_complete and listing.last:
        next_cursor = encode_cursor(*listing.last)
    return SessionPage(tuple(line for _, line in told), next_cursor)


async def _read_rows(redis: Exchange, owner: str, count: int, listing: _Listing) -> None:
    """Look at the next ``count`` rows."""
    rows = await _rows_after(redis, owner, count, listing.last)
    listing.is_complete = len(rows) < count
    if not rows:
        return
    listing.last = _position(*rows[-1])
    refs = [SessionRef(owner, _position(*row)[1]) for row in rows]
    (heads,) = readable(await redis.ask(("MGET", *(Keys(ref).head for ref in refs))))
    for (member, score), ref, head in zip(rows, refs, heads, strict=True):
        if head is None:
            listing.dead.append(member)
        elif len(head) <= MAX_SESSION_BYTES:
            try:
                line = summary(ref.session_id, decode_head(head))
            except SessionUnreadable:
                continue
            listing.sessions.append((_position(member, score), line))


async def _rows_after(redis: Exchange, owner: str, count: int, after: Position | None) -> list[tuple[bytes, bytes]]:
    """The next ``count`` rows, or all that are left: member and score."""
    highest = after[0] if after else "+inf"
    rows: list[tuple[bytes, bytes]] = []
    offset = 0
    while len(rows) < count:
        (reply,) = await redis.ask(
            ("ZREVRANGEBYSCORE", index_key(owner), highest, "-inf", "WITHSCORES", "LIMIT", offset, count)
        )
        if is_damage(reply):  # none of ours; what is made anew lists whatever is written from then on
            await redis.ask(("UNLINK", index_key(owner)))
            return []
        readable([reply])
        found = list(zip(reply[::2], reply[1::2], strict=True))
        # Rows of the same instant as the cursor's come again.
        rows += [row for row in found if after is None or _position(*row) < after]
        if len(found) < count:
            break
        offset += count
    return rows[:count]


def _position(member: bytes, score: bytes) -> Position:
    return float(score), member.decode(errors="replace")


async def _forget(redis: Exchange, owner: str, members: list[bytes]) -> None:
    """Take rows out whose session is gone, unless one comes back at this moment."""
    heads = [Keys(SessionRef(owner, member.decode(errors="replace"))).head for member in members]
    _, *replies = await redis.ask(("WATCH", *heads), *(("EXISTS", head) for head in heads))
    gone = [member for member, exists in zip(members, readable(replies), strict=True) if not exists]
    if gone:
        await redis.transact(("ZREM", index_key(owner), *gone))
