"""The API process's end of a worker: a ``TextEngine`` over a socket."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from dataclasses import replace

import msgspec

from inferapi.domain.errors import GenerationAborted, GenerationTimeout, InferapiError, ModelCrashed
from inferapi.domain.generation import Chunk, GenerationRequest
from inferapi.domain.model import EngineFacts, EngineLoad
from inferapi.worker.heartbeat import Heartbeat
from inferapi.worker.messages import (
    HEADER_BYTES,
    Beat,
    Cancel,
    FromWorker,
    Generate,
    Message,
    StepDone,
    body_bytes,
    frame,
)

log = logging.getLogger(__name__)

EndWorker = Callable[[], Awaitable[object]]
"""Give the worker a moment to end by itself, then kill it; returns when it is gone."""

_decoder = msgspec.msgpack.Decoder(FromWorker)


class WorkerConnection:
    """Frames over an asyncio stream; every message is a sign of life to ``heartbeat``."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, heartbeat: Heartbeat) -> None:
        self._reader = reader
        self._writer = writer
        self._heartbeat = heartbeat

    async def receive(self) -> FromWorker | None:
        """The next message; ``None`` once the worker is gone."""
        try:
            header = await self._reader.readexactly(HEADER_BYTES)
            message: FromWorker = _decoder.decode(await self._reader.readexactly(body_bytes(header)))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        except msgspec.DecodeError:
            log.exception("a worker sent what is no message")
            return None
        self._heartbeat.heard()
        return message

    def send(self, message: Message) -> None:
        """Send without waiting, whether the worker reads or not; to a worker that is gone, nothing."""
        if not self._writer.is_closing():
            self._writer.write(frame(message))

    def close(self) -> None:
        """Hang up; a living worker reads what was sent, and then ends by itself."""
        self._heartbeat.stop()
        with suppress(RuntimeError):  # the event loop is closed already
            self._writer.close()

    def abort(self) -> None:
        """Hang up on a worker that is dead, or is about to be killed: what it has not read is dropped."""
        self._heartbeat.stop()
        with suppress(RuntimeError):  # the event loop is closed already
            self._writer.transport.abort()


class WorkerEngine:
    """One loaded model in another process."""

    def __init__(
        self, facts: EngineFacts, connection: WorkerConnection, end_worker: EndWorker, *, memory_bytes: int = 0
    ) -> None:
        self._facts = facts
        self._connection = connection
        self._end_worker = end_worker
        self._load = EngineLoad(memory_bytes=memory_bytes)
        self._ids = itertools.count(1)
        self._streams: dict[int, asyncio.Queue[Chunk | InferapiError]] = {}
        self._closed = asyncio.Event()
        self._ending: asyncio.Task[None] | None = None
        self._receiving = asyncio.create_task(self._receive(), name=f"worker of {facts.model}")

    @property
    def facts(self) -> EngineFacts:
        """See ``TextEngine``."""
        return self._facts

    @property
    def load(self) -> EngineLoad:
        """See ``TextEngine``."""
        return EngineLoad() if self.is_closed else self._load

    @property
    def is_closed(self) -> bool:
        """See ``TextEngine``."""
        return self._closed.is_set()

    async def wait_closed(self) -> None:
        """See ``TextEngine``."""
        await self._closed.wait()

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Chunk]:
        """See ``TextEngine``."""
        if self.is_closed:
            raise self._gone()
        request_id = next(self._ids)
        stream: asyncio.Queue[Chunk | InferapiError] = asyncio.Queue()
        self._streams[request_id] = stream
        self._connection.send(Generate(request_id, request))
        event_loop = asyncio.get_running_loop()
        timeout = GenerationTimeout(timeout_s=round(request.deadline_s - request.arrived_s, 3))
        timer = event_loop.call_at(request.deadline_s, stream.put_nowait, timeout)  # asyncio's clock is the same
        finished = False
        try:
            while not finished:
                item = await stream.get()
                if isinstance(item, InferapiError):
                    finished = item is not timeout
                    raise item
                finished = item.finish is not None
                yield item
        finally:
            timer.cancel()
            del self._streams[request_id]
            if not finished:
                self._connection.send(Cancel(request_id))

    async def aclose(self) -> None:
        """See ``TextEngine``."""
        if self._ending is None:
            self._ending = asyncio.create_task(self._end())
        await asyncio.shield(self._ending)

    async def _end(self) -> None:
        self._connection.close()
        self._close()
        await self._end_worker()
        self._connection.abort()  # of one that was killed, the socket may hold what it never read
        await self._receiving

    async def _receive(self) -> None:
        while (message := await self._connection.receive()) is not None:
            if isinstance(message, StepDone):
                self._load = replace(message.load, memory_bytes=self._load.memory_bytes)
                for request_id, chunk in message.chunks:
                    self._deliver(request_id, chunk)
                for request_id, failure in message.failures:
                    self._deliver(request_id, failure.unpack())
            elif isinstance(message, Beat):
                self._load = replace(self._load, memory_bytes=message.memory_bytes)
        if self._ending is None:
            log.error("the worker of %s ended unexpectedly", self._facts.model)
        self._connection.abort()
        self._close()

    def _deliver(self, request_id: int, item: Chunk | InferapiError) -> None:
        stream = self._streams.get(request_id)
        if stream is not None:  # else it was cancelled meanwhile
            stream.put_nowait(item)

    def _close(self) -> None:
        self._closed.set()
        for stream in self._streams.values():
            stream.put_nowait(self._gone())

    def _gone(self) -> InferapiError:
        if self._ending is not None:
            return GenerationAborted(reason="it was unloaded")
        return ModelCrashed(model=self._facts.model)
