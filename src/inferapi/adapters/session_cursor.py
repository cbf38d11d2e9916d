"""Where a page of sessions ended, as the client sends it back: opaque to clients, the same in every store."""

from __future__ import annotations

import base64
import binascii
import math

from inferapi.domain.errors import InvalidRequest

_MAX_CHARACTERS = 1024


def encode_cursor(used_at_s: float, session_id: str) -> str:
    """Those after the session that was used at ``used_at_s`` seconds since the epoch, in an order of (time, id)."""
    return base64.urlsafe_b64encode(f"{used_at_s!r}|{session_id}".encode()).decode().rstrip("=")


def decode_cursor(text: str) -> tuple[float, str]:
    """The time in seconds since the epoch, and the session's id.

    Raises:
        InvalidRequest: ``encode_cursor`` never gave that text.
    """
    try:
        position = _position(text)
    except (ValueError, binascii.Error) as error:  # UnicodeError is a ValueError
        raise InvalidRequest(problem="The cursor is none that this server gave.") from error
    return position


def _position(text: str) -> tuple[float, str]:
    if len(text) > _MAX_CHARACTERS:
        raise ValueError("too long")
    padded = text + "=" * (-len(text) % 4)
    time, _, session_id = base64.b64decode(padded, altchars=b"-_", validate=True).decode().partition("|")
    used_at_s = float(time)
    if not math.isfinite(used_at_s) or used_at_s < 0 or not session_id:
        raise ValueError("out of range")
    if encode_cursor(used_at_s, session_id) != text:
        raise ValueError("not as it is written here")
    return used_at_s, session_id
