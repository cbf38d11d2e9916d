"""What a request may look like on the wire: h11's parser, with what it does not count."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

import h11

MOST_HEAD_BYTES: Final = 32_768
MOST_HEADERS: Final = 128
_FREE_CHUNKS: Final = 4096  # that a body may come in, however small they are
_LEAST_CHUNK_BYTES: Final = 64  # on the average, of those beyond


class BoundedParser(h11.Connection):
    """h11's parser, which also counts the headers of a request, and the pieces that its body comes in."""

    def __init__(self) -> None:
        super().__init__(h11.SERVER, MOST_HEAD_BYTES)
        self._chunks = self._body_bytes = 0

    def next_event(self) -> type[h11.NEED_DATA | h11.PAUSED] | h11.Event:
        """See h11.

        Raises:
            h11.RemoteProtocolError: a request that is malformed or out of bounds.
        """
        event = super().next_event()
        if isinstance(event, h11.Data):
            self._count(event)
        elif isinstance(event, h11.Request):
            self._chunks = self._body_bytes = 0
            # h11 itself refuses only what has not come whole when it is too long already.
            head_bytes = sum(len(name) + len(value) for name, value in event.headers) + len(event.target)
            if head_bytes > MOST_HEAD_BYTES or len(event.headers) > MOST_HEADERS:
                raise h11.RemoteProtocolError("too large", error_status_hint=HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        return event

    def _count(self, data: h11.Data) -> None:
        self._chunks += data.chunk_start
        self._body_bytes += len(data.data)
        if self._chunks > _FREE_CHUNKS + self._body_bytes // _LEAST_CHUNK_BYTES:
            raise h11.RemoteProtocolError("too many chunks")
