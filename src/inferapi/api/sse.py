"""Answers over a stream of items, whole or as server-sent events; the stream ends however the client leaves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, Generic, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from inferapi.api.disconnect import until_disconnect
from inferapi.api.errors import log_cause, problem
from inferapi.domain.errors import InferapiError, UnexpectedError

log = logging.getLogger(__name__)

T = TypeVar("T")

MEDIA_TYPE = "text/event-stream"
PING_S = 10.0
DONE = b"data: [DONE]\n\n"
_PING = b": ping\n\n"


async def respond(request: Request, items: AsyncGenerator[T], encode: Callable[[T], Any], *, stream: bool) -> Response:
    """Every item as an event, or the last one alone as the body.

    Raises:
        InferapiError: the answer failed; in a stream, only before its first item.
        ClientDisconnect: the client left.
    """
    if stream:
        return await EventStream.start(request, items, encode)
    last = await until_disconnect(request, _last(items))
    return Response(msgspec.json.encode(encode(last)), media_type="application/json")


async def _last(items: AsyncGenerator[T]) -> T:
    async with aclosing(items):
        async for item in items:
            last = item
    return last


class _Ping:
    """Nothing was said for a while."""


class _End:
    """Everything was said."""


def event(data: Any) -> bytes:
    """One event with JSON data."""
    return b"data: " + msgspec.json.encode(data) + b"\n\n"


class EventStream(StreamingResponse):
    """An event for every item; a ping in silence; an error event instead of ``[DONE]`` when it goes wrong."""

    def __init__(self, pump: _Pump[Any], first: Any, encode: Callable[[Any], Any]) -> None:
        self._pump = pump
        super().__init__(
            self._events(first, encode),
            media_type=MEDIA_TYPE,
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )

    @classmethod
    async def start(cls, request: Request, items: AsyncGenerator[T], encode: Callable[[T], Any]) -> EventStream:
        """Await the first item, so that an early error keeps its HTTP status; after a ping's time go without.

        Raises:
            InferapiError: what the first item was.
            ClientDisconnect: the client left before it.
        """
        pump = _Pump(items)
        try:
            first = await until_disconnect(request, pump.next())
        except BaseException:
            await pump.aclose()
            raise
        if isinstance(first, InferapiError):
            await pump.aclose()
            raise first
        return cls(pump, first, encode)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it; end the work whether the client stayed or left."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._pump.aclose()

    async def _events(self, item: Any, encode: Callable[[Any], Any]) -> AsyncGenerator[bytes]:
        while True:
            if isinstance(item, InferapiError):
                log_cause(item)
                yield event({"error": problem(item)})
                return
            if isinstance(item, _End):
                yield DONE
                return
            yield _PING if isinstance(item, _Ping) else event(encode(item))
            item = await self._pump.next()


class _Pump(Generic[T]):
    """Runs a generator in a task of its own, so that waiting for it can be cut short without ending it."""

    def __init__(self, items: AsyncGenerator[T]) -> None:
        self._queue: asyncio.Queue[T | InferapiError | _End] = asyncio.Queue()
        self._task = asyncio.create_task(self._run(items))

    async def next(self) -> T | InferapiError | _Ping | _End:
        """The next item, an error, the end, or a ping if nothing came for ``PING_S``."""
        try:
            async with asyncio.timeout(PING_S):
                return await self._queue.get()
        except TimeoutError:
            return _Ping()

    async def aclose(self) -> None:
        """End the generator, wherever it is."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self, items: AsyncGenerator[T]) -> None:
        last: InferapiError | _End = _End()
        try:
            async with aclosing(items):
                async for item in items:
                    self._queue.put_nowait(item)
        except InferapiError as error:
            last = error
        except Exception:
            log.exception("a stream broke")
            last = UnexpectedError()
        self._queue.put_nowait(last)
