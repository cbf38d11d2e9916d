"""A worker's sign of life: a thread that says, from its first moment on, what memory the process takes."""

from __future__ import annotations

import _thread
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from inferapi.domain.model import DeviceKind
from inferapi.engine.process_memory import memory_bytes, most_memory_bytes
from inferapi.worker.messages import Beat

_BEAT_S = 1.0
_SAMPLE_S = 0.05  # while loading: a peak that lasts shorter is missed
_MOST_DUTY = 0.05  # of the time, at most, goes into reading memory: 10 ms were measured for each GiB in small pages


class Pulse:
    """Beats every second. While a load is watched it also looks for the peak of memory, more often.

    Args:
        send: sends a beat; an ``OSError`` ends the thread, for nobody listens any more.
        on_beat: called after each beat, in the same thread.
    """

    def __init__(self, send: Callable[[Beat], None], on_beat: Callable[[], None] = lambda: None) -> None:
        self._send = send
        self.on_beat = on_beat
        self._device = DeviceKind.CPU
        self._memory_bytes = self._peak_bytes = 0
        self._interval_s = _BEAT_S
        self._woken = threading.Event()

    def start(self) -> None:
        """Begin to beat; raises ``RuntimeError`` when there is no room for a thread."""
        # Not threading.Thread: its start() waits for ever for a thread that found no memory to say that it runs.
        _thread.start_new_thread(self._run, ())

    def load_begins(self, device: DeviceKind) -> None:
        """From now on the memory of ``device`` is told, and its peak is looked for."""
        self._device = device
        self._peak_bytes = memory_bytes(device)
        self._interval_s = _SAMPLE_S
        self._woken.set()

    def load_ended(self) -> int:
        """Look less often again; the most bytes that the process took meanwhile."""
        self._interval_s = _BEAT_S
        self._memory_bytes = memory_bytes(self._device)
        return max(self._peak_bytes, most_memory_bytes(self._device))

    def beat(self) -> None:
        """Tell the memory read last, now."""
        self._send(Beat(self._memory_bytes))

    def _run(self) -> None:
        read_due_s = beat_due_s = 0.0
        with suppress(OSError):  # nobody is there: the end of the socket is for the reader to handle
            while True:
                now_s = time.monotonic()
                if now_s >= beat_due_s:  # first, for a reading may take long
                    self.beat()
                    self.on_beat()
                    beat_due_s = now_s + _BEAT_S
                if now_s >= read_due_s or self._woken.is_set():
                    self._woken.clear()
                    self._read()
                    cost_s = time.monotonic() - now_s
                    read_due_s = now_s + max(self._interval_s, cost_s / _MOST_DUTY)
                self._woken.wait(max(min(read_due_s, beat_due_s) - time.monotonic(), 0.0))

    def _read(self) -> None:
        self._memory_bytes = memory_bytes(self._device)
        self._peak_bytes = max(self._peak_bytes, most_memory_bytes(self._device))
