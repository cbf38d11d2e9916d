"""How long a write to a client may take."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

MOST_WRITTEN_BYTES = 65_536
"""One write: as much as a server buffers before it waits for its client, so that a write is progress."""


class WriteDeadline:
    """Ends what is within it with ``TimeoutError``, once a write has taken for so long, or a little more.

    It looks now and then. A timeout around every write takes a tenth to a fifth of the API's time for an event.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._interval_s = min(timeout_s / 4, 1.0)
        self._event_loop = asyncio.get_running_loop()
        self._began_s: float | None = None
        self._timeout = asyncio.timeout(None)
        self._timer = self._event_loop.call_later(self._interval_s, self._look)

    async def __aenter__(self) -> Self:
        await self._timeout.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        await self._timeout.__aexit__(kind, error, trace)

    def begin(self) -> None:
        """A write begins."""
        self._began_s = self._event_loop.time()

    def end(self) -> None:
        """It has ended."""
        self._began_s = None

    def _look(self) -> None:
        now_s = self._event_loop.time()
        if self._began_s is not None and now_s - self._began_s >= self._timeout_s:
            self._timeout.reschedule(now_s)
        else:
            self._timer = self._event_loop.call_later(self._interval_s, self._look)
