"""The machine's own time."""

from __future__ import annotations

import asyncio
import time


class SystemClock:
    """A ``Clock`` that really passes."""

    def monotonic_s(self) -> float:
        """See ``Clock``."""
        return time.monotonic()

    def wall_s(self) -> float:
        """See ``Clock``."""
        return time.time()

    async def sleep(self, duration_s: float) -> None:
        """See ``Clock``."""
        await asyncio.sleep(duration_s)
