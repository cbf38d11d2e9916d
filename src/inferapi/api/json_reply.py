"""A whole answer as JSON, of which a client that does not read holds no more than a write."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from inferapi.api.write_deadline import MOST_WRITTEN_BYTES, WriteDeadline

log = logging.getLogger(__name__)

_encoder = msgspec.json.Encoder()


class JsonReply(Response):
    """The JSON that ``pieces`` are together.

    A client that does not take a write of at most 64 KiB within ``app.state.stream_write_timeout_s`` is cut off.
    """

    def __init__(self, pieces: Sequence[bytes]) -> None:
        super().__init__(media_type="application/json")
        self._pieces = pieces
        self._bytes = sum(map(len, pieces))
        self.headers["Content-Length"] = str(self._bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        """Send it."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        sent_bytes = 0
        try:
            async with WriteDeadline(scope["app"].state.stream_write_timeout_s) as deadline:
                for data in _writes(self._pieces):
                    sent_bytes += len(data)
                    deadline.begin()
                    await send({"type": "http.response.body", "body": data, "more_body": sent_bytes < self._bytes})
                    deadline.end()
        except TimeoutError:
            log.warning("a client that does not read its answer is cut off")


def _writes(pieces: Sequence[bytes]) -> Iterator[bytes]:
    """The same bytes, as much at a time as one write may be."""
    small: list[bytes] = []
    room_bytes = MOST_WRITTEN_BYTES
    for piece in pieces:
        if small and len(piece) > room_bytes:
            yield b"".join(small)
            small, room_bytes = [], MOST_WRITTEN_BYTES
        if len(piece) > MOST_WRITTEN_BYTES:
            for start in range(0, len(piece), MOST_WRITTEN_BYTES):
                yield piece[start : start + MOST_WRITTEN_BYTES]
        else:
            small.append(piece)
            room_bytes -= len(piece)
    if small:
        yield b"".join(small)


def json_reply(data: Any) -> JsonReply:
    """A whole answer."""
    return JsonReply([_encoder.encode(data)])
