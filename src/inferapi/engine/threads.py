"""How many CPU threads compute, while other processes want the same cores.

The threads of one operation wait for each other at its end. If one of them has no core, all of them wait for the
scheduler's next turn, hundreds of times a step: on two cores with one busy neighbour, decoding fell from 310 to
75 tokens a second, where a single thread made 220. So the time that this process's threads spent waiting for a
core is watched, and threads are given up or taken back.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

_INTERVAL_S = 0.25
_CORES_WANTED = 0.35  # cores' worth of waiting from which a thread is given up
_PATIENCE_S = 2.0  # before a thread that was given up is tried again; doubled each time that fails
_MOST_PATIENCE_S = 60.0


class ThreadGovernor:
    """Watches between steps, and sets the number of threads.

    Args:
        most: threads when nobody else wants the cores.
        waited_s: seconds that the threads of this process have waited for a core so far, all together.
        set_threads: makes the next operations use so many.
    """

    def __init__(
        self,
        most: int,
        *,
        waited_s: Callable[[], float],
        set_threads: Callable[[int], None],
        now_s: Callable[[], float],
    ) -> None:
        self._most = self._threads = most
        self._waited_s = waited_s
        self._set_threads = set_threads
        self._now_s = now_s
        self._patience_s = _PATIENCE_S
        self._retry_s = 0.0
        self.resume()

    def resume(self) -> None:
        """Begin a new interval: what was waited while there was nothing to compute says nothing."""
        self._since_s, self._waited_before_s = self._now_s(), self._waited_s()

    def observe(self) -> None:
        """After a step: judge the interval if it is over."""
        elapsed_s = self._now_s() - self._since_s
        if elapsed_s < _INTERVAL_S:
            return
        cores_wanted = (self._waited_s() - self._waited_before_s) / elapsed_s
        if cores_wanted > _CORES_WANTED and self._threads > 1:
            if self._threads == self._most and self._retry_s:  # the retry failed
                self._patience_s = min(2 * self._patience_s, _MOST_PATIENCE_S)
            self._use(max(self._threads - max(round(cores_wanted), 1), 1))
            self._retry_s = self._now_s() + self._patience_s
        elif self._threads < self._most and self._now_s() >= self._retry_s:
            self._use(self._most)
        elif self._threads == self._most and self._now_s() >= self._retry_s + self._patience_s:
            self._patience_s = _PATIENCE_S
        self.resume()

    def _use(self, threads: int) -> None:
        self._threads = threads
        self._set_threads(threads)


def waited_for_cores_s() -> float:
    """Seconds that this process's threads were ready to run and had no core, since each began (Linux)."""
    waited_ns = 0
    for task in Path("/proc/self/task").iterdir():
        try:
            waited_ns += int((task / "schedstat").read_text(encoding="ascii").split()[1])
        except (OSError, ValueError, IndexError):  # the thread has ended, or the kernel does not count
            continue
    return waited_ns / 1e9
