"""Answers over a stream of items, whole or as server-sent events; the stream ends however the client leaves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, Generic, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from inferapi.api.disconnect import disconnected, until_disconnect
from inferapi.api.errors import problem
from inferapi.api.event_pump import EventPump, Events
from inferapi.api.json_reply import json_reply
from inferapi.api.metrics import note_error
from inferapi.api.write_deadline import MOST_WRITTEN_BYTES, WriteDeadline
from inferapi.domain.errors import InferapiError

log = logging.getLogger(__name__)

T = TypeVar("T")

MEDIA_TYPE = "text/event-stream"
DONE = b"data: [DONE]\n\n"

_encoder = msgspec.json.Encoder()


def event(data: Any) -> bytes:
    """One event with JSON data."""
    return b"data: " + _encoder.encode(data) + b"\n\n"


class PlainEvents(Generic[T]):
    """An event for every item, an error as problem details, ``[DONE]`` at the end."""

    def __init__(self, encode: Callable[[T], Any]) -> None:
        self._encode = encode

    def of(self, item: T) -> bytes:
        """See ``Events``."""
        return event(self._encode(item))

    def failure(self, error: InferapiError) -> bytes:
        """See ``Events``."""
        return event({"error": problem(error)})

    def end(self) -> bytes:
        """See ``Events``."""
        return DONE


def described(example: str) -> dict[int | str, dict[str, Any]]:
    """How the manual shows a route that may answer with events."""
    stream = {
        "schema": {"type": "string", "description": "Events, a line of JSON each, then `[DONE]`; comments in silence."},
        "example": example,
    }
    return {200: {"description": "The answer, whole or as events.", "content": {MEDIA_TYPE: stream}}}


async def respond(request: Request, items: AsyncGenerator[T], encode: Callable[[T], Any], *, stream: bool) -> Response:
    """Every item as an event, or the last one alone as the body.

    Raises:
        InferapiError: the answer failed; in a stream, only before its first item.
        ClientDisconnect: the client left.
    """
    if stream:
        return await EventStream.start(request, items, PlainEvents(encode))
    last = await until_disconnect(request, _last(items))
    return json_reply(encode(last))


async def _last(items: AsyncGenerator[T]) -> T:
    async with aclosing(items):
        async for item in items:
            last = item
    return last


class EventStream(Response):
    """Events of items; a ping in silence; an error event instead of the end when it goes wrong.

    A client that does not take a write of at most 64 KiB within ``app.state.stream_write_timeout_s``, or that is
    ``MOST_HELD_BYTES`` of the pump behind, is cut off, and its work ended.

    Not Starlette's ``StreamingResponse``, which takes a generator and so a switch of tasks for every event.
    """

    def __init__(self, pump: EventPump) -> None:
        super().__init__(media_type=MEDIA_TYPE, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["Content-Length"]  # it is not known
        self._pump = pump

    @classmethod
    async def start(cls, request: Request, items: AsyncGenerator[T], events: Events[T]) -> EventStream:
        """Await the first event, so that an early error keeps its HTTP status; after a ping's time go without.

        Raises:
            InferapiError: it came before any event.
            ClientDisconnect: the client left before it.
        """
        pump = EventPump(items, events)
        try:
            await until_disconnect(request, pump.begun())
        except BaseException:
            await pump.aclose()
            raise
        return cls(pump)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it; end the work whether the client stayed, left or does not read."""
        pump = self._pump
        leaving = asyncio.ensure_future(disconnected(receive))
        leaving.add_done_callback(lambda _: pump.stop())
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await self._send_all(send, scope["app"].state.stream_write_timeout_s)
        except TimeoutError:
            log.warning("a client that does not read its stream is cut off")
        finally:
            leaving.cancel()
            await asyncio.gather(leaving, return_exceptions=True)
            await pump.aclose()
            if pump.error is not None:
                note_error(scope, pump.error)

    async def _send_all(self, send: Send, write_timeout_s: float) -> None:
        """Send what there is as it comes, until the last of it or until nobody listens.

        Raises:
            TimeoutError: a write took too long.
        """
        is_last = False
        async with WriteDeadline(write_timeout_s) as deadline:
            while not is_last:
                data, is_last = await self._pump.next()
                for start in range(0, max(len(data), 1), MOST_WRITTEN_BYTES):  # the last write may be empty
                    if self._pump.is_stopped:
                        return
                    piece = data[start : start + MOST_WRITTEN_BYTES]
                    more = not is_last or start + MOST_WRITTEN_BYTES < len(data)
                    deadline.begin()
                    await send({"type": "http.response.body", "body": piece, "more_body": more})
                    deadline.end()
                if self._pump.is_stopped:
                    return
