"""The worker's end of its socket: frames, received by one thread and sent by several."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import msgspec

from inferapi.domain.states import ModelState
from inferapi.worker.messages import HEADER_BYTES, FromWorker, Progress, ToWorker, body_bytes, frame

_REPORT_INTERVAL_S = 0.05


class Connection:
    """Frames over a blocking socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._file = sock.makefile("rb")
        self._sock = sock
        self._sending = threading.Lock()
        self._decoder = msgspec.msgpack.Decoder(ToWorker)

    def receive(self) -> ToWorker | None:
        """The next message; ``None`` at the end."""
        with suppress(ConnectionError):
            header = self._file.read(HEADER_BYTES)
            if len(header) == HEADER_BYTES:
                message: ToWorker = self._decoder.decode(self._file.read(body_bytes(header)))
                return message
        return None

    def send(self, message: FromWorker) -> None:
        """Send, however long the other side takes to read; raises ``OSError`` when nobody is there."""
        data = frame(message)
        with self._sending:
            self._sock.sendall(data)

    def send_if_free(self, message: FromWorker) -> None:
        """Send, unless another thread is sending: what it sends says as much. Raises as ``send``."""
        data = frame(message)
        if self._sending.acquire(blocking=False):
            try:
                self._sock.sendall(data)
            finally:
                self._sending.release()

    def hang_up(self) -> None:
        """Say that nothing more comes, at once: the end of a process may take a while."""
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)


class ProgressSender:
    """A ``Report`` that sends: never backwards within a stage, and not more often than 20 times a second."""

    def __init__(self, send: Callable[[Progress], None], now_s: Callable[[], float] = time.monotonic) -> None:
        self._send = send
        self._now_s = now_s
        self._last = Progress(ModelState.QUEUED, 0, 0)
        self._quiet_until_s = 0.0

    def __call__(self, stage: ModelState, done_bytes: int, total_bytes: int) -> None:
        """Send, if it says something new and the last one is long enough ago; a stage's ends are always told."""
        last, now_s = self._last, self._now_s()
        is_too_soon = done_bytes < total_bytes and now_s < self._quiet_until_s
        if stage is last.stage and (done_bytes <= last.done_bytes or is_too_soon):
            return
        self._last = Progress(stage, done_bytes, total_bytes)
        self._quiet_until_s = now_s + _REPORT_INTERVAL_S
        with suppress(OSError):  # nobody is there: the end of the socket is for others to handle
            self._send(self._last)
