"""The API process's end of a worker's socket: frames in and out, without a task of their own."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from contextlib import suppress

import msgspec

from inferapi.worker.heartbeat import Heartbeat
from inferapi.worker.messages import HEADER_BYTES, FromWorker, Message, body_bytes, frame

log = logging.getLogger(__name__)

_decoder = msgspec.msgpack.Decoder(FromWorker)


class WorkerConnection(asyncio.Protocol):
    """Frames over an asyncio transport; whatever comes is a sign of life to ``heartbeat``.

    Messages are given to a listener in the moment in which they come; before there is one, they wait for ``receive``.
    """

    _transport: asyncio.Transport

    def __init__(self, heartbeat: Heartbeat) -> None:
        self._heartbeat = heartbeat
        self._rest = b""
        self._waiting: asyncio.Queue[FromWorker | None] = asyncio.Queue()
        self._deliver: Callable[[FromWorker | None], None] = self._waiting.put_nowait
        self._lost = asyncio.Event()

    @classmethod
    async def open(cls, sock: socket.socket, heartbeat: Heartbeat) -> WorkerConnection:
        """A connection over a connected socket."""
        _, connection = await asyncio.get_running_loop().create_connection(lambda: cls(heartbeat), sock=sock)
        return connection

    async def receive(self) -> FromWorker | None:
        """The next message; ``None`` once the worker is gone."""
        return await self._waiting.get()

    def listen(self, listener: Callable[[FromWorker | None], None]) -> None:
        """From now on give every message to ``listener``, those first that came already; ``None`` at the end."""
        self._deliver = listener
        while not self._waiting.empty():
            listener(self._waiting.get_nowait())

    def send(self, message: Message) -> None:
        """Send without waiting, whether the worker reads or not; to a worker that is gone, nothing."""
        if not self._transport.is_closing():
            self._transport.write(frame(message))

    def close(self) -> None:
        """Hang up; a living worker reads what was sent, and then ends by itself."""
        self._heartbeat.stop()
        with suppress(RuntimeError):  # the event loop is closed already
            self._transport.close()

    def abort(self) -> None:
        """Hang up on a worker that is dead, or is about to be killed: what it has not read is dropped."""
        self._heartbeat.stop()
        with suppress(RuntimeError):  # the event loop is closed already
            self._transport.abort()

    async def wait_lost(self) -> None:
        """Return once nothing can come any more."""
        await self._lost.wait()

    # What the transport calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See ``asyncio.Protocol``."""
        self._transport = transport  # type: ignore[assignment]  # of a stream socket it is a ``Transport``

    def data_received(self, data: bytes) -> None:
        """See ``asyncio.Protocol``."""
        self._heartbeat.heard()
        data = self._rest + data
        start = 0
        while len(data) >= (body := start + HEADER_BYTES):
            end = body + body_bytes(data[start:body])
            if len(data) < end:
                break
            try:
                message = _decoder.decode(data[body:end])
            except msgspec.DecodeError:
                log.exception("a worker sent what is no message")
                self.abort()
                return
            self._deliver(message)
            start = end
        self._rest = data[start:]

    def connection_lost(self, exc: Exception | None) -> None:
        """See ``asyncio.Protocol``."""
        del exc  # however it ended
        self._lost.set()
        self._deliver(None)
