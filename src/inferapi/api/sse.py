"""Answers over a stream of items, whole or as server-sent events; the stream ends however the client leaves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from inferapi.api.disconnect import disconnected, until_disconnect
from inferapi.api.errors import log_cause, problem
from inferapi.domain.errors import InferapiError, UnexpectedError

log = logging.getLogger(__name__)

T = TypeVar("T")

MEDIA_TYPE = "text/event-stream"
PING_S = 10.0
_LOOK_AGAIN_S = 1.0
DONE = b"data: [DONE]\n\n"
_PING = b": ping\n\n"

_encoder = msgspec.json.Encoder()


async def respond(request: Request, items: AsyncGenerator[T], encode: Callable[[T], Any], *, stream: bool) -> Response:
    """Every item as an event, or the last one alone as the body.

    Raises:
        InferapiError: the answer failed; in a stream, only before its first item.
        ClientDisconnect: the client left.
    """
    if stream:
        return await EventStream.start(request, items, encode)
    last = await until_disconnect(request, _last(items))
    return Response(_encoder.encode(encode(last)), media_type="application/json")


async def _last(items: AsyncGenerator[T]) -> T:
    async with aclosing(items):
        async for item in items:
            last = item
    return last


def event(data: Any) -> bytes:
    """One event with JSON data."""
    return b"data: " + _encoder.encode(data) + b"\n\n"


class EventStream(Response):
    """An event for every item; a ping in silence; an error event instead of ``[DONE]`` when it goes wrong.

    Not Starlette's ``StreamingResponse``, which takes a generator and so a switch of tasks for every event.
    """

    def __init__(self, pump: _Pump) -> None:
        super().__init__(media_type=MEDIA_TYPE, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["Content-Length"]  # it is not known
        self._pump = pump

    @classmethod
    async def start(cls, request: Request, items: AsyncGenerator[T], encode: Callable[[T], Any]) -> EventStream:
        """Await the first item, so that an early error keeps its HTTP status; after a ping's time go without.

        Raises:
            InferapiError: what the first item was.
            ClientDisconnect: the client left before it.
        """
        pump = _Pump(items, encode)
        try:
            await until_disconnect(request, pump.begun())
        except BaseException:
            await pump.aclose()
            raise
        return cls(pump)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it; end the work whether the client stayed or left."""
        del scope
        pump = self._pump
        leaving = asyncio.ensure_future(disconnected(receive))
        leaving.add_done_callback(lambda _: pump.stop())
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            is_last = False
            while not is_last:
                data, is_last = await pump.next()
                if pump.is_stopped:
                    break
                await send({"type": "http.response.body", "body": data, "more_body": not is_last})
        finally:
            leaving.cancel()
            await asyncio.gather(leaving, return_exceptions=True)
            await pump.aclose()


class _Pump:
    """Runs a generator in a task of its own, and keeps its items as events until they are fetched.

    So neither a wait that is cut short ends the generator, nor does a client that reads slowly hold it up.
    """

    def __init__(self, items: AsyncGenerator[T], encode: Callable[[T], Any]) -> None:
        self._event_loop = asyncio.get_running_loop()
        self._events: list[bytes] = []
        self._error: InferapiError | None = None
        self._is_over = False  # the generator has ended
        self._news: asyncio.Future[None] | None = None  # while somebody waits for events
        self._quiet_since_s = self._event_loop.time()
        self._timer = self._event_loop.call_at(self._quiet_since_s + PING_S, self._ping)
        self._task = asyncio.create_task(self._run(items, encode))
        self.is_stopped = False

    async def begun(self) -> None:
        """Wait for the first event, be it a ping.

        Raises:
            InferapiError: there is none but this error.
        """
        await self._anything()
        if self._error is not None and not self._events:
            raise self._error

    async def next(self) -> tuple[bytes, bool]:
        """All events since the last call, at least one unless the pump was stopped; and whether they are the last."""
        await self._anything()
        is_last = self._is_over
        if is_last and self._error is not None:
            log_cause(self._error)
            self._events.append(event({"error": problem(self._error)}))
        elif is_last:
            self._events.append(DONE)
        data = b"".join(self._events)
        self._events.clear()
        return data, is_last

    def stop(self) -> None:
        """Nobody listens any more."""
        self.is_stopped = True
        self._ring()

    async def aclose(self) -> None:
        """End the generator, wherever it is."""
        self._timer.cancel()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self, items: AsyncGenerator[T], encode: Callable[[T], Any]) -> None:
        try:
            async with aclosing(items):
                async for item in items:
                    self._events.append(event(encode(item)))
                    self._ring()
        except InferapiError as error:
            self._error = error
        except Exception:
            log.exception("a stream broke")
            self._error = UnexpectedError()
        self._is_over = True
        self._ring()

    def _ping(self) -> None:
        """Say something, if somebody has waited for so long: a client that is slow to read needs no pings."""
        now_s = self._event_loop.time()
        due_s = self._quiet_since_s + PING_S if self._news is not None else now_s + _LOOK_AGAIN_S
        if due_s <= now_s:
            self._events.append(_PING)
            self._ring()
            due_s = now_s + PING_S
        self._timer = self._event_loop.call_at(due_s, self._ping)

    def _ring(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    async def _anything(self) -> None:
        while not (self._events or self._is_over or self.is_stopped):
            self._news, self._quiet_since_s = self._event_loop.create_future(), self._event_loop.time()
            try:
                await self._news
            finally:
                self._news = None
