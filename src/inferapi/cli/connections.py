"""Connections of clients: how many there are, and how long they may take to say what they want.

Under uvicorn alone a client that sends a byte a second keeps its connection for ever, and there may be any number of
them. What a body may be, and how long it may take, is decided where it is read: ``inferapi.api.middleware``.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from http import HTTPStatus
from typing import Any, ClassVar, Final

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from inferapi.api.errors import problem_response
from inferapi.cli.request_parser import MOST_HEAD_BYTES, MOST_HEADERS, BoundedParser
from inferapi.domain.errors import HeadTooLarge, InferapiError, MalformedHttp, ReceiveTimeout, TooManyConnections
from inferapi.logs import request_id

log = logging.getLogger("inferapi.access")

_LEAST_FETCHED_BYTES: Final = 65_536  # of an answer, within the time that a client has to send a request
_READ_BYTES: Final = 16_384  # of one read: a few thousand of the smallest chunks, which take some 30 ms to be parsed


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What clients may take.

    Attributes:
        most_connections: at once. At the limit the one that has waited longest for its client makes room.
        receive_timeout_s: from the first moment, or the first byte, to the end of a request's headers. And within so
            long a client has to fetch 64 KiB of an answer that waits for it, or all that is left.
    """

    most_connections: int
    receive_timeout_s: float


class _Awaited(Enum):
    """What a client is to do while nobody works for it."""

    ANYTHING = auto()  # it has just connected
    HEAD = auto()  # send the rest of a request's line and headers
    WANTED_BODY = auto()  # send the rest of a body, which somebody reads and has a clock for
    UNWANTED_BODY = auto()  # send the rest of a body, though its request is answered
    FETCHING = auto()  # read what is left of an answer
    ANOTHER = auto()  # send a request, or none: uvicorn's timer runs


_UNTIMED = {None, _Awaited.ANOTHER, _Awaited.WANTED_BODY}


class ClientConnection(H11Protocol, asyncio.BufferedProtocol):
    """A client's connection, within limits; made by what ``connections_within`` gives."""

    limits: ClassVar[ConnectionLimits]
    on_refused: ClassVar[Callable[[InferapiError], None]]
    idle: ClassVar[dict[ClientConnection, None]]  # those for whom nobody works, the longest waiting first
    _buffer: ClassVar = memoryview(bytearray(_READ_BYTES))  # of all: what is read is taken out before the next read

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.conn = BoundedParser()
        self._awaited: _Awaited | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._unfetched_bytes = 0  # of the answer, when the timer was set

    # What the transport calls

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Take it in, if need be in place of one that waits."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.most_connections and not self._make_room():
            self._refuse(TooManyConnections(limit=self.limits.most_connections))
        else:
            self._look()

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's signature
        """Where to read to: little at a time, so that no client holds the event loop for long."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """So much was read."""
        self.data_received(bytes(self._buffer[:nbytes]))

    def data_received(self, data: bytes) -> None:
        """Parse it."""
        super().data_received(data)
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        """It has ended."""
        self._await(None)
        super().connection_lost(exc)

    # What uvicorn calls

    def on_response_complete(self) -> None:
        """A request was answered. What was sent behind it is not looked at before its answer is fetched."""
        if self._left_bytes and self.conn.trailing_data[0]:
            self.transport.close()  # once all is written
        super().on_response_complete()
        self._look()

    def _should_upgrade(self) -> bool:
        return False  # to nothing: and uvicorn would log two warnings for each that asks, as some clients always do

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's signature
        """Answer what the parser refused; uvicorn calls this while it handles the parser's exception."""
        error = sys.exception()
        hint = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else None
        is_too_large = hint == HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
        limits = {"limit_bytes": MOST_HEAD_BYTES, "limit_headers": MOST_HEADERS}
        self._refuse(HeadTooLarge(**limits) if is_too_large else MalformedHttp())

    # What happens then

    @property
    def _left_bytes(self) -> int:
        """How much of what was answered the client has not fetched."""
        return self.transport.get_write_buffer_size()

    def _look(self) -> None:
        """See what the client is to do now."""
        theirs, ours = self.conn.their_state, self.conn.our_state
        is_answered = self.cycle is None or self.cycle.response_complete
        awaited: _Awaited | None = None
        if is_answered and self._left_bytes:
            awaited = _Awaited.FETCHING
        elif self.transport.is_closing():
            pass
        elif theirs is h11.IDLE and self.conn.trailing_data[0]:
            awaited = _Awaited.HEAD
        elif theirs is h11.IDLE:
            awaited = _Awaited.ANOTHER if self.timeout_keep_alive_task is not None else _Awaited.ANYTHING
        elif theirs is h11.SEND_BODY:
            awaited = _Awaited.UNWANTED_BODY if ours is h11.DONE else _Awaited.WANTED_BODY
        if awaited is not self._awaited:
            self._await(awaited)

    def _await(self, awaited: _Awaited | None) -> None:
        """Wait for that from now on: whoever waits may have to make room, and for no longer than may be."""
        self._awaited = awaited
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.idle.pop(self, None)
        if awaited is not None:
            self.idle[self] = None
        if awaited not in _UNTIMED:
            self._set_timer()

    def _set_timer(self) -> None:
        self._unfetched_bytes = self._left_bytes
        self._timer = self.loop.call_later(self.limits.receive_timeout_s, self._too_late)

    def _too_late(self) -> None:
        if self._awaited is _Awaited.FETCHING:
            if not self._left_bytes:
                self._look()
            elif self._unfetched_bytes - self._left_bytes >= _LEAST_FETCHED_BYTES:
                self._set_timer()
            else:
                self.transport.abort()
        elif self._awaited is _Awaited.HEAD:
            self._refuse(ReceiveTimeout(timeout_s=self.limits.receive_timeout_s))
        else:  # nothing was asked, or it was answered
            self.transport.close()

    def _make_room(self) -> bool:
        """Let a connection go that waits for its client, if there is one; whether there was.

        The one that has waited longest, of those that have nothing of an answer left to fetch; else of all.
        """
        longest = next((each for each in self.idle if not each._left_bytes), None) or next(iter(self.idle), None)  # noqa: SLF001
        if longest is None:
            return False
        longest._await(None)  # noqa: SLF001 - another one of the same class
        self.connections.discard(longest)  # it counts no more, though it takes another turn of the loop to end
        longest.transport.abort()
        return True

    def _refuse(self, error: InferapiError) -> None:
        """Say why, if an answer can still be said, and close: what comes next could not be told from garbage."""
        self._await(None)
        self._unset_keepalive_if_required()
        if self.conn.our_state in {h11.IDLE, h11.SEND_RESPONSE} and not self.transport.is_closing():
            self._say(error)
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # at once: whoever serves it has nobody to answer any more
            self.cycle.message_event.set()
        self.transport.close()

    def _say(self, error: InferapiError) -> None:
        """Send the error as a whole response. The path may not be known, so it has the shape of most of them."""
        current = uuid.uuid4().hex
        request_id.set(current)
        response = problem_response(error)
        response.headers["X-Request-ID"] = current
        status = response.status_code
        head = h11.Response(
            status_code=status,
            reason=HTTPStatus(status).phrase.encode(),
            headers=[*self.server_state.default_headers, *response.raw_headers],
        )
        with suppress(h11.LocalProtocolError):  # to HEAD nobody may send a body; it is not worth another answer
            said = self.conn.send(head) + self.conn.send(h11.Data(data=bytes(response.body)))
            self.transport.write(said + self.conn.send(h11.EndOfMessage()))
        log.info("a connection was refused: %s, %d", error.code, status)
        type(self).on_refused(error)


def connections_within(limits: ConnectionLimits, on_refused: Callable[[InferapiError], None]) -> type[ClientConnection]:
    """The protocol of one server's connections, for uvicorn's ``http``.

    Args:
        limits: for all of them together.
        on_refused: hears what a client was told here, which the application never sees.
    """

    class LimitedConnection(ClientConnection):
        pass

    LimitedConnection.limits, LimitedConnection.idle = limits, {}
    LimitedConnection.on_refused = staticmethod(on_refused)
    return LimitedConnection
