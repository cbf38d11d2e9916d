"""When a worker has been silent for too long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

_TICKS = 10  # a timeout is so many ticks


class Silence:
    """How long nothing was heard, as far as somebody was there to hear it.

    Time is added up in ticks. One that comes late says that this process stood still itself: what was sent
    meanwhile still waits to be read, so that time does not count.
    """

    def __init__(self, timeout_s: float, now_s: float) -> None:
        self.tick_s = timeout_s / _TICKS
        self._silent_ticks = 0
        self._last_tick_s = now_s

    def heard(self) -> None:
        """Something came."""
        self._silent_ticks = 0

    def tick(self, now_s: float) -> bool:
        """To be called every ``tick_s``; whether the timeout has passed in silence."""
        is_late = now_s - self._last_tick_s > 2 * self.tick_s
        self._last_tick_s = now_s
        self._silent_ticks += not is_late
        return self._silent_ticks >= _TICKS


class Heartbeat:
    """Listens to one worker from its fork on, and calls ``on_silence`` once if nothing comes.

    Before the fork there is nothing to hear: the fork server may still be importing.
    """

    def __init__(self, timeout_s: float, on_silence: Callable[[], None]) -> None:
        self._timeout_s = timeout_s
        self._on_silence = on_silence
        self._silence: Silence | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = False

    @property
    def timeout_s(self) -> float:
        """The silence that is too long."""
        return self._timeout_s

    def heard(self) -> None:
        """The worker said something, or was forked just now."""
        if self._silence is not None:
            self._silence.heard()
        elif not self._stopped:
            self._silence = Silence(self._timeout_s, asyncio.get_running_loop().time())
            self._arm(self._silence)

    def stop(self) -> None:
        """Listen no more."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()

    def _arm(self, silence: Silence) -> None:
        self._timer = asyncio.get_running_loop().call_later(silence.tick_s, self._tick, silence)

    def _tick(self, silence: Silence) -> None:
        if silence.tick(asyncio.get_running_loop().time()):
            self._on_silence()
        else:
            self._arm(silence)
