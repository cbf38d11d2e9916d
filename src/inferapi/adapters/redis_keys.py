"""Where sessions are in Redis, and whether what is read there can be one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from redis.exceptions import ResponseError

from inferapi.adapters.redis_connection import Reply
from inferapi.adapters.session_records import decode_head, decode_session
from inferapi.domain.chat import Session, SessionRef
from inferapi.domain.errors import SessionUnreadable

MAX_SESSION_BYTES = 64 * 2**20
"""A session beyond that is none of this server's writing, and is not decoded."""
_DAMAGES = ("WRONGTYPE", "value is not an integer", "increment or decrement would overflow")
SYSTEM_PROMPT = "inferapi:system_prompt"


class Keys:
    """The keys of one session, and of the index of its owner's. Neither owners nor ids contain a colon."""

    def __init__(self, ref: SessionRef) -> None:
        self.ref = ref
        prefix = f"inferapi:session:{ref.owner}:{ref.session_id}"
        self.head, self.turns = f"{prefix}:head", f"{prefix}:turns"
        self.lease, self.fence = f"{prefix}:lease", f"{prefix}:fence"
        self.index = index_key(ref.owner)


def index_key(owner: str) -> str:
    """The owner's sessions by the time of their last use."""
    return f"inferapi:sessions:{owner}"


def milliseconds(duration_s: float) -> int:
    """As Redis counts times to live: at least one, for none would be an error."""
    return max(1, round(duration_s * 1000))


def is_damage(reply: Reply) -> bool:
    """Whether the server says that a key holds something else than was asked for."""
    return isinstance(reply, ResponseError) and str(reply).startswith(_DAMAGES)


def readable(replies: Iterable[Reply]) -> list[Reply]:
    """The replies, if there is no error among them.

    Raises:
        SessionUnreadable: a key holds something else than was asked for.
        ResponseError: the server refused something.
    """
    checked = list(replies)
    for reply in checked:
        if is_damage(reply):
            raise SessionUnreadable(problem="a key of it is not what this server writes") from reply
        if isinstance(reply, ResponseError):
            raise reply
    return checked


def session_of(ref: SessionRef, head: bytes | None, turns: Sequence[bytes]) -> Session | None:
    """The session that was read, if there is one.

    Raises:
        SessionUnreadable: it is damaged, of a later version, or larger than any session can be.
    """
    if head is None:
        return None
    if len(head) + sum(map(len, turns)) > MAX_SESSION_BYTES:
        raise SessionUnreadable(problem=f"it has more than {MAX_SESSION_BYTES} bytes")
    return decode_session(ref, decode_head(head), turns)
