"""What a stream has to tell, kept until it is fetched: events of items, and pings in silence."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Protocol, TypeVar

from inferapi.api.errors import log_cause
from inferapi.api.write_deadline import MOST_WRITTEN_BYTES
from inferapi.domain.errors import InferapiError, UnexpectedError

log = logging.getLogger(__name__)

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)

PING_S = 10.0
MOST_HELD_BYTES = 16 * 1024**2
"""Kept for a client that reads more slowly than its model speaks; one that is further behind is cut off."""
_LOOK_AGAIN_S = 1.0
_PING = b": ping\n\n"


class Events(Protocol[T_contra]):
    """How the items of a stream are told. Each method gives whole events; ``of`` may give none."""

    def of(self, item: T_contra) -> bytes:
        """Of an item."""
        ...

    def failure(self, error: InferapiError) -> bytes:
        """Instead of the end, when it goes wrong."""
        ...

    def end(self) -> bytes:
        """After the last item."""
        ...


class EventPump:
    """Runs a generator in a task of its own, and keeps its items as events until they are fetched.

    So neither a wait that is cut short ends the generator, nor does a client that reads slowly hold it up.
    """

    def __init__(self, items: AsyncGenerator[T], events: Events[T]) -> None:
        self._event_loop = asyncio.get_running_loop()
        self._held: deque[bytes] = deque()
        self._held_bytes = self._last_bytes = 0
        self._error: InferapiError | None = None
        self._is_over = False  # the generator has ended
        self._news: asyncio.Future[None] | None = None  # while somebody waits for events
        self._quiet_since_s = self._event_loop.time()
        self._timer = self._event_loop.call_at(self._quiet_since_s + PING_S, self._ping)
        self._failure, self._end = events.failure, events.end
        self._task = asyncio.create_task(self._run(items, events))
        self.is_stopped = False

    async def begun(self) -> None:
        """Wait for the first event, be it a ping.

        Raises:
            InferapiError: there is none but this error.
        """
        await self._anything()
        if self._error is not None and not self._held:
            raise self._error

    @property
    def error(self) -> InferapiError | None:
        """What it went wrong with, once it has."""
        return self._error

    async def next(self) -> tuple[bytes, bool]:
        """Events since the last call, for one write, none only if the pump was stopped; and whether they are the last.

        One event alone may be longer than a write.
        """
        await self._anything()
        if self.is_stopped:
            return b"", False
        taken: list[bytes] = []
        room_bytes = MOST_WRITTEN_BYTES
        while self._held and (not taken or len(self._held[0]) <= room_bytes):
            taken.append(self._held.popleft())
            room_bytes -= len(taken[-1])
        data = b"".join(taken)
        self._held_bytes -= len(data)
        is_last = self._is_over and not self._held
        return (data + self._last_words(), True) if is_last else (data, False)

    def stop(self) -> None:
        """Nobody listens any more."""
        self.is_stopped = True
        self._ring()

    async def aclose(self) -> None:
        """End the generator, wherever it is."""
        self._timer.cancel()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self, items: AsyncGenerator[T], events: Events[T]) -> None:
        try:
            async with aclosing(items):
                async for item in items:
                    # Without the last: what an item makes at once, nobody had time to fetch.
                    if self._held_bytes - self._last_bytes > MOST_HELD_BYTES:
                        log.warning("a client that is too far behind its stream is cut off")
                        self.stop()
                        break
                    self._hold(events.of(item))
        except InferapiError as error:
            self._error = error
        except Exception:
            log.exception("a stream broke")
            self._error = UnexpectedError()
        self._is_over = True
        self._ring()

    def _hold(self, data: bytes) -> None:
        if data:
            self._held.append(data)
            self._held_bytes += len(data)
            self._last_bytes = len(data)
            self._ring()

    def _last_words(self) -> bytes:
        if self._error is None:
            return self._end()
        log_cause(self._error)
        return self._failure(self._error)

    def _ping(self) -> None:
        """Say something, if somebody has waited for so long: a client that is slow to read needs no pings."""
        now_s = self._event_loop.time()
        due_s = self._quiet_since_s + PING_S if self._news is not None else now_s + _LOOK_AGAIN_S
        if due_s <= now_s:
            self._hold(_PING)
            due_s = now_s + PING_S
        self._timer = self._event_loop.call_at(due_s, self._ping)

    def _ring(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    async def _anything(self) -> None:
        while not (self._held or self._is_over or self.is_stopped):
            self._news, self._quiet_since_s = self._event_loop.create_future(), self._event_loop.time()
            try:
                await self._news
            finally:
                self._news = None
