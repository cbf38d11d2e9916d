"""A bell: rung at every change, heard by everybody who waits for one."""

from __future__ import annotations

import asyncio
from typing import Any

from inferapi.domain.ports import Clock


class Bell:
    """Tells of changes, not of which.

    No ring is missed by a waiter that has no ``await`` between its look at things and ``changed``.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._rung = asyncio.Event()

    def ring(self) -> None:
        """Wake everybody who waits for a change."""
        self._rung.set()
        self._rung = asyncio.Event()

    async def changed(self, timeout_s: float | None) -> None:
        """Wait for the next change, or until the time is over."""
        waits: set[asyncio.Future[Any]] = {asyncio.ensure_future(self._rung.wait())}
        if timeout_s is not None:
            waits.add(asyncio.ensure_future(self._clock.sleep(timeout_s)))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
