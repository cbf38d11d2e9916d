"""Sessions as stored: one versioned JSON element a turn, and a head for what they share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import msgspec

from inferapi.domain.chat import Session, SessionRef, SessionSummary, Turn
from inferapi.domain.errors import SessionUnreadable

VERSION = 1
"""Of the elements. A reader refuses those of a later version: it would lose what it does not know."""

R = TypeVar("R", bound=msgspec.Struct)


class TurnRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One turn."""

    v: int
    id: str
    user: str
    assistant: str
    model: str
    created_at: float
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str
    idempotency_key: str | None = None


class HeadRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a session is beside its turns. ``fence`` is the fencing token of the last write, ``turns`` their number."""

    v: int
    system_prompt: str
    version: int
    fence: int
    created_at: float
    used_at: float
    title: str
    turns: int
    forgotten_turns: int
    last_turn_id: str


_encoder = msgspec.json.Encoder()
_turns = msgspec.json.Decoder(TurnRecord)
_heads = msgspec.json.Decoder(HeadRecord)


def encode_turn(turn: Turn) -> bytes:
    """The element."""
    return _encoder.encode(
        TurnRecord(
            VERSION,
            turn.turn_id,
            turn.user,
            turn.assistant,
            turn.model,
            turn.created_at_s,
            turn.prompt_tokens,
            turn.completion_tokens,
            turn.finish_reason,
            turn.idempotency_key,
        )
    )


def encode_head(session: Session, fence: int) -> bytes:
    """The head of a session as it is to be stored."""
    return _encoder.encode(
        HeadRecord(
            VERSION,
            session.system_prompt,
            session.version,
            fence,
            session.created_at_s,
            session.used_at_s,
            session.title,
            len(session.turns),
            session.forgotten_turns,
            session.turns[-1].turn_id if session.turns else "",
        )
    )


def decode_head(data: bytes | str) -> HeadRecord:
    """The head.

    Raises:
        SessionUnreadable: it is damaged, or of a later version.
    """
    return _decoded(_heads, data)


def decode_session(ref: SessionRef, head: HeadRecord, elements: Sequence[bytes | str]) -> Session:
    """The session whose turns, oldest first, are ``elements``.

    Raises:
        SessionUnreadable: a turn is damaged, of a later version, or missing.
    """
    if len(elements) != head.turns:
        raise SessionUnreadable(problem=f"it has {len(elements)} turns where there should be {head.turns}")
    return Session(
        ref,
        head.system_prompt,
        head.created_at,
        head.used_at,
        tuple(_turn(_decoded(_turns, element)) for element in elements),
        head.version,
        head.title,
        head.forgotten_turns,
    )


def summary(session_id: str, head: HeadRecord) -> SessionSummary:
    """The session in a list."""
    return SessionSummary(session_id, head.title, head.turns, head.created_at, head.used_at)


def _turn(record: TurnRecord) -> Turn:
    return Turn(
        record.id,
        record.user,
        record.assistant,
        record.model,
        record.created_at,
        record.prompt_tokens,
        record.completion_tokens,
        record.finish_reason,
        record.idempotency_key,
    )


def _decoded(decoder: msgspec.json.Decoder[R], data: bytes | str) -> R:
    try:
        record = decoder.decode(data)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise SessionUnreadable(problem="an element is not what this server writes") from error
    version: int = record.v  # type: ignore[attr-defined]  # both records have one
    if version != VERSION:
        raise SessionUnreadable(problem=f"an element has version {version}; this server reads {VERSION}")
    return record
